"""What works on this machine, found by trying: links, two ranks, backends."""

from __future__ import annotations

import itertools
import os
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.cuda import nccl

import hybridiff_compile
from hybridiff_compile.bench import models
from hybridiff_compile.cli.findings import Finding, first_line, module
from hybridiff_compile.errors import HybridiffError
from hybridiff_compile.lower import tensorrt
from hybridiff_compile.planning import link_probe

# What the code includes that Inductor writes for a CPU.
_SOURCE = "#include <Python.h>\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"
_COMPILE_SECONDS = 60
_CPU = torch.device("cpu")


def links() -> list[Finding]:
    """Between two processes over the loopback interface, and between GPUs where there are any."""
    found = [_link("gloo on loopback", _CPU, _CPU)]
    if dist.is_nccl_available():
        text = ".".join(map(str, nccl.version()))
        found.append(Finding("NCCL", f"{text}; tried below where there are two GPUs"))
    else:
        found.append(Finding("NCCL", "not in this build of torch; two GPUs need it"))
    for first, second in itertools.combinations(range(torch.cuda.device_count()), 2):
        name = f"cuda:{first} and cuda:{second}"
        reach = torch.cuda.can_device_access_peer(first, second)
        how = "reach each other's memory" if reach else "copy through the host's memory"
        tried = _link(name, torch.device("cuda", first), torch.device("cuda", second))
        found.append(tried._replace(says=f"{how}; {tried.says}"))
    return found


def _link(name: str, first: torch.device, second: torch.device) -> Finding:
    try:
        link = link_probe.measure(first, second)
    except (HybridiffError, RuntimeError, OSError) as e:
        return Finding(name, f"does not work: {first_line(e)}", False)
    text = f"{link.rate / 1e6:.0f} MB/s after {1e6 * link.latency:.0f} us"
    return Finding(name, f"works between two processes; {text}")


def two_ranks() -> list[Finding]:
    """A picture of two steps on two ranks: on two CPU cores, and on two GPUs where there are."""
    cores = len(os.sched_getaffinity(0))
    cards = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    found = [
        _picture("two ranks on 2 CPU cores", _CPU)
        if cores > 1
        else Finding("two ranks on the CPU", "need two cores, and this process has one", False)
    ]
    if len(cards) > 1:
        found.append(_picture("two ranks on two GPUs", cards[0]))
    elif cards:
        text = "for checks only: optimize(pipe, devices=('cuda:0', 'cuda:0')); two GPUs make speed"
        found.append(Finding("two ranks on one GPU", text, False))
    return found


def _picture(name: str, device: torch.device) -> Finding:
    begin = time.monotonic()
    try:
        pipe: Any = models.load("tiny-sd3").to(device)
        pipe.set_progress_bar_config(disable=True)
        call = {
            "num_inference_steps": 2,
            "output_type": "latent",
            **models.call_settings("tiny-sd3"),
        }
        with hybridiff_compile.optimize(pipe, mode="exact") as model:
            checked = model.verify("a red circle", **call)
            ranks = model.report.ranks
    except Exception as e:  # whatever it is, it is the answer
        return Finding(name, f"do not work: {first_line(e)}", False)
    if ranks != 2:
        return Finding(name, "do not work: one rank made the picture; the log says why", False)
    off = checked.max_abs_error
    same = f"is off by {off:.1e}" if off else "has the bits of one device"
    return Finding(name, f"work; a picture of 2 steps {same} ({time.monotonic() - begin:.0f} s)")


def backends() -> list[Finding]:
    """What can compile here: by a C++ compiler, and by TensorRT."""
    where = torch.device("cuda", 0) if torch.cuda.device_count() else _CPU
    found = [_inductor()]
    if where.type == "cuda":
        found.append(module("triton", "backend='inductor' on a GPU", "pip install triton"))
    if where is _CPU:
        return [*found, Finding("backend='tensorrt'", "needs an NVIDIA GPU", False)]
    try:
        tensorrt.check(where)
    except HybridiffError as e:
        return [*found, Finding("backend='tensorrt'", first_line(e), False)]
    return [*found, Finding("backend='tensorrt'", "torch-tensorrt and a GPU are there; not tried")]


def _inductor() -> Finding:
    """Build a library from what Inductor's code includes, by the compiler that it takes."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    name = "backend='inductor'"
    try:
        compiler = get_cpp_compiler()
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "try.cpp")
            source.write_text(_SOURCE)
            include = f"-I{sysconfig.get_paths()['include']}"
            command = [compiler, "-shared", "-fPIC", "-fopenmp", include, str(source)]
            _run([*command, "-o", str(source.with_suffix(".so"))])
        said = _run([compiler, "--version"]).partition("\n")[0]
    except Exception as e:  # InvalidCxxCompiler moves from version to version
        fix = "install g++ and Python's headers (Debian: g++, python3-dev), or use backend='eager'"
        return Finding(name, f"needs a C++ compiler: {first_line(e)}; {fix}", False)
    return Finding(name, f"works; {said} builds what it needs (Python.h, OpenMP)")


def _run(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{command[0]} failed")
    return done.stdout
