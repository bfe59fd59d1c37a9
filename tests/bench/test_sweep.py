import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hybridiff_compile.bench import cost, figures, models, sweep
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.cli import app
from hybridiff_compile.config import TOLERANCES
from hybridiff_compile.errors import ConfigError
from tests import pipelines

runner = CliRunner()


def invoke(*arguments: object) -> Any:
    return runner.invoke(app, ["sweep", *(str(a) for a in arguments)])


def refused(*arguments: object) -> str:
    """What a sweep that was refused says, in one line."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.output.count("\n") == 1
    return result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "tiny-dalle"], "unknown model tiny-dalle"),
        (["--model", "tiny-sd3", "--pipe", "x"], "--model NAME or --pipe FOLDER"),
        (["--mode", "fast"], "unknown mode fast; choose from exact, paper, guided"),
        (["--mode", "paper", "--m", 2], "none of the modes paper takes m"),
        (["--tolerance", "much"], "tolerance='much' is neither a number"),
        (["--scheduler", "plms"], "unknown scheduler plms; choose from ddim"),
        (["--steps", 2], "steps=2 must be at least 3"),
        (["--prompts", 0], "prompts=0 must be at least 1"),
        (["--prompts", 201], "prompts=201 must be at most 200"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(monkeypatch, arguments, says):
    monkeypatch.setattr(models, "load", None)  # refused before anything is loaded
    assert says in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scheduler", "ddim"], "tiny-sd3 predicts for flow matching"),
        (["--mode", "guided", "--k", 40, "--steps", 20], "after the run's 20 steps"),
        (["--mode", "forecast", "--m", 1], "m=1 extrapolates nothing"),
    ],
)
def test_what_does_not_fit_a_run_is_refused_before_any_is_measured(
    monkeypatch, tmp_path, arguments, says
):
    monkeypatch.setattr(sweep, "measure", None)
    assert says in refused("--model", "tiny-sd3", "--out", tmp_path, *arguments)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    assert "there is no model_index.json" in refused("--pipe", tmp_path, "--out", tmp_path)


def test_a_plain_sweep_is_of_both_tiny_models_at_50_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "run", lambda wanted, console: asked.append(wanted))
    assert invoke().exit_code == 0
    assert asked == [sweep.Sweep()]
    assert (asked[0].models, asked[0].steps, asked[0].prompts) == (
        ("tiny-sdxl", "tiny-sd3"),
        (50,),
        8,
    )


def test_a_users_pipeline_goes_by_its_folders_name_and_is_not_judged(monkeypatch, tmp_path):
    pipe = pipelines.load("tiny-sd3")
    monkeypatch.setattr(models, "load_folder", lambda folder: pipe)
    asked = sweep.Sweep(models=(), pipe=tmp_path / "tiny-sd3", steps=(4, 5))
    found = list(sweep.settings(asked))
    assert [(s.what["model"], s.what["steps"], s.call, s.is_judged) for s in found] == [
        ("tiny-sd3", 4, {"num_inference_steps": 4}, False),
        ("tiny-sd3", 5, {"num_inference_steps": 5}, False),
    ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small sweep through the command: two samplers, one mode of each kind."""
    out, pipe = tmp_path_factory.mktemp("sweep"), pipelines.shallow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda name: pipe)
        modes = [a for mode in ("guided", "forecast", "hybrid") for a in ("--mode", mode)]
        samplers = ["--scheduler", "flow-euler", "--scheduler", "dpm++2m"]
        file = out / "f.json"
        small = ["--steps", 8, "--prompts", 2, "--model", "tiny-sd3", "--tau1", 3, "--k", 4]
        result = invoke(*modes, *samplers, *small, "--m", 2, "--out", out, "--json", file)
    assert result.exit_code == 0, result.output
    return out, figures.read(out / "f.json").rows, result.output


def test_the_rows_of_a_sweep(swept):
    _, rows, _ = swept
    assert [row.mode for row in rows] == 2 * [
        "one-device-apart",
        "guided",
        "forecast",
        "hybrid",
    ]
    assert [row.scheduler for row in rows[::4]] == [
        "FlowMatchEulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
    ]
    reference, guided, forecast, hybrid = rows[:4]
    assert {(r.steps, r.runs, r.prompts, r.model) for r in rows} == {(8, 2, 2, "tiny-sd3")}
    assert (reference.psnr_db, reference.forwards_per_rank, reference.ranks) == (None, None, 1)
    assert reference.prompts_right is not None
    assert (guided.tau1, guided.k, guided.m, guided.ranks) == (3, 4, 2, 2)
    # Of its four steps the pipeline moves in two, at half the cost.
    assert guided.forwards_per_rank == 4 + 2 * 0.5
    # Of the same four, two are computed.
    assert (forecast.forwards_per_rank, forecast.ranks) == (6.0, 1)
    assert (hybrid.tau1, hybrid.m, hybrid.tolerance) == (None, 2, TOLERANCES["balanced"][0])
    assert all(5 < r.psnr_db <= 100 and r.max_abs_error > 0 for r in (guided, forecast))


def test_a_sweep_writes_a_table_and_a_plot(swept):
    out, rows, output = swept
    assert {p.name for p in out.iterdir()} == {"f.json", "table.md", "sweep.png"}
    lines = (out / "table.md").read_text().splitlines()
    # A table for each of the samplers, which its title names.
    assert len([line for line in lines if line.startswith("|")]) == 2 * 2 + len(rows)
    titles = [line for line in lines if line.startswith("tiny-sd3, ")]
    assert [title.split(", ")[1] for title in titles] == [row.scheduler for row in rows[::4]]
    said = output.splitlines()
    assert said[0].startswith("about ")
    # Each row as it is known, and in its table at the end.
    for start in ("tiny-sd3, one-device-apart: ", "one-device-apart "):
        assert len([line for line in said if line.startswith(start)]) == 2
    assert json.loads((out / "f.json").read_text())["rows"][0]["command"] == "sweep"


def row(mode: Any, cost: float, db: float | None, model: str = "a", **found: Any) -> Row:
    what = {"command": "sweep", "model": model, "steps": 50, "runs": 8}
    return Row(mode=mode, forwards_per_rank=cost, psnr_db=db, **what, **found)


def test_speed_by_cost_is_against_one_forward_a_step():
    assert cost.by_cost(row("guided", 30.0, 50.0)) == pytest.approx(50 / 30)
    assert cost.by_cost(Row(command="sweep", model="a", mode="one-device-apart")) is None


def test_the_plot_has_a_panel_for_each_setting_and_a_colour_for_each_mode(tmp_path):
    rows = [
        row(mode, cost, db, model, tolerance=0.02)
        for model in ("a", "b", "c")
        for mode, cost, db in (
            ("paper", 47.5, 38.0),
            ("guided", 30.0, 45.0),
            ("forecast", 20.0, 46.0),
            ("hybrid", 25.0, 50.0),
        )
    ]
    sweep.draw(tmp_path / "one.png", rows[:4])
    sweep.draw(tmp_path / "three.png", [*rows, row("one-device-apart", 100.0, None)])
    one, three = (Image.open(tmp_path / f"{n}.png").convert("RGB") for n in ("one", "three"))
    assert three.size == (one.size[0], 3 * one.size[1])
    seen = {
        f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(np.asarray(one).reshape(-1, 3), axis=0)
    }
    assert {sweep.COLOURS[r.mode] for r in rows} <= seen


def test_a_plot_without_points_is_refused_by_nobody(tmp_path):
    sweep.draw(tmp_path / "empty.png", [])
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_a_sweep_names_models_or_a_pipeline():
    with pytest.raises(ConfigError, match="--model NAME or --pipe FOLDER"):
        sweep.Sweep(models=())
