"""`hybridiff demo`: one device, exact, paper and hybrid side by side, as a table and two images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from hybridiff_compile.bench import (
    charts,
    estimate,
    figures,
    models,
    report,
    scenes,
    summary,
    tables,
)
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.bench.measure import Made, measure
from hybridiff_compile.bench.models import DRAWING
from hybridiff_compile.bench.ready import Job, opened
from hybridiff_compile.quality import psnr_db

MODES: tuple[figures.Mode, ...] = ("one-device", "one-device-apart", "exact", "paper", "hybrid")
#: The modes whose pictures are shown, with the words above them.
SHOWN: Mapping[figures.Mode, str] = {
    "one-device": "one device",
    "exact": "exact",
    "paper": "paper",
    "hybrid": "hybrid",
}
SHOWN_PROMPTS = 5
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
)

MadeByMode = Mapping[figures.Mode, Sequence[Made]]


@dataclass(frozen=True, kw_only=True)
class Demo(report.Asked):
    """What to run.

    Attributes:
        models: in the order of the tables.
        steps: denoising steps.
        prompts: pictures that each mode makes with a model whose pictures can be judged.
        runs: pictures that each mode makes with a model whose pictures are noise.
    """

    models: tuple[str, ...] = DRAWING
    steps: int = 50
    prompts: int = 24
    runs: int = 3
    out: Path = Path("demo")

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that makes no picture."""
        models.check_names(self.models)
        # A step is timed from the end of the one before it, and the paper's mode needs three.
        check_least("steps", self.steps, 3)
        check_least("prompts", self.prompts, 1)
        check_least("runs", self.runs, 1)

    def captions(self, model: str) -> list[str]:
        """The prompts of a model's pictures."""
        captions = scenes.prompts(self.prompts, scenes.PROMPT_SEED, split="unseen")
        return captions if model in DRAWING else captions[:1] * self.runs


def run(demo: Demo, console: Console) -> list[figures.Row]:
    """Run every mode of every model; print the tables and write the images and the figures."""
    made = dict[str, MadeByMode]()
    with report.reporting(demo, lambda rows: LAYOUT, console) as shown:
        counts = {model: 1 + len(demo.captions(model)) for model in demo.models}  # one warms up
        seconds = sum(
            estimate.pictures(estimate.step_seconds(*models.opened(model)), MODES, demo.steps * n)
            for model, n in counts.items()
        )
        what = f"{', '.join(demo.models)}; {len(MODES)} ways to make the same pictures"
        shown.begin(seconds, what, sum(1 + len(MODES) * n for n in counts.values()))
        for model in demo.models:
            made[model], rows = _measure(demo, model, shown.tell)
            shown.add(*rows)
        traces = [trace(model, of) for model, of in made.items()]
        charts.step_by_step(shown.folder / "steps.png", traces)
        drawn = {model: made[model] for model in demo.models if model in DRAWING}
        if drawn:
            _draw(shown.folder / "pictures.png", demo.captions(DRAWING[0]), drawn)
    console.print(f"\n{closing(shown.rows)}", soft_wrap=True, highlight=False)
    return shown.rows


def _measure(
    demo: Demo, model: str, tell: Callable[[str], None]
) -> tuple[MadeByMode, list[figures.Row]]:
    """What every mode made, each with a pipeline of its own, in this process."""
    call = {**models.call_settings(model), "num_inference_steps": demo.steps}
    captions = demo.captions(model)
    tell(f"{model}: starting the ranks")
    with ExitStack() as stack:
        jobs = [Job(model, mode, "eager", None, call) for mode in MODES]
        ready = [stack.enter_context(opened(job)).contender for job in jobs]
        made = measure(ready, captions, tell=lambda what: tell(f"{model}: {what}"), **call)
    what = {"command": "demo", "model": model, "scheduler": ready[0].scheduler}
    what |= {"steps": demo.steps, "guidance_scale": call["guidance_scale"]}
    judge = summary.judge_of(captions) if model in DRAWING else None
    return made, summary.rows(made, judge=judge, **what)


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


def _draw(path: Path, captions: Sequence[str], made: Mapping[str, MadeByMode]) -> None:
    """Write the first pictures of the modes that are shown, side by side."""
    is_right = summary.judge_of(captions)

    def shown(index: int, of: Made, reference: Made) -> charts.Shown:
        verdict = "right" if is_right(index, of) else "wrong"
        db = psnr_db(of.pictures, reference.pictures)
        return charts.Shown(of.pictures[0], f"{db:.0f} dB, {verdict}")

    def column(of: Sequence[Made], reference: Sequence[Made]) -> list[charts.Shown]:
        pairs = list(zip(of, reference, strict=True))[:SHOWN_PROMPTS]
        return [shown(i, *pair) for i, pair in enumerate(pairs)]

    columns = {
        model: {words: column(by[mode], by[summary.REFERENCE]) for mode, words in SHOWN.items()}
        for model, by in made.items()
    }
    charts.pictures_side_by_side(path, captions[:SHOWN_PROMPTS], columns, SHEET_NOTE)


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
