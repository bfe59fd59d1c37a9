"""`hybridiff demo`: one device, exact, paper and hybrid side by side, as a table and two images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import Progress

from hybridiff_compile.bench import asked, figures, models, plots, scenes, sheet, summary, tables
from hybridiff_compile.bench.measure import MODES, Made, contenders, measure
from hybridiff_compile.quality import psnr_db, to_bytes

#: The models whose pictures show something; the pictures of the others are noise.
DRAWING = ("tiny-sdxl", "tiny-sd3")
#: The modes whose pictures are shown, with the words above them.
SHOWN: Mapping[figures.Mode, str] = {
    "one-device": "one device",
    "exact": "exact",
    "paper": "paper",
    "hybrid": "hybrid",
}
SHOWN_PROMPTS = 5
PROMPT_SEED = 1
FOOTNOTE = (
    "dB: PSNR against one device that runs the two branches one after the other, 100 at most. "
    "right / wrong: whether the picture shows what its caption says."
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
        json: file for the figures; None writes none.
    """

    names: tuple[str, ...] = DRAWING
    steps: int = 50
    prompts: int = 24
    runs: int = 3
    out: Path = Path("demo")
    json: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that makes no picture."""
        asked.check_names(self.names)
        # A step is timed from the end of the one before it, and the paper's mode needs three.
        asked.check_least("steps", self.steps, 3)
        asked.check_least("prompts", self.prompts, 1)
        asked.check_least("runs", self.runs, 1)


def run(demo: Demo, console: Console) -> list[figures.Row]:
    """Run every mode of every model; print the tables and write the images and the figures."""
    asked.make_folders(demo.out, demo.json)
    rows: list[figures.Row] = []
    made: dict[str, MadeByMode] = {}
    captions = scenes.prompts(demo.prompts, PROMPT_SEED, split="unseen")
    with tables.progress(console) as progress:
        for name in demo.names:
            wanted = captions if name in DRAWING else captions[:1] * demo.runs
            made[name], found = _measure(name, wanted, demo.steps, progress)
            rows += found
    where = figures.environment(threads_per_rank=1)
    _print(rows, where, console)
    for path in _write(demo, captions, rows, made, where):
        console.print(f"wrote {path}", style="dim", soft_wrap=True, highlight=False)
    return rows


def _measure(
    name: str, captions: Sequence[str], steps: int, progress: Progress
) -> tuple[MadeByMode, list[figures.Row]]:
    call = models.call_settings(name)
    # One warm-up picture each.
    task = progress.add_task(f"{name}: loading", total=len(MODES) * (len(captions) + 1))

    def tell(mode: figures.Mode) -> None:
        progress.update(task, advance=1, description=f"{name}: {mode}")

    with contenders(name) as ready:
        made = measure(ready, captions, progress=tell, num_inference_steps=steps, **call)
        scheduler = ready[0].scheduler
    progress.update(task, description=name)

    def judge(index: int, of: Made) -> bool:
        return _is_right(captions[index], of)

    rows = summary.rows(
        made,
        judge=judge if name in DRAWING else None,
        command="demo",
        model=name,
        scheduler=scheduler,
        steps=steps,
        guidance_scale=call["guidance_scale"],
    )
    return made, rows


def _is_right(caption: str, made: Made) -> bool:
    return scenes.check(to_bytes(made.pictures[0]), scenes.Scene.parse(caption))


def _write(
    demo: Demo,
    captions: Sequence[str],
    rows: Sequence[figures.Row],
    made: Mapping[str, MadeByMode],
    where: figures.Environment,
) -> list[Path]:
    demo.out.mkdir(parents=True, exist_ok=True)
    written = [demo.out / "table.md", demo.out / "steps.png"]
    written[0].write_text(tables.markdown(rows) + "\n", encoding="utf-8")
    plots.step_by_step(written[1], [trace(name, by_mode) for name, by_mode in made.items()])
    drawn = {name: _shown(captions, made[name]) for name in demo.names if name in DRAWING}
    if drawn:
        written.append(demo.out / "pictures.png")
        sheet.pictures_side_by_side(written[-1], captions[:SHOWN_PROMPTS], drawn, FOOTNOTE)
    if demo.json is not None:
        figures.write(demo.json, rows, where)
        written.append(demo.json)
    return written


def _shown(captions: Sequence[str], made: MadeByMode) -> dict[str, list[sheet.Shown]]:
    def shown(caption: str, of: Made, reference: Made) -> sheet.Shown:
        verdict = "right" if _is_right(caption, of) else "wrong"
        db = psnr_db(of.pictures, reference.pictures)
        return sheet.Shown(of.pictures[0], f"{db:.0f} dB, {verdict}")

    chosen = captions[:SHOWN_PROMPTS]
    return {
        label: [
            shown(caption, of, reference)
            for caption, of, reference in zip(
                chosen, made[mode], made[summary.REFERENCE], strict=False
            )
        ]
        for mode, label in SHOWN.items()
    }


def trace(name: str, made: MadeByMode) -> plots.Trace:
    """What happened step by step: discrepancies of the exact run, times of the paper's run."""
    shown = summary.typical(made["paper"])
    report = shown.report
    # Pictures that switched at another step would blur the times.
    alike = [m for m in made["paper"] if m.report and report and m.report.tau1 == report.tau1]
    times = zip(*(m.step_seconds for m in alike), strict=True)
    exact = [m.report.steps for m in made["exact"] if m.report is not None]
    return plots.Trace(
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


def _print(rows: Sequence[figures.Row], where: figures.Environment, console: Console) -> None:
    width = console.width
    console.width = max(width, tables.WIDTH)
    for table in tables.terminal_tables(rows):
        console.print()
        console.print(table)
    console.width = width
    console.print(
        f"\nPSNR and error are against one-device-apart. {where.threads_per_rank} thread a rank on "
        f"{where.cpu}, {where.cpu_count} cores; torch {where.torch}, diffusers {where.diffusers}.",
        style="dim",
        highlight=False,
    )
