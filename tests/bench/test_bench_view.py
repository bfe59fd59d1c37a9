import numpy as np
import pytest
from PIL import Image

from hybridiff_compile.bench import bench_view, figures, tables
from hybridiff_compile.bench.bench_view import label, layout
from hybridiff_compile.bench.figures import Row

WHERE = figures.environment(threads_per_rank=1)


def row(model, mode, backend, scope=None, **found):
    return Row(command="bench", model=model, mode=mode, backend=backend, scope=scope, **found)


ROWS = (
    row("a", "one-device", "eager", step_ms_by_phase={"serial": 30.0}),
    row("a", "one-device", "inductor", compile_seconds_cold=80.0, compile_seconds_warm=12.0),
    row(
        "a",
        "paper",
        "inductor",
        "regional",
        compile_seconds_cold=8.0,
        compile_seconds_warm=2.0,
        first_picture_seconds=11.0,
        step_ms_by_phase={"serial": 20.0, "pipelined": 10.0},
        peak_rss_mb=(600.4, 400.0),
        graphs=(5, 4),
        recompiles=0,
    ),
    row("a", "exact", "aot", "stage", load_seconds=1.2),
    row("b", "exact", "inductor", "stage", compile_seconds_cold=8.0),
)


def cells(index):
    columns = layout(True)(ROWS).columns
    return {f"{head} {unit}".strip(): cell(ROWS[index]) for head, unit, cell in columns}


def test_a_row_shows_its_figures_and_how_they_compare():
    shown = cells(2)
    assert shown["row"] == "paper, regional"
    assert (shown["cold s"], shown["cold / one dev."]) == ("8.0", "0.10")
    assert (shown["warm s"], shown["warm / cold"]) == ("2.0", "0.25")
    assert shown[f"step ms {tables.PHASES}"] == "20.0 / 10.0 / -"
    assert (shown["peak MB by rank"], shown["graphs by rank"]) == ("600 / 400", "5 / 4")
    assert (shown["recompiles"], shown["first picture s"]) == ("0", "11.0")


def test_a_load_is_compared_with_the_cold_compile_of_one_device():
    assert (cells(3)["load s"], cells(3)["load / one dev."]) == ("1.20", "0.01")


def test_what_was_not_measured_is_a_dash():
    shown = cells(0)
    assert {shown[name] for name in ("cold s", "cold / one dev.", "warm / cold", "load s")} == {"-"}
    # Another model's one device is no measure.
    assert cells(4)["cold / one dev."] == "-"


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (("one-device", "eager", None), "one device, eager"),
        (("exact", "inductor", "whole"), "exact, whole"),
        (("paper", "aot", "stage"), "paper, package"),
        (("one-device", "inductor"), "one device, compiled"),
        (("one-device-apart", "eager"), "one device, apart"),
        (("exact", "inductor"), "exact, compiled"),
        (("hybrid", "eager"), "hybrid, eager"),
    ],
)
def test_labels(of, words):
    assert label(*of) == words


def test_the_terminal_table_has_the_columns_that_it_is_given():
    one, two = tables.tables(ROWS, layout(True)(ROWS))
    assert [str(column.header) for column in one.columns][:2] == ["row\n", "cold\ns"]
    assert one.columns[0].justify == "left"
    assert one.columns[1].justify == "right"
    assert (one.row_count, two.row_count) == (4, 1)


def test_the_chart_has_bars_of_every_kind(tmp_path):
    path = tmp_path / "chart.png"
    bench_view.draw(path, ROWS, WHERE, compiles=True)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for _, colour in (*bench_view.READY.values(), *bench_view.STEP.values()):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        # More than the legend's patch of it, which is of 600.
        assert (pixels == rgb).all(axis=1).sum() > 1500, colour


def test_a_chart_without_any_seconds_is_drawn_too(tmp_path):
    bench_view.draw(tmp_path / "chart.png", ROWS[:1], WHERE, compiles=True)
    assert (tmp_path / "chart.png").stat().st_size > 10_000
