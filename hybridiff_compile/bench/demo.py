"""`hybridiff demo`: one device, exact, paper and hybrid side by side, as a table and two images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from hybridiff_compile.bench import (
    charts,
    command,
    estimate,
    figures,
    models,
    scenes,
    summary,
    tables,
)
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.bench.measure import MODES, Made, contenders, measure
from hybridiff_compile.bench.models import DRAWING
from hybridiff_compile.quality import psnr_db

#: The modes whose pictures are shown, with the words above them.
SHOWN: Mapping[figures.Mode, str] = {
    "one-device": "one device",
    "exact": "exact",
    "paper": "paper",
    "hybrid": "hybrid",
}
SHOWN_PROMPTS = 5
#: Pictures that each mode of a tiny model makes, and how few show the same in a quick run.
PROMPTS, QUICK = 24, 3
SHEET_NOTE = (
    "dB: PSNR against one device that runs the two branches one after the other, 100 at most. "
    "right / wrong: whether the picture shows what its caption says."
)
LAYOUT = tables.Layout(
    columns=(
        tables.MODE,
        tables.PICTURE,
        tables.SPEEDUP,
        tables.STEP_MS,
        tables.STEPS,
        tables.PSNR,
        tables.ERROR,
        tables.SENT,
        tables.RIGHT,
    ),
    footnote="PSNR and error are against one-device-apart.",
    width=110,
)

MadeByMode = Mapping[figures.Mode, Sequence[Made]]


@dataclass(frozen=True)
class Demo:
    """What to run.

    Attributes:
        names: models, in the order of the tables.
        steps: denoising steps.
        prompts: pictures that each mode makes with a model whose pictures can be judged.
        runs: pictures that each mode makes with a model whose pictures are noise.
        out: folder for the images and the table.
        json: file for the figures, written after every model; None writes none.
        thinned: what is left out to be quick, in words.
    """

    names: tuple[str, ...] = DRAWING
    steps: int = 50
    prompts: int = PROMPTS
    runs: int = 3
    out: Path = Path("demo")
    json: Path | None = None
    thinned: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that makes no picture."""
        models.check_names(self.names)
        # A step is timed from the end of the one before it, and the paper's mode needs three.
        check_least("steps", self.steps, 3)
        check_least("prompts", self.prompts, 1)
        check_least("runs", self.runs, 1)

    def pictures(self, name: str) -> int:
        """How many each mode makes of a model."""
        return self.prompts if name in DRAWING else self.runs


def run(demo: Demo, console: Console) -> list[figures.Row]:
    """Run every mode of every model; print the tables and write the images and the figures."""
    rows, made = list[figures.Row](), dict[str, MadeByMode]()
    captions = scenes.prompts(demo.prompts, scenes.PROMPT_SEED, split="unseen")
    where = figures.environment(threads_per_rank=1)
    with command.output(demo.out, demo.json, console) as folder:
        counts = {name: 1 + demo.pictures(name) for name in demo.names}  # one warms up
        each = [estimate.step_seconds(*models.opened(name)) for name in demo.names]
        steps = [demo.steps * count for count in counts.values()]
        seconds = [estimate.pictures(s, MODES, n) for s, n in zip(each, steps, strict=True)]
        what = f"{', '.join(demo.names)}; {len(MODES)} ways to make the same pictures"
        command.announce(console, sum(seconds), what)
        with command.Telling(console, sum(1 + len(MODES) * n for n in counts.values())) as tell:
            for name in demo.names:
                wanted = captions if name in DRAWING else captions[:1] * demo.runs
                made[name], found = _measure(name, wanted, demo.steps, tell)
                tables.show(found, LAYOUT, console, demo.thinned)
                rows += found
                if demo.json is not None:
                    figures.write(demo.json, rows, where)
        tables.close(folder / "table.md", rows, LAYOUT, where, console, demo.thinned)
        charts.step_by_step(folder / "steps.png", [trace(name, of) for name, of in made.items()])
        drawn = {name: _shown(captions, made[name]) for name in demo.names if name in DRAWING}
        if drawn:
            path = folder / "pictures.png"
            charts.pictures_side_by_side(path, captions[:SHOWN_PROMPTS], drawn, SHEET_NOTE)
    console.print(f"\n{closing(rows)}", soft_wrap=True, highlight=False)
    return rows


def _measure(
    name: str, captions: Sequence[str], steps: int, tell: command.Telling
) -> tuple[MadeByMode, list[figures.Row]]:
    call = models.call_settings(name)
    tell(f"{name}: starting the ranks")
    with contenders(name) as ready:
        made = measure(
            ready,
            captions,
            tell=lambda what: tell(f"{name}: {what}"),
            num_inference_steps=steps,
            **call,
        )
        scheduler = ready[0].scheduler
    rows = summary.rows(
        made,
        judge=summary.judge_of(captions) if name in DRAWING else None,
        command="demo",
        model=name,
        scheduler=scheduler,
        steps=steps,
        guidance_scale=call["guidance_scale"],
    )
    return made, rows


def closing(rows: Sequence[figures.Row]) -> str:
    """What the tables say, in plain words, and what to do next."""
    of = {(row.model, row.mode): row for row in rows}
    said = []
    for name in dict.fromkeys(row.model for row in rows):
        hybrid = of[name, "hybrid"]
        said.append(f"{_times(hybrid.speedup)} with {name} ({hybrid.psnr_db:.0f} dB)")
    same = all(of[name, "exact"].max_abs_error == 0 for name, _ in of)
    bits = "has the same bits as" if same else "is within rounding of"
    return (
        f"Compared with one device, hybrid on two ranks is {', and '.join(said)}. Above 40 dB a "
        f"difference is hard to see; exact {bits} one device that computes the two halves one "
        "after the other. Next: try your own pipeline as in examples/two_ranks.py, or ask "
        "`hybridiff plan` what two GPUs would gain."
    )


def _times(speedup: float | None) -> str:
    if not speedup:
        return "at an unknown speed"
    return f"{speedup:.2f} times as fast" if speedup >= 1 else f"{1 / speedup:.2f} times as slow"


def _shown(captions: Sequence[str], made: MadeByMode) -> dict[str, list[charts.Shown]]:
    is_right = summary.judge_of(captions)

    def shown(index: int, of: Made, reference: Made) -> charts.Shown:
        verdict = "right" if is_right(index, of) else "wrong"
        db = psnr_db(of.pictures, reference.pictures)
        return charts.Shown(of.pictures[0], f"{db:.0f} dB, {verdict}")

    pairs = {
        label: list(zip(made[mode], made[summary.REFERENCE], strict=True))[:SHOWN_PROMPTS]
        for mode, label in SHOWN.items()
    }
    return {
        label: [shown(i, of, reference) for i, (of, reference) in enumerate(both)]
        for label, both in pairs.items()
    }


def trace(name: str, made: MadeByMode) -> charts.Trace:
    """What happened step by step: discrepancies of the exact run, times of the paper's run."""
    shown = summary.typical(made["paper"])
    report = shown.report
    # Pictures that switched at another step would blur the times.
    alike = [m for m in made["paper"] if m.report and report and m.report.tau1 == report.tau1]
    times = zip(*(m.step_seconds for m in alike), strict=True)
    exact = [m.report.steps for m in made["exact"] if m.report is not None]
    return charts.Trace(
        model=name,
        discrepancies=[
            [s.discrepancy for s in steps if s.discrepancy is not None] for steps in exact
        ],
        phases=summary.phases(shown),
        # The first step has no step before it from whose end it could be timed.
        step_ms=[float("nan"), *(1000 * median(of) for of in times)],
        tau1=report.tau1 if report else None,
        tau2=report.tau2 if report else None,
        baselines={
            SHOWN[mode]: summary.step_ms_by_phase(made[mode])["serial"]
            for mode in ("one-device", "exact")
        },
    )
