"""examples/coverage.py: what it lets pass, its table, what dies or hangs."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from tests import pipelines

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class Small:
    """A test class of diffusers, as far as it counts: it builds SDXL with a small UNet."""

    pipeline_class = StableDiffusionXLPipeline

    def get_dummy_components(self) -> dict[str, Any]:
        return pipelines.load("small-sdxl").components

    def get_dummy_inputs(self, device: str) -> dict[str, Any]:
        return pipelines.settings("small-sdxl")


@pytest.fixture
def small(script: Any) -> Any:
    """A small pipeline that was run as it is."""
    return script("coverage_modes").plain(script("coverage_cases").Made(Small))


@pytest.mark.slow
def test_exact_is_compared_with_one_device(script: Any, small: Any) -> None:
    assert (small.is_steady, small.long) == (True, 8)
    (pattern,) = small.patterns
    assert str(pattern) == "1 call of 2 rows; 2 equal parts"
    assert pattern.effect > 0
    found = script("coverage_modes").exact(small)
    assert (found.outcome, found.same_as, found.reasons) == ("two ranks", "apart", ())
    assert 0 < found.off_batched < 1e-4
    assert 0 < script("coverage_modes").shaken(small) < 1e-4


@pytest.mark.slow
def test_steps_are_extrapolated_and_pipelined(script: Any, small: Any) -> None:
    hybrid, paper = script("coverage_modes").hybrid(small), script("coverage_modes").paper(small)
    assert hybrid.phases["forecast"] >= 1
    assert paper.phases == {"serial": 6, "pipelined": 2, "forecast": 0}
    assert (hybrid.outcome, paper.outcome) == ("two ranks", "two ranks")


@pytest.fixture
def tried(script: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What a mode makes of a call that gives an array of ones, but for what is said otherwise."""
    modes = script("coverage_modes")
    ones = [np.ones((1, 2))]
    made = types.SimpleNamespace(call=lambda steps: ones)
    of = script("coverage_compare").Plain(made, ones, (), True, 8)

    def run(mode: str, apart: Any = None, shaken: float = 0.0, **changes: Any) -> Any:
        phases = {"serial": 6, "pipelined": 1, "forecast": 1}
        good = script("coverage_compare").Tried(ones, ranks=2, phases=phases)
        ours = replace(good, **changes)
        alone = ours if apart is None else replace(good, result=[np.full((1, 2), apart)])
        monkeypatch.setattr(modes, "shaken", lambda of: shaken)
        monkeypatch.setattr(
            modes, "attempt", lambda *_, **how: alone if how.get("gpus") == 1 else ours
        )
        return modes.CHECKS[mode](of)

    return run


@pytest.mark.parametrize("mode", ["exact", "hybrid", "paper", "regional"])
def test_what_is_right_passes(tried: Callable[..., Any], mode: str) -> None:
    assert tried(mode).outcome == "two ranks"
    assert tried(mode, ranks=1, said=("one rank runs this denoiser call: odd",)).reasons == ("odd",)
    assert tried(mode, refused="it is not for this").outcome == "refused"


OFF = {"result": [np.full((1, 2), 1 + 1e-6)]}


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        ("exact", {**OFF, "apart": 1.0}, "off by 1.0e-06 from one device"),
        ("exact", {"result": [np.full((1, 2), 1.01)]}, "off by 1.0e-02 from the plain pipeline"),
        ("exact", {"ranks": 1}, "no reason is given"),
        ("exact", {"error": "RuntimeError: it broke"}, "it broke"),
        ("exact", {"result": [np.full((1, 2), np.nan)]}, "off by inf"),
        ("hybrid", {"result": [np.full((1, 2), np.nan)]}, "not finite"),
        ("hybrid", {"result": [np.ones((2, 2))]}, "other shapes"),
        ("hybrid", {"phases": {"forecast": 0}}, "no step was extrapolated"),
        ("paper", {"phases": {"pipelined": 0}}, "no step was pipelined"),
        ("paper", {"result": [np.full((1, 2), np.inf)]}, "not finite"),
        ("regional", {"result": [np.full((1, 2), 1.01)]}, "off by 1.0e-02"),
    ],
)
def test_what_is_wrong_fails(
    tried: Callable[..., Any], mode: str, changes: dict[str, Any], reason: str
) -> None:
    found = tried(mode, **changes)
    assert found.outcome == "failed"
    assert reason in found.reasons[0]


def test_bits_of_one_device_are_enough(tried: Callable[..., Any]) -> None:
    found = tried("exact", **OFF)
    assert (found.outcome, found.same_as) == ("two ranks", "apart")
    assert found.off_batched == pytest.approx(1e-6, rel=1e-3)


def test_roundings_that_a_pipeline_magnifies_are_no_fault(tried: Callable[..., Any]) -> None:
    off = {"result": [np.full((1, 2), 1.01)]}
    assert tried("exact", shaken=0.002, **off).outcome == "two ranks"
    assert tried("exact", shaken=0.0005, **off).outcome == "failed"


def rows(script: Any) -> dict[str, Any]:
    """Rows of all kinds."""
    r = script("coverage_rows")
    halves = r.Pattern(name="unet", calls=1, rows=(2,), parts=2)
    twice = r.Pattern(
        name="transformer", calls=2, rows=(1, 1), parts=1, contexts=("cond", "uncond")
    )
    other = twice.model_copy(update={"name": "transformer_2", "contexts": ()})
    phases = {"serial": 5, "pipelined": 2, "forecast": 3}
    batch = "its batch is 1, and ranks share rows"
    two = {
        "exact": r.Result(outcome="two ranks", same_as="apart", off_batched=3.2e-7),
        "hybrid": r.Result(outcome="two ranks", phases=phases),
        "paper": r.Result(outcome="two ranks", phases=phases, reasons=("a remark",)),
    }
    one = {
        "exact": r.Result(outcome="one rank", reasons=(batch,), same_as="plain", off_batched=0.0),
        "hybrid": r.Result(outcome="one rank", reasons=(batch,)),
        "paper": r.Result(outcome="refused", reasons=("APipeline has | none",)),
    }
    found = [
        r.Row(
            case="b.py::B", pipeline="BPipeline", patterns=(halves,), results=two, versions="v 1"
        ),
        r.Row(case="a.py::A2", pipeline="APipeline", patterns=(twice, other), results=one),
        r.Row(
            case="a.py::A1",
            pipeline="APipeline",
            patterns=(twice,),
            results={"exact": one["exact"]},
        ),
        r.Row(case="c.py::C", pipeline="CPipeline", not_built="OSError: no\nsuch file"),
    ]
    return {row.case: row for row in found}


_A2 = "transformer: 2 calls of 1 row; contexts cond, uncond / transformer_2: 2 calls of 1 row"
_B = "two ranks, bits of apart, 3e-07 | 3 of 10 extrapolated | 2 of 10 pipelined (3)"
TABLE = f"""\
| pipeline | its denoiser, in a step | exact | hybrid | paper |
|---|---|---|---|---|
| `APipeline` (A1) | 2 calls of 1 row; contexts cond, uncond | one rank (1) | not run | not run |
| `APipeline` (A2) | {_A2} | one rank (1) | none extrapolated (1) | refused (2) |
| `BPipeline` | 1 call of 2 rows; 2 equal parts | {_B} |

1. its batch is 1, and ranks share rows
2. the pipeline has / none
3. a remark

Not built:

- `CPipeline`: OSError: no such file"""

SHORT = """\
| its denoiser, in a step | pipelines | two ranks | one rank | refused |
|---|---:|---:|---:|---:|
| two calls a step | 2 | 0 | 2 | 0 |
| one call of two equal parts | 1 | 1 | 0 | 0 |"""


def test_the_tables_are_these(script: Any) -> None:
    found = rows(script)
    assert "\n".join(script("coverage_rows").table(found.values())) == TABLE
    assert "\n".join(script("coverage_rows").short(found.values())) == SHORT
    head = "3 set-ups of 2 classes; not built: 1; failed: 0. v 1."
    assert script("coverage_rows").page(found) == "\n".join([head, "", SHORT, "", TABLE])


def test_a_page_is_written_between_its_markers(script: Any, tmp_path: Path) -> None:
    r, page = script("coverage_rows"), tmp_path / "page.md"
    page.write_text(f"above\n\n{r.BEGIN}\nold\n{r.END}\n\nbelow\n")
    r.put("new", page)
    assert page.read_text() == f"above\n\n{r.BEGIN}\n\nnew\n\n{r.END}\n\nbelow\n"
    r.put("newer", page)
    assert page.read_text() == f"above\n\n{r.BEGIN}\n\nnewer\n\n{r.END}\n\nbelow\n"
    page.write_text(f"above\n{r.BEGIN}\n")
    with pytest.raises(ValueError, match=r"page\.md has no lines"):
        r.put("new", page)
    assert page.read_text() == f"above\n{r.BEGIN}\n"


def test_the_documentation_has_a_place_for_the_table(script: Any) -> None:
    r, text = script("coverage_rows"), (EXAMPLES.parent / "docs" / "coverage.md").read_text()
    assert text.count(r.BEGIN) == text.count(r.END) == 1
    assert text.index(r.BEGIN) < text.index(r.END)


def test_later_lines_add_modes(script: Any, tmp_path: Path) -> None:
    r, path = script("coverage_rows"), tmp_path / "rows.jsonl"
    row = rows(script)["b.py::B"]
    more = r.Row(case=row.case, results={"regional": r.Result(outcome="two ranks")})
    r.add(path, row)
    r.add(path, more)
    with path.open("a") as out:
        out.write('{"case": "cut o')  # as a process that is killed leaves it
    (found,) = r.read(path).values()
    assert list(found.results) == ["exact", "hybrid", "paper", "regional"]
    assert (found.pipeline, found.patterns) == (row.pipeline, row.patterns)
