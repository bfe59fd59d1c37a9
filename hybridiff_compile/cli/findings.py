"""What this machine has: versions, devices, extras; each is looked at, not assumed."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

import hybridiff_compile
from hybridiff_compile.bench import figures

#: The extras of this package, with the modules that each brings.
EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorrt": ("torch_tensorrt",),
    "metrics": ("torchmetrics",),
}


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: its name.
        says: what was found; where that is bad, what to do.
        is_good: whether it works, or is there.
    """

    what: str
    says: str
    is_good: bool = True


def versions() -> list[Finding]:
    """Of Python, of this package, and of what it stands on."""
    found = [
        Finding("python", platform.python_version()),
        Finding("hybridiff-compile", hybridiff_compile.__version__),
        Finding("torch", torch.__version__),
    ]
    return [*found, *(Finding(name, version(name)) for name in ("diffusers", "transformers"))]


def devices() -> list[Finding]:
    """The CPU, each CUDA device after a small computation on it, and the room for weights."""
    where = figures.environment(threads_per_rank=1)
    cores, threads = _count(where.cpu_count, "core"), _count(torch.get_num_threads(), "thread")
    found = [Finding("CPU", f"{where.cpu}, {cores} for this process, {threads} of torch's")]
    found += [_card(i) for i in range(torch.cuda.device_count())]
    if len(found) == 1:
        build = "" if torch.version.cuda else "; this torch is a CPU build"
        found.append(Finding("CUDA", f"no device{build}"))
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{free:.1f} GB free in {folder}, where the ranks share a CPU's weights"
    return [*found, Finding("disk", text)]


def _card(index: int) -> Finding:
    about = torch.cuda.get_device_properties(index)
    text = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    try:
        torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as e:
        return Finding(f"cuda:{index}", f"{text}; does not compute: {first_line(e)}", False)
    return Finding(f"cuda:{index}", text)


def extras() -> list[Finding]:
    """Which extras of this package are there, by importing what they bring."""
    return [_extra(name, modules) for name, modules in EXTRAS.items()]


def _extra(name: str, modules: Sequence[str]) -> Finding:
    tried = [module(m, m, f"pip install hybridiff-compile[{name}]") for m in modules]
    if bad := [finding for finding in tried if not finding.is_good]:
        return Finding(f"[{name}]", f"{bad[0].what} is {bad[0].says}", False)
    return Finding(f"[{name}]", ", ".join(f"{f.what} {f.says}" for f in tried))


def module(name: str, what: str, fix: str) -> Finding:
    """Whether a module can be imported, and its version."""
    if importlib.util.find_spec(name) is None:
        return Finding(what, f"not installed; {fix}", False)
    try:
        importlib.import_module(name)
        return Finding(what, version(name.replace("_", "-")))
    except PackageNotFoundError:
        return Finding(what, "there")
    except Exception as e:  # a library that is missing, or another version of one
        return Finding(what, f"there, but cannot be imported: {first_line(e)}; {fix}", False)


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
