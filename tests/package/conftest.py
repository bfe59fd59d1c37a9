"""One package for the tests: of the paper's mode, which has nodes and states of every kind."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import hybridiff_compile
from hybridiff_compile.errors import PackageError
from hybridiff_compile.package.manifest import MANIFEST, digests
from tests import pipelines

NAME = "tiny-sd3"
CALL = {"num_inference_steps": 6}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A package of all phases, and a picture that the exporting model made.

    Its convolution is channels_last, which the pipelines that load it are not. The processes that
    share the tests share it as well, as exporting compiles.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, made = shared / "shallow", shared / "shallow.picture"
    with FileLock(shared / "shallow.lock"):
        if not made.exists():
            torch.save(_exported(folder), made)
    return folder, torch.load(made)


def _exported(folder: Path) -> torch.Tensor:
    settings: Any = {"mode": "paper", "tau1": 2, "k": 2}
    pipe = pipelines.shallow()
    pipe.transformer.to(memory_format=torch.channels_last)
    with hybridiff_compile.optimize(pipe, **settings) as model:
        picture = pipelines.latents(model, NAME, **CALL)
        hybridiff_compile.export(model, folder)
    return picture


@pytest.fixture
def copy(exported: tuple[Path, torch.Tensor], tmp_path: Path) -> Path:
    return shutil.copytree(exported[0], tmp_path / "copy")


@pytest.fixture
def rewrite(copy: Path) -> Callable[[str, bytes], None]:
    """Write a file of the copy, with hashes that match."""

    def to(name: str, data: bytes) -> None:
        (copy / name).write_bytes(data)
        if name != MANIFEST:
            manifest = json.loads((copy / MANIFEST).read_text())
            manifest["files"] = digests(copy)
            (copy / MANIFEST).write_text(json.dumps(manifest))

    return to


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipelines.shallow()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process, its workers and torch's own code make temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def refused(copy: Path, pipe: Any, temporary: Path) -> Iterator[Callable[[], str]]:
    """Loads the copy, which must be refused; nothing of the attempt may stay."""
    own = {name: (t.data_ptr(), t.clone()) for name, t in pipe.transformer.state_dict().items()}

    def load() -> str:
        with pytest.raises(PackageError) as e:
            hybridiff_compile.load(copy, pipe).close()
        assert e.value.__class__ is PackageError
        assert str(copy) in str(e.value)  # the file, or the folder of two that disagree
        assert len(str(e.value)) < 1000
        return str(e.value)

    yield load
    assert "forward" not in vars(pipe.transformer)
    assert not list(temporary.iterdir())
    for name, tensor in pipe.transformer.state_dict().items():
        pointer, value = own[name]
        assert tensor.data_ptr() == pointer
        assert torch.equal(tensor, value)
