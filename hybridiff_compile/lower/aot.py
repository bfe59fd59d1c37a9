"""Compile a stage ahead of time into an AOTInductor package, and run it from there.

A package holds no weights: a rank points it at those that it already has.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hybridiff_compile.errors import PackageError
from hybridiff_compile.ir import RankProgram
from hybridiff_compile.lower.flat import Compiled, Flat

# The weights stay outside, under their own names, for every rank and stage to share.
_SETTINGS = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}
# Where torch puts the files of a compiled model in its archive.
_FILES = "data/aotinductor/model"
# Of code and kernels; the weights are not among them.
_MOST_BYTES = 8 << 30


class Packaged(nn.Module):
    """A stage in a package: it stands in a program until a rank loads it.

    Attributes:
        path: of the `.pt2` file.
        weights: by the name in the package.
        keys: what the stage returns; see `Flat`.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, torch.Tensor], keys: tuple[str, ...] | str | None
    ) -> None:
        super().__init__()
        self.path, self.weights, self.keys = path, dict(weights), keys

    def forward(self, *args: Any) -> Any:
        """Refuse: a rank's lowering puts the loaded stage in this place."""
        raise RuntimeError(f"{self.path} was not loaded")


def compile_to(flat: Flat, path: Path, device: torch.device) -> None:
    """Compile one stage for static shapes into `path`, a `.pt2` file."""
    from torch import _inductor as inductor
    from torch._inductor import config

    examples = tuple(flat.examples(device)[len(flat.values) :])
    # torch notes there what it compiles for, and leaves it: part of the key of Inductor's caches.
    noted = config.patch({"aot_inductor.metadata": {}})
    with torch.no_grad(), noted, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own pytrees
        program = torch.export.export(flat.attached(), examples, strict=False)
        inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=_SETTINGS
        )


def load(stage: Packaged, device: torch.device) -> Compiled:
    """Load a compiled stage and point it at its weights; nothing is traced or unpickled.

    Raises:
        PackageError: the file holds no compiled stage, or one that reads other weights.
    """
    # torch's own loader of packages leaves a folder behind where it fails, and in every worker.
    folder = Path(tempfile.mkdtemp(prefix="hybridiff-stage-"))
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    try:
        runner = _runner(_unpack(stage.path, folder), device)
        weights = {name: tensor.detach().to(device) for name, tensor in stage.weights.items()}
        named = {own: weights[name] for own, name in _constants(runner).items()}
        runner.update_constant_buffer(named, False, True, user_managed=True)
    except (RuntimeError, OSError, KeyError) as e:
        remove()
        raise PackageError(
            f"{stage.path}: it is no stage that can be loaded here ({str(e)[:200]}); copy the "
            "package again, or export it again."
        ) from e
    except BaseException:
        remove()
        raise

    def run(*inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        assert weights  # the loaded code reads their memory, so they live as long as it does
        return runner.run(list(inputs))

    if device.type == "cpu":
        remove()  # what was loaded from it is mapped
    else:
        weakref.finalize(run, remove)  # kernels are read from it as they are first used
    return Compiled(run, stage.keys)


def _runner(library: Path, device: torch.device) -> Any:
    from torch._C import _aoti  # pyright: ignore[reportAttributeAccessIssue]

    if device.type == "cpu":
        return _aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    cuda = _aoti.AOTIModelContainerRunnerCuda  # pyright: ignore[reportAttributeAccessIssue]
    return cuda(str(library), 1, f"cuda:{device.index or 0}", str(library.parent))


def _constants(runner: Any) -> dict[str, str]:
    """The weights that a compiled stage reads: by its own name for each, the package's name."""
    return runner.get_constant_names_to_original_fqns()


def _unpack(path: Path, folder: Path) -> Path:
    """Unpack the files of a stage, without any folders of theirs; return its library.

    Raises:
        RuntimeError: it is no archive of one library.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [m for m in archive.infolist() if f"/{_FILES}/" in m.filename]
            if sum(member.file_size for member in found) > _MOST_BYTES:
                raise RuntimeError(f"more than {_MOST_BYTES} bytes of code")
            for member in found:
                with (
                    archive.open(member) as source,
                    (folder / Path(member.filename).name).open("xb") as out,
                ):
                    shutil.copyfileobj(source, out)
    # zipfile raises NotImplementedError for a compression that it does not know.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as e:
        raise RuntimeError(f"it is no archive: {e}") from e
    libraries = list(folder.glob("*.so"))
    if len(libraries) != 1:
        raise RuntimeError(f"it has {len(libraries)} libraries")
    if _is_cut(libraries[0]):
        raise RuntimeError("its library ends before its end")
    return libraries[0]


def _is_cut(library: Path) -> bool:
    """Whether an ELF library has no table of sections, its last part: to map it would be fatal."""
    with library.open("rb") as file:
        header = file.read(64)
    if header[:5] != b"\x7fELF\x02":  # another system's: its loader looks for itself
        return len(header) < 64
    start, size, count = (
        *struct.unpack_from("<Q", header, 40),
        *struct.unpack_from("<HH", header, 58),
    )
    return start + size * count > library.stat().st_size


def load_all(programs: Sequence[RankProgram], device: torch.device) -> dict[nn.Module, nn.Module]:
    """Load every packaged stage of a rank's programs, once each."""
    found = [m for p in programs for m in p.module.modules() if isinstance(m, Packaged)]
    by_path: dict[Path, Compiled] = {}
    for stage in found:
        if stage.path not in by_path:
            by_path[stage.path] = load(stage, device)
    return cast(dict[nn.Module, nn.Module], {s: by_path[s.path] for s in found})
