import math

import numpy as np
import pytest
from PIL import Image

from hybridiff_compile.bench import charts, plots, sheet
from hybridiff_compile.ir import Phase


def trace(model, tau1=None, steps=20, k=4):
    pipelined = range(tau1, tau1 + k) if tau1 is not None else range(0)
    phases = [Phase.PIPELINED if i in pipelined else Phase.SERIAL for i in range(steps)]
    return plots.Trace(
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
    path = tmp_path / "folder" / "steps.png"
    plots.step_by_step(path, [trace("tiny-sdxl", tau1=5), trace("tiny-sd3", tau1=16)])
    assert set(charts.PHASE_COLOURS.values()) <= colours(path)
    width, height = Image.open(path).size
    assert width > height > 800


def test_a_run_that_never_pipelined_is_plotted_too(tmp_path):
    plots.step_by_step(tmp_path / "steps.png", [trace("sdxl-small")])
    assert (tmp_path / "steps.png").stat().st_size > 10_000


@pytest.mark.parametrize("models", [1, 2])
def test_the_sheet_has_a_cell_for_every_picture(tmp_path, models):
    path = tmp_path / "pictures.png"
    shades = [np.full((8, 8, 3), level) for level in (0.2, 0.4)]
    modes = {label: [sheet.Shown(s, "40 dB, right") for s in shades] for label in ("one", "two")}
    sheet.pictures_side_by_side(
        path, ["first", "second"], {f"model {i}": modes for i in range(models)}, "A footnote."
    )
    pixels = np.asarray(Image.open(path).convert("RGB"))
    cells = [(pixels == round(255 * level)).all(axis=2).sum() for level in (0.2, 0.4)]
    # Every cell is 1.5 inches at 160 dots an inch, less its frame.
    assert cells == pytest.approx([2 * models * 240**2] * 2, rel=0.04)
