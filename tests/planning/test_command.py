"""`hybridiff plan` as a user calls it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridiff_compile.bench import command as commands
from hybridiff_compile.bench import figures
from hybridiff_compile.cli import app

runner = CliRunner()


def test_plans_of_several_models_are_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "plan.json"
    asked = ("--model", "tiny-sd3", "--model", "tiny-sdxl", "--steps", "12", "--link", "nvlink")
    result = runner.invoke(app, ["plan", *asked, "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("about 30 s on this machine: 2 models traced and cut, nothing")
    assert "tiny-sd3, 64 x 64, 12 steps, float32, on two rtx3090 over nvlink" in result.output
    assert "optimize(pipe, gpus=2, mode=" in result.output
    rows = figures.read(file).rows
    assert {row.model for row in rows} == {"tiny-sd3", "tiny-sdxl"}
    assert {row.steps for row in rows} == {12}


def test_what_plan_is_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(commands.Telling, "__call__", lambda tell, what: told.append(what))
    result = runner.invoke(app, ["plan", "--model", "tiny-sd3", "--steps", "12"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("about 20 s on this machine: 1 model traced")
    assert told == ["tracing tiny-sd3", "cutting tiny-sd3 and predicting"]


def test_a_config_file_is_planned_for(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
    )
    unet.save_config(tmp_path)
    file = tmp_path / "config.json"
    assert json.loads(file.read_text())["_class_name"] == "UNet2DConditionModel"
    result = runner.invoke(app, ["plan", "--config", str(file), "--height", "128"])
    assert result.exit_code == 0, result.output
    assert "config, 256 x 128, 50 steps" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "sd4"], "model='sd4' is unknown; choose one of sdxl, sd15,"),
        (["--model", "sdxl", "--config", "a.json"], "give one kind of --model NAME"),
        (["--config", "none.json"], "none.json cannot be read as a config"),
        (["--pipe", "nowhere"], "nowhere"),
        (["--device", "tpu"], "device='tpu' is unknown"),
        (["--model", "sdxl", "--height", "1001"], "height=1001 is no positive multiple of 8"),
        (["--model", "sdxl", "--json", "/dev/null/plan.json"], "cannot write to /dev/null"),
        (["--model", "sdxl", "--json", "/proc/plan.json"], "cannot write to /proc/plan.json"),
        (["--model", "sdxl", "--link", "here"], "ask for device='here' too"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    refused(["plan", *arguments], says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of --model NAME and --pipe FOLDER"),
        (["--link", "usb"], "link='usb' is unknown"),
        (["--steps", "8"], "steps=8 must be at least 9"),
        (["--runs", "0"], "runs=0 must be at least 1"),
        (["--images", "0"], "images=0 must be at least 1"),
        (["--height", "63"], "StableDiffusion3Pipeline refuses this call"),
    ],
)
def test_bad_input_of_a_profile_is_told_before_the_work(arguments: list[str], says: str) -> None:
    model = ["--model", "tiny-sd3"] if arguments else []
    refused(["profile", *model, *arguments], says)


def refused(arguments: list[str], says: str) -> None:
    """In one line, with exit code 2."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert result.output.count("\n") == 1
