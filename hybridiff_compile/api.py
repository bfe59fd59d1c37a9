"""The public way in: `optimize(pipe)`, and `export` and `load` for deployment."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hybridiff_compile import placing, worker
from hybridiff_compile.arguments import check_flag, check_path
from hybridiff_compile.config import (
    TRANSFORMER_SWITCHING,
    UNET_SWITCHING,
    Backend,
    CompileMode,
    Config,
    Estimator,
    Lowering,
    Mode,
    Scope,
    SwitchSettings,
)
from hybridiff_compile.debug import check_folder
from hybridiff_compile.entry import one_compiler
from hybridiff_compile.errors import ConfigError, PackageError
from hybridiff_compile.lower import tensorrt
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.model import Model, shown
from hybridiff_compile.runtime import attach, fleet, torchrun
from hybridiff_compile.runtime.pulse import DEADLINE
from hybridiff_compile.session import Session

logger = logging.getLogger(__name__)


def optimize(
    pipe: Any,
    gpus: int = 2,
    *,
    mode: Mode = "hybrid",
    backend: Backend = "eager",
    scope: Scope = "stage",
    compile_mode: CompileMode | None = None,
    L_slope: int | None = None,
    eps_slope: float | None = None,
    k: int | None = None,
    tau_cap: int | None = None,
    tau1: int | None = None,
    devices: Sequence[str | torch.device] | None = None,
    m: int | None = None,
    tolerance: float | str | None = None,
    estimator: Estimator | None = None,
    dump: str | Path | None = None,
    deadline: float = DEADLINE,
) -> Model:
    """Let several ranks make the pictures of a diffusers pipeline.

    The calling process is rank 0 and drives; it starts the other rank itself. Under torchrun, the
    ranks are those it started: this function returns on rank 0 only, the others serve it and exit.
    On a CPU machine a rank is one process with one thread.

    Args:
        pipe: a diffusers pipeline with a `unet` or a `transformer`, on the CPU or on a GPU. A
            modular one, too, once its components are loaded.
        gpus: 2, or 1 to run the two branches one after the other on one device.
        mode: "hybrid": each rank computes one branch, and steps are extrapolated where that is seen
            to do little harm; the fastest. "exact": nothing is approximated. "paper": some steps
            are pipelined by layer, as in Jung et al. 2026, Sec. 4. "guided" and "forecast" pin one
            of this project's phases to the steps tau1 .. tau1 + k - 1: pipelined with full
            guidance, or extrapolated. "asyncdiff" is a baseline to compare with: both branches in
            one batch, pipelined on stale features from step tau1 (1) on for k (all other) steps.
        backend: "eager" runs the denoiser's own kernels; "inductor" compiles them, as torch.compile
            does; "tensorrt" hands them to torch-tensorrt.
        scope: what Inductor compiles in one piece: "stage", "regional" (repeated blocks only) or
            "whole" (each phase's step with its links inside); see `Lowering`.
        compile_mode: Inductor's mode, as in `torch.compile(mode=...)`.
        L_slope, eps_slope, k, tau_cap, tau1: when the paper's mode pipelines; see `Config`. tau1
            and k also place "guided", "forecast" and "asyncdiff".
        tolerance: of "hybrid": "fine", "balanced" (default) or "fast", or the largest weighted
            error of an extrapolated step, relative to the guided prediction.
        m: of "hybrid" (4, "fast" 6), "forecast" (2) and "guided" (1): at least every m-th step is
            computed, or moves the pipeline on; the others are extrapolated.
        estimator: how: "linear" in the step's index (default), in "sigma" or "logsnr"; "hold" keeps
            the last prediction, "quadratic" draws a parabola.
        devices: one a rank, the pipeline's own first; None takes those after the pipeline's. One
            GPU named twice serves both ranks: slow, to check results only.
        dump: folder for the programs before and after each pass, a folder in it for each shape of
            call.
        deadline: seconds without a sign of life after which a call gives the other rank up, as
            when it was stopped or swapped out. One that works answers meanwhile: it may work at one
            step 20 times as long, and compile 120 times as long.

    Returns:
        A model to call like the pipeline; the pipeline itself does the same until `restore()`.

    Raises:
        ConfigError: a setting is out of range, `dump` cannot be written to, or there are more ranks
            than the machine has devices, or `devices` are others than there are.
        UnsupportedPipelineError: there is no denoiser that can be driven, or it was patched.
        WorkerError: the worker did not start.
    """
    config = Config(
        gpus=gpus,
        mode=mode,
        lowering=Lowering(backend, scope, compile_mode),
        L_slope=L_slope,
        eps_slope=eps_slope,
        k=k,
        tau_cap=tau_cap,
        tau1=tau1,
        m=m,
        tolerance=tolerance,
        estimator=estimator,
        dump=check_folder(dump),
        deadline=deadline,
    )
    if backend == "aot":
        raise ConfigError("backend='aot' reads a package; call load(folder, pipe) instead.")
    denoiser, family = find_denoiser(pipe)
    device = device_of(denoiser)
    if backend == "tensorrt":
        tensorrt.check(device)
    start = _start(placing.ranks(device, gpus, devices), deadline)
    return Model(pipe, Session(pipe, config, family, start))


def export(
    model: Model,
    folder: str | Path,
    format: Literal["aot", "onnx"] = "aot",
    *,
    progress: bool = True,
) -> None:
    """Package a model's programs, so that another process needs neither to trace nor to compile.

    Args:
        model: of two ranks, after `compile(...)` or a picture; every shape of call so far is
            packaged, with its phases and switching.
        folder: new; it appears when everything in it is written.
        format: "aot": AOTInductor packages for `load` on machines of the same kind. "onnx": one
            model a stage and one of the whole branch for other runtimes, which drive the links.
        progress: show on a terminal what is being done.

    Raises:
        ConfigError: unknown format, a mode that is not packaged, no path, or there is nothing to
            export.
        PackageError: the folder exists or cannot be written.
        BackendError: a package that the format needs is missing.
    """
    from hybridiff_compile import package

    if not isinstance(model, Model):
        raise ConfigError(
            f"model is a {type(model).__name__}; pass the model that optimize(pipe) returned."
        )
    session, folder = model.session(), check_path("folder", folder)
    check_flag("progress", progress)
    if format not in ("aot", "onnx"):
        raise ConfigError(f"format={format!r} is unknown; choose one of aot, onnx.")
    if session.config.lowering.backend == "aot":
        raise ConfigError("this model was loaded from a package; copy that folder instead.")
    if session.config.mode == "asyncdiff":
        raise ConfigError(
            "mode='asyncdiff' is a baseline and is not packaged; export a model of another mode."
        )
    if not session.entries:
        raise ConfigError(f"there is nothing to export: {session.lacks}")
    mode = session.config.mode
    if mode in ("paper", "guided") and any(len(e.programs) == 1 for e in session.entries):
        raise ConfigError(
            f"mode={mode!r} pipelines a batch of two branches, and this pipeline's is another one; "
            "export a model of mode='exact' or 'hybrid'."
        )
    if reason := next((e.not_exported for e in session.entries if e.not_exported), ""):
        raise ConfigError(f"{reason}; so there is no graph to package: use the model itself.")
    if any(entry.calls for entry in session.entries):
        raise ConfigError(
            "this pipeline's branches are calls of their own, or pictures in a list, and a package "
            "holds programs of one batch; use the model itself."
        )
    if format == "onnx" and any(entry.is_taken for entry in session.entries):
        raise ConfigError(
            "this denoiser computes the branches of its batch otherwise, so that each has its own "
            "graph, and an ONNX package holds one graph of a branch; export it as aot."
        )
    with shown(session, progress), one_compiler:
        package.export(session, folder, format)


def load(folder: str | Path, pipe: Any, *, deadline: float = DEADLINE) -> Model:
    """Let two ranks make a pipeline's pictures by the compiled programs of a package.

    Nothing is traced, compiled or unpickled. The weights of the pipeline's denoiser become those of
    the package until `restore()`, which gives its own back; a warning says so if they differ. Every
    other part of the pipeline is used as it is. A package holds machine code: load those you trust.

    Args:
        folder: that `export` wrote with format "aot".
        pipe: as for `optimize`; a pipeline of the kind that was exported.
        deadline: as for `optimize`.

    Returns:
        A model, as from `optimize`; it refuses calls of a shape that was not exported.

    Raises:
        ConfigError: `folder` is no path.
        UnsupportedPipelineError: the pipeline has no denoiser, or one without plain weights.
        PackageError: a file is missing, changed or not as `export` writes it, or the package was
            made for another torch, device or pipeline; the message names it. Or the denoiser holds
            the weights of another package.
        WorkerError: the worker did not start.
    """
    from hybridiff_compile import package

    folder = check_path("folder", folder).resolve()
    manifest = package.check(folder)
    denoiser, family = find_denoiser(pipe)
    package.tensors_of(denoiser)  # or says why they are no plain weights
    device = device_of(denoiser)
    if manifest.format != "aot":
        raise PackageError(
            f"{folder} holds {manifest.format} models for other runtimes; load() runs what "
            "export(model, folder, 'aot') writes."
        )
    package.check_machine(folder, manifest, device)
    try:
        config = Config(
            gpus=manifest.ranks,
            mode=manifest.mode,  # pyright: ignore[reportArgumentType]
            lowering=Lowering("aot"),
            deadline=deadline,
            **manifest.switching.model_dump(),
        )
    except ConfigError as e:
        raise PackageError(f"the manifest of {folder} is not as it was exported: {e}") from e
    start = _start(placing.ranks(device, config.gpus), deadline)
    packaged = partial(package.load, folder, manifest, denoiser)
    return Model(pipe, Session(pipe, config, family, start, packaged))


def _start(ranks: Sequence[torch.device], deadline: float) -> fleet.Start:
    """How the other rank is started; under torchrun, a rank other than 0 serves here and exits."""
    device, *peers = ranks
    if torchrun.rank() > 0:
        _serve(device, deadline)
    if torchrun.world_size() > 1:
        return partial(torchrun.drive, device, deadline=deadline)
    return partial(fleet.start, device, *peers, deadline=deadline)


def find_denoiser(pipe: Any) -> tuple[nn.Module, SwitchSettings]:
    """The pipeline's denoiser, and the switching constants that were tuned on its kind.

    Raises:
        UnsupportedPipelineError: there is no denoiser that can be driven, or it was patched.
    """
    name, denoiser = next(iter(attach.find(pipe).items()))
    attach.check(denoiser)
    return denoiser, TRANSFORMER_SWITCHING if name == "transformer" else UNET_SWITCHING


def _serve(device: torch.device, deadline: float) -> None:
    """Under torchrun, on a rank other than 0: serve the driver, then end this process."""
    connection, store = torchrun.join(deadline)
    rank, size = torchrun.rank(), torchrun.world_size()
    worker.serve(connection, store, rank, size, device, torchrun.is_one_host(), deadline)
    sys.exit(0)
