import io
import json
import math
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from hybridiff_compile.bench import figures, tables
from hybridiff_compile.bench.demo import LAYOUT
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.quality import max_abs_error, psnr_db

WHERE = figures.environment(threads_per_rank=1)
ROWS = (
    Row(
        command="demo",
        model="tiny-sdxl",
        mode="one-device",
        steps=50,
        seconds=1.25,
        speedup=1.0,
        step_ms_by_phase={"serial": 24.0},
        psnr_db=98.76,
        max_abs_error=2.5e-6,
    ),
    Row(
        command="demo",
        model="tiny-sdxl",
        mode="one-device-apart",
        steps=50,
        step_ms_by_phase={"serial": 30.0},
    ),
    Row(
        command="demo",
        model="tiny-sdxl",
        mode="paper",
        steps=50,
        seconds=0.5,
        speedup=2.5,
        step_ms_by_phase={"serial": 16.0, "pipelined": 8.25},
        steps_by_phase={"serial": 45, "pipelined": 5},
        max_abs_error=0.0,
        bytes_sent=1_500_000,
        prompts_right=0.75,
        prompts=24,
    ),
)


def test_a_file_of_figures_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "folder" / "figures.json"
    figures.write(path, ROWS, WHERE)
    assert figures.read(path) == figures.Figures(environment=WHERE, rows=ROWS)
    assert [p.name for p in path.parent.iterdir()] == ["figures.json"]


def test_the_file_has_the_shape_that_all_commands_share(tmp_path):
    path = tmp_path / "figures.json"
    figures.write(path, ROWS, WHERE)
    raw = json.loads(path.read_text())
    assert set(raw) == {"schema", "environment", "rows"}
    assert raw["schema"] == 1
    # What was not measured is left out, not null.
    assert raw["rows"][1] == {
        "command": "demo",
        "model": "tiny-sdxl",
        "mode": "one-device-apart",
        "steps": 50,
        "step_ms_by_phase": {"serial": 30.0},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"mode": "fastest"},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"prompts_right": 24},
        {"step_ms_by_phase": {"warm": 1.0}},
    ],
)
def test_an_unknown_key_or_an_impossible_value_is_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        Row.model_validate({"command": "demo", "model": "m", "mode": "exact"} | change)


def test_a_file_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "figures.json"
    figures.write(path, ROWS, WHERE)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ConfigError, match=r"is no file of figures: .* at schema"):
        figures.read(path)


def test_the_environment_names_software_and_processor_only():
    assert set(WHERE.model_dump()) == {
        "python",
        "torch",
        "diffusers",
        "os",
        "cpu",
        "cpu_count",
        "threads_per_rank",
    }
    assert WHERE.torch == torch.__version__
    assert "/" not in WHERE.os


def test_psnr_of_known_errors():
    black = np.zeros((1, 4, 4, 3))
    assert psnr_db(black + 0.1, black) == pytest.approx(20.0)
    assert psnr_db(black + 0.01, black) == pytest.approx(40.0)
    assert psnr_db(black, black) == 100.0
    # Closer than this cannot beat an identical picture.
    assert psnr_db(black + 1e-8, black) == 100.0


def test_psnr_is_the_mean_of_each_pictures_own():
    reference = np.zeros((2, 4, 4, 3))
    pictures = reference + np.array([0.1, 0.01])[:, None, None, None]
    assert psnr_db(pictures, reference) == pytest.approx(30.0)


def test_psnr_refuses_pictures_that_do_not_pair_up():
    with pytest.raises(ValueError, match="differ in shape"):
        psnr_db(np.zeros((1, 4, 4, 3)), np.zeros((2, 4, 4, 3)))


def test_max_abs_error_is_the_largest_of_all_latents():
    ones = [torch.ones(2, 2), torch.ones(2, 2)]
    assert max_abs_error(ones, ones) == 0.0
    assert max_abs_error([torch.ones(2, 2), torch.full((2, 2), -2.0)], ones) == 3.0


def test_the_terminal_table_shows_every_figure_and_a_dash_for_the_others():
    (table,) = tables.tables(ROWS, LAYOUT, "quick: fewer")
    file = io.StringIO()
    Console(width=120, file=file).print(table)
    lines = file.getvalue().splitlines()

    def cells(mode):
        (line,) = [line for line in lines if line.split()[:1] == [mode]]
        return re.split(r"\s{2,}", line.strip())

    assert cells("paper") == [
        "paper",
        "0.50",
        "2.50",
        "16.0 / 8.2 / -",
        "45 / 5 / -",
        "-",
        "0",
        "1.50",
        "18 of 24",
    ]
    assert cells("one-device")[-4:] == ["98.8", "2.5e-06", "-", "-"]
    assert cells("one-device-apart") == ["one-device-apart", *"--", "30.0 / - / -", *"-----"]
    assert any("T(2B)/T(B) = 1.60" in line for line in lines)
    assert any(line.startswith("quick: fewer") for line in lines)


def test_the_markdown_table_has_a_title_a_line_for_every_row_and_what_was_left_out():
    (table,) = tables.tables(ROWS, LAYOUT, "quick: fewer")
    title, grid, caption = tables.markdown(table).split("\n\n")
    assert title == "tiny-sdxl, 50 steps"
    lines = grid.splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| mode | picture s | speed-up | step ms serial / pip. / forecast |")
    assert lines[1].startswith("| --- | ---: |")
    assert lines[-1].endswith("| 1.50 | 18 of 24 |")
    assert caption.startswith("quick: fewer\nT(2B)/T(B) = 1.60: ")


def test_models_have_a_table_each():
    other = Row(command="demo", model="tiny-sd3", mode="exact")
    titles = [str(table.title) for table in tables.tables([*ROWS, other], LAYOUT)]
    assert titles == ["tiny-sdxl, 50 steps", "tiny-sd3"]
