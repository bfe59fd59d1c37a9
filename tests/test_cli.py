from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from hybridiff_compile.cli import app

runner = CliRunner()


def test_help_lists_the_commands():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"hybridiff-compile {version('hybridiff-compile')}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "tiny-dalle"], "unknown model tiny-dalle; choose from tiny-sdxl, tiny-sd3"),
        (["--steps", "1"], "steps=1 must be at least 3"),
        (["--prompts", "0"], "prompts=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says):
    result = runner.invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert says in result.output
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output


def test_an_option_that_does_not_exist_is_exit_code_2():
    assert runner.invoke(app, ["demo", "--fast"]).exit_code == 2
