"""What `coverage.py` finds of a pipeline, line by line, and the tables that are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from suite_report import read_lines

MODES = ("exact", "hybrid", "paper", "regional")
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


class Pattern(BaseModel):
    """How a pipeline calls one of its denoisers in a step.

    Attributes:
        name: of the part of the pipeline.
        calls: in a step.
        rows: of the picture, of each call.
        parts: equal ones that the rows of a call consist of; 1 if they do not repeat.
        listed: whether the picture is a list of tensors, one a row.
        contexts: names of the `cache_context`s of the calls, in order.
        beside: other models that are called in the step.
        always: whether every step of the run is like this one.
        effect: largest difference between the predictions of two branches, relative to the largest
            value; None if there is one branch.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    calls: int
    rows: tuple[int, ...]
    parts: int
    listed: bool = False
    contexts: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    always: bool = True
    effect: float | None = None

    @property
    def kind(self) -> str:
        """What decides how ranks can share it."""
        if self.calls > 1:
            return "two calls a step" if self.calls == 2 else "three or more calls a step"
        if self.parts > 1:
            return "one call of two equal parts" if self.parts == 2 else "one call of more parts"
        return "one call of one branch"

    def __str__(self) -> str:
        """In a few words."""
        counts = self.rows if len(set(self.rows)) > 1 else self.rows[:1]
        rows = f"{', '.join(map(str, counts))} row{'' if counts == (1,) else 's'}"
        words = [f"{self.calls} calls of {rows}" if self.calls > 1 else f"1 call of {rows}"]
        if self.parts > 1:
            words.append(f"{self.parts} equal parts")
        if self.listed:
            words.append("a list")
        if self.contexts:
            words.append("contexts " + ", ".join(self.contexts))
        if self.beside:
            words.append("beside " + ", ".join(self.beside))
        if not self.always:
            words.append("not at every step")
        return "; ".join(words)


class Result(BaseModel):
    """What came of a mode.

    Attributes:
        outcome: "refused" is by `optimize`, or by a mode that says that it is not for this
            pipeline.
        reasons: what the package said, or what is wrong.
        off_batched: largest difference from the plain pipeline, relative to its largest value.
        same_as: "apart" or "plain", if the result has the same bits as one device that runs the
            branches one after the other, or as the plain pipeline; "" if it has neither's.
        left: denoiser calls that were left to the pipeline.
        phases: steps by what was done in them.
        seconds: that it took.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Literal["two ranks", "one rank", "refused", "failed"]
    reasons: tuple[str, ...] = ()
    off_batched: float | None = None
    same_as: Literal["apart", "plain", ""] = ""
    left: int = 0
    phases: dict[str, int] = {}
    seconds: float = 0.0


class Row(BaseModel):
    """One pipeline, built as one of diffusers' test classes builds it.

    Attributes:
        case: file and class of the test.
        pipeline: class of the pipeline.
        patterns: of its denoisers; empty if it was not built.
        not_built: why not.
        results: by mode.
        versions: that were run.
    """

    case: str
    pipeline: str = ""
    patterns: tuple[Pattern, ...] = ()
    not_built: str = ""
    results: dict[str, Result] = {}
    versions: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong in a mode."""
        return any(r.outcome == "failed" for r in self.results.values())


def read(path: Path) -> dict[str, Row]:
    """The rows of a file of lines, by case; a later line of a case adds its results.

    Raises:
        ValueError: a line is none of these.
    """
    rows: dict[str, Row] = {}
    for line in read_lines(path):
        row = Row.model_validate(line)
        if (earlier := rows.get(row.case)) is not None:
            row.results = {**earlier.results, **row.results}
            row.patterns = row.patterns or earlier.patterns
            row.pipeline = row.pipeline or earlier.pipeline
        rows[row.case] = row
    return rows


def add(path: Path, row: Row) -> None:
    """Add a line to the file."""
    with path.open("a") as out:
        out.write(row.model_dump_json() + "\n")


class Notes:
    """Sentences that rows refer to by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def refer(self, sentences: Iterable[str]) -> str:
        """The numbers of sentences, in brackets; "" of none."""
        flat = [" ".join(s.replace("|", "/").split()) for s in sentences]
        numbers = [str(self._numbers.setdefault(s, len(self._numbers) + 1)) for s in flat if s]
        return f" ({', '.join(numbers)})" if numbers else ""

    def lines(self) -> list[str]:
        """The sentences, as a numbered list."""
        return [f"{number}. {sentence}" for sentence, number in self._numbers.items()]


def exact_cell(result: Result, notes: Notes) -> str:
    """Where it ran, whose bits it has, and how far it is from the plain pipeline."""
    words = [result.outcome]
    if result.outcome == "two ranks":
        bits = {"apart": "bits of apart", "plain": "bits of plain", "": "other bits"}
        words.append(bits[result.same_as])
        if result.same_as != "plain" and result.off_batched is not None:
            words.append(f"{result.off_batched:.0e}")
        if result.left:
            words.append(f"{result.left} call{'' if result.left == 1 else 's'} left")
    return ", ".join(words) + notes.refer(result.reasons)


def phase_cell(result: Result, notes: Notes, kind: str, word: str) -> str:
    """How many steps were not computed, or why none was.

    Args:
        result: of a mode.
        notes: that reasons are put in.
        kind: of those steps, as reports call it.
        word: for them.
    """
    count, steps = result.phases.get(kind, 0), sum(result.phases.values())
    if result.outcome in ("refused", "failed"):
        text = result.outcome
    else:
        text = f"{count} of {steps} {word}" if count else f"none {word}"
    return text + notes.refer(result.reasons)


def compiled_cell(result: Result, notes: Notes) -> str:
    """How far it is from the plain pipeline."""
    off = "" if result.off_batched is None else f", {result.off_batched:.0e}"
    return result.outcome + off + notes.refer(result.reasons)


def table(rows: Iterable[Row]) -> list[str]:
    """The whole table in Markdown: a line a pipeline, then the sentences that it refers to."""
    ordered = sorted(rows, key=lambda r: (r.pipeline, r.case))
    built = [r for r in ordered if not r.not_built]
    times, notes = Counter(r.pipeline for r in built), Notes()
    modes = [m for m in MODES if any(m in r.results for r in built)]
    lines = [
        "| " + " | ".join(["pipeline", "its denoiser, in a step", *modes]) + " |",
        "|" + "---|" * (2 + len(modes)),
    ]
    for row in built:
        name = f"`{row.pipeline}`"
        if times[row.pipeline] > 1:
            name += f" ({row.case.split('::')[-1]})"
        several = len(row.patterns) > 1
        how = [f"{p.name}: {p}" if several else str(p) for p in row.patterns]
        cells = [cell(mode, row, notes) for mode in modes]
        lines.append("| " + " | ".join([name, " / ".join(how), *cells]) + " |")
    missing = [
        f"- `{r.pipeline or r.case}`: {' '.join(r.not_built.split())}"
        for r in ordered
        if r.not_built
    ]
    lines += ["", *notes.lines()]
    return lines + (["", "Not built:", "", *missing] if missing else [])


def cell(mode: str, row: Row, notes: Notes) -> str:
    """What the table says of a mode."""
    if (result := row.results.get(mode)) is None:
        return "not run"
    # One sentence for all pipelines that it is said of.
    said = tuple(text.replace(row.pipeline, "the pipeline") for text in result.reasons)
    result = result.model_copy(update={"reasons": said})
    if mode == "exact":
        return exact_cell(result, notes)
    if mode == "regional":
        return compiled_cell(result, notes)
    kind, word = {"hybrid": ("forecast", "extrapolated"), "paper": ("pipelined",) * 2}[mode]
    return phase_cell(result, notes, kind, word)


def short(rows: Iterable[Row]) -> list[str]:
    """The short table in Markdown: how many pipelines call their denoiser how, and what came."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if not row.not_built and row.patterns and (exact := row.results.get("exact")):
            count = counts.setdefault(row.patterns[-1].kind, Counter())
            count["all"] += 1
            count[exact.outcome] += 1
    lines = ["| its denoiser, in a step | pipelines | two ranks | one rank | refused |"]
    lines.append("|---|---:|---:|---:|---:|")
    for kind, count in sorted(counts.items(), key=lambda pair: -pair[1]["all"]):
        figures = [count[key] for key in ("all", "two ranks", "one rank", "refused")]
        lines.append(f"| {kind} | {' | '.join(map(str, figures))} |")
    return lines


def page(rows: Mapping[str, Row]) -> str:
    """What the page of the documentation says: counts, the short table, the whole table."""
    built = [r for r in rows.values() if not r.not_built]
    failed = sum(r.has_failed for r in built)
    classes = len({r.pipeline for r in built})
    counts = f"not built: {len(rows) - len(built)}; failed: {failed}"
    head = f"{len(built)} set-ups of {classes} classes; {counts}. {', '.join(versions(rows))}."
    return "\n".join([head, "", *short(built), "", *table(rows.values())])


def versions(rows: Mapping[str, Row]) -> list[str]:
    """Of what was run."""
    return sorted({r.versions for r in rows.values() if r.versions})


def put(text: str, page: Path) -> None:
    """Write a text between the two markers of a page.

    Raises:
        ValueError: the page has no such markers.
    """
    whole = page.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END} to write between.")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
