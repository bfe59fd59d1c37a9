"""Files of a package that hold something else, or are no files: weights, stages, folders."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.errors import PackageError
from hybridiff_compile.package.manifest import MANIFEST, WEIGHTS
from tests import pipelines

Rewrite = Callable[[str, bytes], None]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff" * 100, bytes([255] * 7 + [127]) + b"{}"], ids=len
)
def test_weights_that_are_none_are_refused(
    data: bytes, rewrite: Rewrite, refused: Callable[[], str]
) -> None:
    rewrite(WEIGHTS, data)
    assert f"{WEIGHTS}: it holds no weights" in refused()


@pytest.mark.parametrize("how", ["no archive", "empty archive", "no code", "cut code"])
def test_stage_that_cannot_be_loaded_is_refused(
    how: str, copy: Path, rewrite: Rewrite, temporary: Path
) -> None:
    """By then the worker is there, and maps the weights: it ends, too."""
    data = io.BytesIO()
    with (
        zipfile.ZipFile(copy / "0-stage0.pt2") as old,
        zipfile.ZipFile(data, "w") as new,
    ):
        for member in old.namelist() if how.endswith("code") else ():
            is_code = member.endswith(".so")
            if not is_code or how == "cut code":
                new.writestr(member, old.read(member)[: 1000 if is_code else None])
    rewrite("0-stage0.pt2", b"no archive" if how == "no archive" else data.getvalue())
    pipe = pipelines.shallow()
    own = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    with pytest.raises(PackageError, match=r"0-stage0\.pt2: it is no stage"):
        hybridiff_compile.load(copy, pipe)
    assert "forward" not in vars(pipe.transformer)
    assert not list(temporary.iterdir())
    now = pipe.transformer.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in own.items())


def test_folder_or_pipe_in_the_place_of_a_file_is_refused(
    copy: Path, refused: Callable[[], str]
) -> None:
    (copy / "rank1.json").unlink()
    os.mkfifo(copy / "rank1.json")  # to read it would never end
    assert "rank1.json is no regular file" in refused()
    (copy / MANIFEST).unlink()
    os.mkfifo(copy / MANIFEST)
    assert "has no manifest.json" in refused()


def test_loading_and_restoring_leaves_nothing_on_disk(
    copy: Path, pipe: Any, temporary: Path
) -> None:
    """Nor does a worker that is killed: its stages are mapped, and their files are gone."""
    call: Any = {"num_inference_steps": 4}
    model = hybridiff_compile.load(copy, pipe)
    pipelines.latents(model, "tiny-sd3", **call)
    assert not list(temporary.glob("*stage*"))
    assert not list(temporary.glob("aotinductor*"))
    driver = model.session().ranks.driver
    assert driver is not None
    process = driver.fleet._process
    assert process is not None
    process.kill()
    process.wait()
    pipelines.latents(model, "tiny-sd3", **call)
    assert driver is not model.session().ranks.driver
    model.restore()
    assert not list(temporary.glob("hybridiff*"))
    assert not list(temporary.glob("aotinductor*"))
