"""What `hybridiff serve` refuses before it loads anything, and what it takes from a pipeline."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hybridiff_compile.bench.wanted import Wanted
from hybridiff_compile.cli import app
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.serving import serve
from hybridiff_compile.serving.serve import Serving, served_of

TINY = Wanted("tiny-sd3", None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "give one of --model NAME and --pipe FOLDER"),
        ("--model tiny-sd4", "unknown model tiny-sd4"),
        ("--pipe /nowhere", "/nowhere holds no pipeline"),
        ("--model tiny-sd3 --size 64", "--size 64 is no size; write it as 1024x1024"),
        ("--model tiny-sd3 --size 64x0", "--size 64x0 is no size"),
        ("--model tiny-sd3 --dtype int8", "dtype='int8' is unknown"),
        ("--model tiny-sd3 --device gpu", "--device gpu cannot be used here"),
        ("--model tiny-sd3 --queue -1", "queue=-1 must be at least 0"),
        ("--model tiny-sd3 --port 99999", "cannot listen on 127.0.0.1:99999"),
        ("--model tiny-sd3 --host nowhere.invalid", "cannot listen on nowhere.invalid"),
        ("--model tiny-sd3 --mode fast", "mode='fast'"),
    ],
)
def test_what_cannot_be_served_is_said(options: str, said: str) -> None:
    asked = ["serve", *options.split()]
    if "--port" not in options:
        asked += ["--port", "0"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_a_port_in_use_is_said_before_the_pipeline_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Wanted, "load", lambda _: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*choose another port"):
            serve.run(Serving(TINY, port=port), Console())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("hybridiff_compile.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(app, ["serve", "--model", "tiny-sd3"])
    assert done.exit_code == 2
    assert "pip install 'hybridiff-compile[serve]'" in " ".join(done.stderr.split())


class Pipe(SimpleNamespace):
    """As much of a pipeline as is looked at."""

    def __call__(self, prompt: Any, width: Any, height: Any) -> Any:
        raise NotImplementedError


def test_sizes_are_those_named_or_the_model_s_or_the_pipeline_s() -> None:
    pipe, other = Pipe(default_sample_size=128, vae_scale_factor=8), Wanted(None, Path("mine"))
    assert served_of(Serving(TINY), pipe).sizes == [(64, 64)]
    assert served_of(Serving(TINY, ("32x64", "64x64")), pipe).sizes == [(32, 64), (64, 64)]
    assert served_of(Serving(other), pipe).sizes == [(1024, 1024)]
    assert served_of(Serving(other), pipe).takes == {"self", "prompt", "width", "height"}
    with pytest.raises(ConfigError, match=r"Pipe does not say how large.*--size"):
        served_of(Serving(other), Pipe())


def test_steps_of_the_command_are_those_of_every_call() -> None:
    served = served_of(Serving(Wanted("tiny-sd3", None, steps=7)), Pipe())
    assert served.defaults["num_inference_steps"] == 7
    assert not {"width", "height", "num_images_per_prompt"} & served.defaults.keys()


def test_a_size_that_the_pipeline_refuses_is_one_clear_error() -> None:
    class Refuses:
        def compile(self, **call: Any) -> None:
            raise ValueError("height and width have to be divisible by 8")

    model: Any = Refuses()
    with pytest.raises(ConfigError, match="--size 65x64: the pipeline refuses it: height and wid"):
        serve._prepare(model, {"width": 65, "height": 64})
