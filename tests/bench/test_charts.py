import math

import numpy as np
import pytest
from PIL import Image

from hybridiff_compile.bench import charts
from hybridiff_compile.ir import Phase


def trace(model, tau1=None, steps=20, k=4):
    pipelined = range(tau1, tau1 + k) if tau1 is not None else range(0)
    phases = [Phase.PIPELINED if i in pipelined else Phase.SERIAL for i in range(steps)]
    return charts.Trace(
        model=model,
        discrepancies=[[1 / (1 + i + j) for i in range(steps)] for j in range(3)],
        phases=phases,
        step_ms=[math.nan, *(8.0 if p is Phase.PIPELINED else 16.0 for p in phases[1:])],
        tau1=tau1,
        tau2=None if tau1 is None else tau1 + k,
        baselines={"one device": 24.0, "exact": 16.0},
    )


def colours(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0)}


def test_the_step_plot_colours_both_phases(tmp_path):
    path = tmp_path / "steps.png"
    charts.step_by_step(path, [trace("tiny-sdxl", tau1=5), trace("tiny-sd3", tau1=16)])
    assert set(charts.PHASE_COLOURS.values()) <= colours(path)
    width, height = Image.open(path).size
    assert width > height > 800


def test_a_run_that_never_pipelined_is_plotted_too(tmp_path):
    charts.step_by_step(tmp_path / "steps.png", [trace("sdxl-small")])
    assert (tmp_path / "steps.png").stat().st_size > 10_000


@pytest.mark.parametrize("models", [1, 2])
def test_the_sheet_has_a_cell_for_every_picture(tmp_path, models):
    path = tmp_path / "pictures.png"
    shades = [np.full((8, 8, 3), level) for level in (0.2, 0.4)]
    modes = {label: [charts.Shown(s, "40 dB, right") for s in shades] for label in ("one", "two")}
    charts.pictures_side_by_side(
        path, ["first", "second"], {f"model {i}": modes for i in range(models)}, "A footnote."
    )
    pixels = np.asarray(Image.open(path).convert("RGB"))
    cells = [(pixels == round(255 * level)).all(axis=2).sum() for level in (0.2, 0.4)]
    # A cell is a square of about 1.5 inches at 160 dots an inch, and all are of one size.
    assert cells[0] == pytest.approx(cells[1], rel=0.01)
    assert 2 * models * 200**2 < cells[0] < 2 * models * 260**2


def test_the_points_of_a_scatter_are_in_their_colours_and_the_best_ones_on_a_line(tmp_path):
    red, blue = "#aa0000", "#0000aa"
    dots = [
        charts.Dot(1, 50, red, "a"),
        charts.Dot(2, 40, blue, "b"),
        charts.Dot(1.5, 30, red, "c"),
    ]
    charts.scatter(tmp_path / "one.png", {"model": dots}, "speed", "dB")
    charts.scatter(tmp_path / "two.png", {"model": dots, "other": dots[:1]}, "speed", "dB")
    charts.scatter(tmp_path / "none.png", {}, "speed", "dB")
    assert {red, blue, charts.QUIET} <= colours(tmp_path / "one.png")
    one, two, none = (Image.open(tmp_path / f"{n}.png").size for n in ("one", "two", "none"))
    assert two == (one[0], 2 * one[1])
    assert none == one


def test_points_in_one_place_show_the_numbers_of_all(tmp_path, monkeypatch):
    said = []
    own = charts.Axes.text
    monkeypatch.setattr(charts.Axes, "text", lambda *a, **k: said.append(a[3]) or own(*a, **k))
    dots = [charts.Dot(1, 50, "k", "a"), charts.Dot(2, 40, "k", "b"), charts.Dot(1, 50, "k", "c")]
    charts.scatter(tmp_path / "one.png", {"model": dots}, "speed", "dB")
    assert said == ["2", "1 3"]


def test_words_at_the_end_of_a_bar_are_inside_of_the_picture(tmp_path):
    words = "24.91 s,  1.00 x,  100 dB"
    lines = [[charts.Bar(1.0, "#3b6fb6", words)], [charts.Bar(4.0, "#3b6fb6", words, late=5.0)]]
    panel = charts.Panel("model", ["one", "two"], [charts.Side("seconds", lines)])
    charts.bars(tmp_path / "bars.png", [panel], {"a kind": "#3b6fb6"}, note="a machine")
    pixels = np.asarray(Image.open(tmp_path / "bars.png").convert("L"))
    assert (pixels[:, -10:] == 255).all()
    assert (pixels[:, -400:] < 100).any()


@pytest.mark.parametrize(
    ("values", "start"), [([0.36, 90.0], 0.1), ([1.0, 2.0], 0.1), ([3.5], 1.0), ([], 0.1)]
)
def test_the_log_axis_starts_at_a_power_of_ten_below_every_bar(values, start):
    low, high = charts.decades(values)
    assert low == pytest.approx(start)
    assert all(1.5 * low <= value <= high / 3 for value in values)
