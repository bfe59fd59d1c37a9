from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from hybridiff_compile.bench import command
from hybridiff_compile.bench import demo as demonstration
from hybridiff_compile.cli import app, options
from hybridiff_compile.errors import HybridiffError

runner = CliRunner()


def test_no_help_text_holds_what_rich_takes_for_markup():
    commands: Any = typer.main.get_command(app)
    texts = [p.help for command in commands.commands.values() for p in command.params if p.help]
    assert len(texts) > 50
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


def test_help_lists_the_commands():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("demo", "sweep", "plan", "bench", "compile", "export", "load-check"):
        assert f" {name} " in result.output


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"hybridiff-compile {version('hybridiff-compile')}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "tiny-dalle"], "unknown model tiny-dalle; choose from tiny-sdxl, tiny-sd3"),
        (["--steps", "1"], "steps=1 must be at least 3"),
        (["--steps", "-5"], "steps=-5 must be at least 3"),
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


def test_steps_that_are_no_number_are_exit_code_2():
    result = runner.invoke(app, ["demo", "--steps", "many"])
    assert result.exit_code == 2
    assert "Invalid value for '--steps'" in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def stopped(monkeypatch):
    """A demo that stops before its first picture; the folders that it had made by then."""
    seen: list[Path] = []

    def stop(*_: object) -> None:
        raise HybridiffError("stopped before the first picture")

    def look(*_: object) -> None:
        seen.extend(where_they_go())

    def where_they_go() -> list[Path]:
        return [path for path in folders if path.is_dir()]

    folders: list[Path] = []
    monkeypatch.setattr(demonstration.estimate, "step_seconds", lambda pipe, call: 0.02)
    monkeypatch.setattr(command, "announce", look)
    monkeypatch.setattr(demonstration, "_measure", stop)
    return folders, seen


def test_the_demos_folders_are_made_before_any_work_and_go_with_it(stopped, tmp_path):
    folders, seen = stopped
    out, figures = tmp_path / "new" / "out", tmp_path / "other" / "figures.json"
    folders += [out, figures.parent]
    result = runner.invoke(app, ["demo", "--out", str(out), "--json", str(figures)])
    assert (result.exit_code, "stopped before" in result.output) == (2, True)
    assert seen == folders
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inner", ["", "below"])
def test_an_output_folder_that_is_a_file_is_refused_before_any_work(stopped, tmp_path, inner):
    out = tmp_path / "file"
    out.write_text("a user's")
    result = runner.invoke(app, ["demo", "--out", str(out / inner)])
    assert result.exit_code == 2
    assert f"cannot write to {out / inner}" in result.output
    assert result.output.count("\n") == 1
    assert out.read_text() == "a user's"


def refused(*arguments: str) -> str:
    """What a command that was refused says, in one line."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.output.count("\n") == 1
    return result.output


def test_a_bench_that_could_not_run_is_refused():
    assert "steps=3 must be at least 6" in refused("bench", "--compile", "--steps", "3")
    for other in (["--compare", "a", "b"], ["--backend", "eager"]):
        assert f"--compile and {other[0]}: give one" in refused("bench", "--compile", *other)
    assert "unknown model or folder x" in refused("bench", "--compile", "--model", "x")


def test_bench_measures_the_models_that_it_is_given_once_each(monkeypatch, tmp_path):
    from hybridiff_compile.bench import bench as benchmark

    asked = []
    monkeypatch.setattr(benchmark, "run", lambda bench, console: asked.append(bench))
    files = ["--out", str(tmp_path), "--json", str(tmp_path / "f.json")]
    names = ["--model", "tiny-sd3", "--model", "tiny-sd3"]
    assert runner.invoke(app, ["bench", "--compile", *names, *files]).exit_code == 0
    assert runner.invoke(app, ["bench", "--compile", "--runs", "7"]).exit_code == 0
    assert (asked[0].models, asked[0].out, asked[0].json) == (
        ("tiny-sd3",),
        tmp_path,
        tmp_path / "f.json",
    )
    assert (asked[1].models, asked[1].runs) == (("tiny-sdxl", "tiny-sd3", "sdxl-small"), 7)


QUICK = "quick: pictures a mode 3 in place of 24"


def asked_for(monkeypatch, module: Any, *arguments: str) -> Any:
    """What a command would run."""
    asked = []
    monkeypatch.setattr(module, "run", lambda wanted, console: asked.append(wanted))
    assert runner.invoke(app, arguments).exit_code == 0
    return asked[0]


def test_a_quick_demo_makes_fewer_pictures_and_says_so(monkeypatch):
    def demo(*options: str) -> Any:
        return asked_for(monkeypatch, demonstration, "demo", *options)

    full = demo()
    assert (full.prompts, full.steps, full.thinned) == (24, 50, "")
    quick = demo("--quick")
    assert (quick.models, quick.prompts, quick.steps, quick.thinned) == (full.models, 3, 50, QUICK)
    # What was asked for counts.
    assert demo("--quick", "--prompts", "9").thinned == "quick: nothing left out"
    assert demo("--quick", "--prompts", "9").prompts == 9
    said = runner.invoke(app, ["demo", "--help"]).output.replace("│", " ")
    words = f"[default: ({full.prompts}; with --quick, {quick.prompts})]"
    assert words in " ".join(said.split())
    assert demonstration.Demo().prompts == full.prompts == options.PROMPTS
    small = demo("--quick", "--model", "sdxl-small")
    assert (small.runs, small.thinned) == (
        1,
        "quick: pictures a mode of sdxl-small 1 in place of 3",
    )


def test_a_quick_bench_compiles_nothing_and_a_quick_sweep_is_of_one_model(monkeypatch):
    from hybridiff_compile.bench import bench as benchmark
    from hybridiff_compile.bench import sweep

    bench = asked_for(monkeypatch, benchmark, "bench", "--quick")
    assert (bench.models, bench.runs, bench.steps) == (("tiny-sdxl", "tiny-sd3"), 1, 16)
    assert {backend for _, backend, _ in bench.variants()} == {"eager"}
    assert bench.thinned == (
        "quick: no sdxl-small, pictures a row 1 in place of 3, ranks eager in place of inductor, "
        "steps 16 in place of 50"
    )
    full = asked_for(monkeypatch, benchmark, "bench", "--backend", "eager")
    assert len(full.variants()) == len(bench.variants()) + 1  # one device compiled too
    swept = asked_for(monkeypatch, sweep, "sweep", "--quick")
    assert (swept.models, swept.prompts) == (("tiny-sdxl",), 1)
    assert swept.thinned == "quick: pictures a point 1 in place of 8, no tiny-sd3"


def test_a_quick_bench_of_compiling_has_the_rows_that_users_meet(monkeypatch):
    from hybridiff_compile.bench import bench as benchmark

    asked = asked_for(monkeypatch, benchmark, "bench", "--compile", "--quick")
    assert (asked.models, asked.runs, asked.steps) == (("tiny-sd3",), 1, 6)
    assert asked.variants() == benchmark.QUICK
    assert "no tiny-sdxl and no sdxl-small" in asked.thinned
    assert "3 rows in place of 10" in asked.thinned


def test_a_quick_profile_is_of_one_picture_of_each_kind(monkeypatch):
    from hybridiff_compile.planning import command

    asked = []
    monkeypatch.setattr(command, "profile_pipeline", lambda *given: asked.append(given))
    result = runner.invoke(app, ["profile", "--model", "tiny-sd3", "--quick"])
    assert result.exit_code == 0, result.output
    model, _, settings, *_, thinned = asked[0]
    assert (model, settings["num_inference_steps"], settings["rounds"]) == ("tiny-sd3", 9, 1)
    assert thinned == "quick: steps 9 in place of 18, pictures of each kind 1 in place of 3"


@pytest.mark.parametrize("command", [["compile"], ["export", "--out", "package"]])
def test_a_pipeline_to_prepare_is_named_once(command, tmp_path):
    assert "give one of --model NAME and --pipe FOLDER" in refused(*command)
    both = [*command, "--model", "tiny-sd3", "--pipe", str(tmp_path)]
    assert "give one of --model NAME and --pipe FOLDER" in refused(*both)
    assert "unknown model x" in refused(*command, "--model", "x")
    assert "there is no model_index.json" in refused(*command, "--pipe", str(tmp_path))


def test_what_compiles_nothing_is_refused():
    said = refused("compile", "--model", "tiny-sd3", "--backend", "eager")
    assert "backend='eager' compiles nothing ahead of a run; choose one of inductor" in said


def test_export_refuses_a_folder_that_exists_before_any_work(tmp_path):
    said = refused("export", "--model", "tiny-sd3", "--out", str(tmp_path))
    assert f"{tmp_path} exists already" in said


def test_load_check_refuses_what_is_no_package(tmp_path):
    assert f"{tmp_path} is no package" in refused("load-check", str(tmp_path))
