"""The public way in: `optimize(pipe)` and the model that it returns."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from hybridiff_compile import worker
from hybridiff_compile.config import (
    TRANSFORMER_SWITCHING,
    UNET_SWITCHING,
    Backend,
    Config,
    Mode,
    SwitchSettings,
)
from hybridiff_compile.errors import (
    ClosedError,
    ConfigError,
    HybridiffError,
    UnsupportedPipelineError,
)
from hybridiff_compile.ir import Phase, StepProgram
from hybridiff_compile.runtime import fleet, torchrun
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.session import Session


def optimize(
    pipe: Any,
    gpus: int = 2,
    *,
    mode: Mode = "exact",
    backend: Backend = "eager",
    L_slope: int | None = None,
    eps_slope: float | None = None,
    k: int | None = None,
    tau_cap: int | None = None,
    tau1: int | None = None,
    dump: str | Path | None = None,
) -> Model:
    """Let several ranks make the pictures of a diffusers pipeline.

    The calling process is rank 0 and drives; it starts the other rank itself. Under torchrun, the
    ranks are those it started: this function returns on rank 0 only, the others serve it and exit.
    On a CPU machine a rank is one process with one thread.

    Args:
        pipe: a diffusers pipeline with a `unet` or a `transformer`, on the CPU or on a GPU.
        gpus: 2, or 1 to run the two branches one after the other on one device.
        mode: "exact": each rank computes one branch, nothing is approximated. "paper": some steps
            are also pipelined by layer, as in Jung et al. 2026, Sec. 4.
        backend: "eager".
        L_slope, eps_slope, k, tau_cap, tau1: when the paper's mode pipelines; see `Config`.
        dump: folder for the programs before and after each pass.

    Returns:
        A model to call like the pipeline; the pipeline itself does the same until `restore()`.

    Raises:
        ConfigError: a setting is out of range, or more ranks than the machine has devices.
        UnsupportedPipelineError: there is no denoiser that can be driven.
        WorkerError: the worker did not start.
    """
    config = Config(
        gpus=gpus,
        mode=mode,
        backend=backend,
        L_slope=L_slope,
        eps_slope=eps_slope,
        k=k,
        tau_cap=tau_cap,
        tau1=tau1,
        dump=None if dump is None else Path(dump),
    )
    denoiser, family = _find_denoiser(pipe)
    device = next(denoiser.parameters()).device
    _check_devices(gpus, device)
    if torchrun.rank() > 0:
        _serve(device)
    launched = torchrun.world_size() > 1
    start = partial(torchrun.drive, device) if launched else partial(fleet.start, _peer(device))
    return Model(pipe, Session(pipe, denoiser, config, family, start))


class Model:
    """An optimized pipeline: call it as the pipeline is called.

    Use it in a `with` block, or `restore()` the pipeline at the end; the worker ends with it, and
    at the latest with this process.
    """

    def __init__(self, pipe: Any, session: Session) -> None:
        self.pipe = pipe
        self._session: Session | None = session

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make pictures: the same as `pipe(...)`."""
        self._open()
        return self.pipe(*args, **kwargs)

    def compile(self, **call: Any) -> None:
        """Prepare the programs of a call without making a picture.

        Args:
            call: keywords of the later calls that shape the denoiser's inputs, such as `height`,
                `width`, `num_images_per_prompt`, `guidance_scale`; a prompt is not needed.
        """
        session = self._open()
        if "prompt_embeds" not in call:
            call.setdefault("prompt", "")
        hidden = getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.set_progress_bar_config(**{**(hidden or {}), "disable": True})
        try:
            with session.dry():
                self.pipe(**call)
        finally:
            self.pipe.set_progress_bar_config(**(hidden or {}))

    @property
    def report(self) -> RunReport:
        """What the last call did, step by step.

        Raises:
            HybridiffError: there was none.
        """
        report = self._open().report
        if report is None:
            raise HybridiffError("there is no report yet: make a picture first.")
        return report

    def programs(self) -> list[dict[Phase, StepProgram]]:
        """The programs by phase, of every shape of call so far; each prints as text."""
        return self._open().programs()

    def graphs(self) -> str:
        """Every rank's program for every phase, as text; after `compile()` or a first picture."""
        return "\n\n".join(str(p) for by_phase in self.programs() for p in by_phase.values())

    def restore(self) -> Any:
        """Give the pipeline back as it was, end the worker, and close this model.

        Raises:
            ClosedError: it was restored already, or something was attached on top since.
        """
        session = self._open()
        session.attachment.detach()
        session.close()
        self._session = None
        return self.pipe

    def close(self) -> None:
        """Restore the pipeline, if that has not been done yet."""
        if self._session is not None:
            self.restore()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> Session:
        if self._session is None:
            raise ClosedError("this model was restored; call optimize(pipe) again.")
        return self._session


def _find_denoiser(pipe: Any) -> tuple[nn.Module, SwitchSettings]:
    """The pipeline's denoiser, and the switching constants that were tuned on its kind."""
    families = {"unet": UNET_SWITCHING, "transformer": TRANSFORMER_SWITCHING}
    name = next((n for n in families if isinstance(getattr(pipe, n, None), nn.Module)), None)
    if name is None:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no denoiser: neither `unet` nor `transformer` is a module. "
            "Pass a diffusers pipeline that has one."
        )
    denoiser = getattr(pipe, name)
    if hasattr(denoiser, "_orig_mod"):
        raise UnsupportedPipelineError(
            f"pipe.{name} is compiled by torch.compile; pass the pipeline with the plain module."
        )
    if hasattr(denoiser, "_hf_hook"):
        raise UnsupportedPipelineError(
            f"pipe.{name} is offloaded by accelerate; every rank holds the whole model, so "
            "load the pipeline without offloading."
        )
    return denoiser, families[name]


def _check_devices(gpus: int, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"the pipeline is on {device}; move it to the CPU or to a CUDA device.")
    count = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
    if gpus > count:
        raise ConfigError(
            f"gpus={gpus}, but this machine has {count} {device.type} device(s) "
            "(a CPU device is one core); lower gpus."
        )
    if torchrun.world_size() not in (1, gpus):
        raise ConfigError(
            f"gpus={gpus}, but the launcher started {torchrun.world_size()} ranks; make them equal."
        )


def _peer(device: torch.device) -> torch.device:
    """Where rank 1 computes: the next device of the same kind."""
    if device.type == "cpu":
        return device
    return torch.device("cuda", ((device.index or 0) + 1) % torch.cuda.device_count())


def _serve(device: torch.device) -> None:
    """Under torchrun, on a rank other than 0: serve the driver, then end this process."""
    connection, store = torchrun.join()
    rank, size = torchrun.rank(), torchrun.world_size()
    worker.serve(connection, store, rank, size, device, torchrun.is_one_host())
    sys.exit(0)
