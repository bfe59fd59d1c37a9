"""`hybridiff bench --compare`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridiff_compile.bench import compare, figures
from hybridiff_compile.bench.figures import Environment, Row
from hybridiff_compile.cli import app

A = Environment(
    python="3.11",
    torch="2.13",
    diffusers="0.37",
    os="Linux",
    cpu="slow",
    cpu_count=2,
    threads_per_rank=1,
)
B = A.model_copy(update={"cpu": "fast"})


def row(mode: str, seconds: float, **more: object) -> Row:
    what = {"command": "bench", "model": "tiny-sd3", "mode": mode, "seconds": seconds, **more}
    return Row.model_validate(what)


def test_rows_of_the_same_thing_are_matched_whatever_their_order():
    first = [row("exact", 4), row("paper", 2, k=5), row("hybrid", 1), row("exact", 5)]
    second = [row("paper", 1, k=4), row("exact", 3), row("paper", 7, k=5), row("exact", 6)]
    both, only_first, only_second = compare.matched(first, second)
    # Of several alike the first is matched with the first.
    assert [(a.seconds, b.seconds) for a, b in both] == [(4, 3), (2, 7), (5, 6)]
    assert [r.mode for r in only_first] == ["hybrid"]
    assert [r.k for r in only_second] == [4]


def written(path: Path, where: Environment, *rows: Row) -> str:
    figures.write(path, rows, where)
    return str(path)


def test_two_files_are_printed_side_by_side(tmp_path: Path) -> None:
    exact = row("exact", 4.0, psnr_db=50.0, backend="eager")
    a = written(tmp_path / "a.json", A, exact, row("hybrid", 1.0))
    b = written(tmp_path / "b.json", B, exact.model_copy(update={"seconds": 3.0}))
    result = CliRunner().invoke(app, ["bench", "--compare", a, b])
    assert result.exit_code == 0, result.output
    assert "cpu: slow | fast" in result.output
    assert "tiny-sd3, exact, eager" in result.output
    assert "4.00 | 3.00 (0.75)" in result.output
    assert "50.0 | 50.0 " in result.output
    assert "only in" in result.output
    assert "tiny-sd3, hybrid" in result.output


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a = written(tmp_path / "a.json", A, row("exact", 4))
    b = written(tmp_path / "b.json", B, row("paper", 4))
    (tmp_path / "d.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "e.json").write_text("[]")
    (tmp_path / "c.json").write_text('{"rows": []}')
    for second, says in (
        (b, "have no row in common"),
        (str(tmp_path / "none.json"), "cannot be read: No such file"),
        (str(tmp_path / "d.json"), "is no text; name a file that --json wrote"),
        (str(tmp_path / "e.json"), "Input should be an object at its top level"),
        (str(tmp_path / "c.json"), "is no file of figures: Field required at environment"),
    ):
        result = CliRunner().invoke(app, ["bench", "--compare", a, second])
        assert result.exit_code == 2
        assert says in result.output
        assert result.output.count("\n") == 1


@pytest.mark.parametrize("given", [["one.json"], []])
def test_compare_takes_two_files(given: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", "--compare", *given]).exit_code == 2
