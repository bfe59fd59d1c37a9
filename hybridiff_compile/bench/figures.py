"""The one vocabulary of figures: what every command writes with `--json`, and reads back."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from hybridiff_compile.config import Estimator
from hybridiff_compile.errors import ConfigError

Mode = Literal[
    "one-device",
    "one-device-apart",
    "exact",
    "paper",
    "hybrid",
    "guided",
    "forecast",
    "asyncdiff",
]
PhaseName = Literal["serial", "pipelined", "forecast"]
Backend = Literal["eager", "inductor", "aot", "onnx", "tensorrt"]
Scope = Literal["stage", "regional", "whole"]
#: What a row of a benchmark is of: one device has no scope.
Variant = tuple[Mode, Backend, Scope | None]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    # A figure that is not a number was not measured, and a key that nobody knows is a slip.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Environment(_Record):
    """What the figures were measured on; nothing in it names the machine or a person."""

    python: str
    torch: str
    diffusers: str
    os: str
    cpu: str
    cpu_count: PositiveInt
    threads_per_rank: PositiveInt


class Row(_Record):
    """One mode of one pipeline; a key that was not measured is None and is not written.

    Attributes:
        command, model, scheduler, steps, guidance_scale, height, width, batch, dtype: what was run.
        mode: `one-device` is the pipeline as it is (batched call); `one-device-apart` runs the
            branches one after the other and is the reference for `max_abs_error`, `psnr_db` and
            `ssim`. `guided` and `forecast` are phases pinned by hand.
        ranks: processes that made the pictures.
        backend, scope: how a rank's programs were run, and what was compiled in one piece.
        tau1, k: first step of the phase that was switched to, and number of its steps, as used.
        m: in a group of m steps one is computed; in mode `hybrid`, one at least.
        tolerance: largest error of an extrapolated step, as in `Controlled`.
        estimator: how steps were extrapolated.
        steps_by_phase: number of steps that lie in each phase.
        forwards_per_rank: of batch B, for one picture on two ranks, mean over pictures: 1 a serial
            step, 1/2 a pipelined one, 0 an extrapolated one, whatever the ranks of this row; of
            `asyncdiff`, which runs both branches in one batch, twice that.
        seconds, seconds_p90: one picture, median and 90th percentile of `runs` after warm-up.
        speedup: seconds of `one-device` in the same run / seconds.
        step_ms_by_phase: median, driver's clock.
        max_abs_error: largest difference of the final latents, over all pictures.
        psnr_db: mean over pictures; an identical picture counts as 100.
        ssim: mean over pictures.
        prompts_right: share of `prompts` whose picture shows what was asked for.
        bytes_sent: by all ranks, for one picture.
        peak_rss_mb: most resident memory of each rank's process so far, compiling included.
        peak_pss_mb: proportional (shared pages count once), of each rank's process, the most that
            was seen when it was ready and after each picture; nothing is sampled while compiling.
        peak_device_mb: of each rank's GPU; predicted by a plan.
        compile_seconds_cold, compile_seconds_warm: wall until all ranks are ready, in processes of
            their own, with an empty cache folder and with the folder that the first one filled.
        load_seconds: wall until all ranks of an exported package are ready.
        first_picture_seconds: from a loaded pipeline, with an empty cache, to its first picture.
        recompiles: graphs that any rank compiled after all were ready.
        graphs: compiled graphs of each rank, its own and those that another rank compiled for it.
        denoiser_share: of `seconds`.
        branch_ms, stage_ms: each rank's program of a serial and of a pipelined step, alone.
        link_mb_per_s, link_latency_us: as measured or stated.
        device, link: names of the ones that a prediction is for; "here": measured.
        predicted_seconds, predicted_speedup: of a picture; over `one-device`, predicted likewise.
        predicted_step_ms_by_phase: of a step.
        limited_by: what holds it back, in a few words.
    """

    command: str
    model: str
    mode: Mode
    scheduler: str | None = None
    steps: PositiveInt | None = None
    guidance_scale: float | None = None
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    batch: PositiveInt | None = None
    dtype: str | None = None
    backend: Backend | None = None
    scope: Scope | None = None
    ranks: PositiveInt | None = None
    tau1: NonNegativeInt | None = None
    k: NonNegativeInt | None = None
    m: PositiveInt | None = None
    tolerance: NonNegativeFloat | None = None
    estimator: Estimator | None = None
    steps_by_phase: dict[PhaseName, NonNegativeInt] | None = None
    forwards_per_rank: NonNegativeFloat | None = None
    seconds: NonNegativeFloat | None = None
    seconds_p90: NonNegativeFloat | None = None
    runs: PositiveInt | None = None
    speedup: NonNegativeFloat | None = None
    step_ms_by_phase: dict[PhaseName, NonNegativeFloat] | None = None
    max_abs_error: NonNegativeFloat | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    prompts_right: Share | None = None
    prompts: PositiveInt | None = None
    bytes_sent: NonNegativeInt | None = None
    peak_rss_mb: tuple[NonNegativeFloat, ...] | None = None
    peak_pss_mb: tuple[NonNegativeFloat, ...] | None = None
    peak_device_mb: tuple[NonNegativeFloat, ...] | None = None
    compile_seconds_cold: NonNegativeFloat | None = None
    compile_seconds_warm: NonNegativeFloat | None = None
    load_seconds: NonNegativeFloat | None = None
    first_picture_seconds: NonNegativeFloat | None = None
    recompiles: NonNegativeInt | None = None
    graphs: tuple[NonNegativeInt, ...] | None = None
    denoiser_share: Share | None = None
    branch_ms: tuple[NonNegativeFloat, ...] | None = None
    stage_ms: tuple[NonNegativeFloat, ...] | None = None
    link_mb_per_s: NonNegativeFloat | None = None
    link_latency_us: NonNegativeFloat | None = None
    device: str | None = None
    link: str | None = None
    predicted_seconds: NonNegativeFloat | None = None
    predicted_speedup: NonNegativeFloat | None = None
    predicted_step_ms_by_phase: dict[PhaseName, NonNegativeFloat] | None = None
    limited_by: str | None = None


class Figures(_Record):
    """A file of figures."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    environment: Environment
    rows: tuple[Row, ...]


def environment(threads_per_rank: int) -> Environment:
    """Describe the machine and the software that figures are being measured on."""
    return Environment(
        python=platform.python_version(),
        torch=version("torch"),
        diffusers=version("diffusers"),
        os=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cpu_count=_cpu_count(),
        threads_per_rank=threads_per_rank,
    )


def write(path: Path, rows: Sequence[Row], where: Environment) -> None:
    """Write a file of figures; a reader never sees half of one."""
    text = Figures(environment=where, rows=tuple(rows)).model_dump_json(indent=2, exclude_none=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(f"{path.name}.part")


def read(path: Path) -> Figures:
    """Read a file of figures.

    Raises:
        ConfigError: it cannot be read, or holds an unknown key or a value out of its range.
    """
    try:
        return Figures.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}; name a file of --json.") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is no text; name a file that --json wrote.") from e
    except ValidationError as e:
        (why, *_) = e.errors()
        where = ".".join(map(str, why["loc"])) or "its top level"
        raise ConfigError(
            f"{path} is no file of figures: {why['msg']} at {where}; name one that --json wrote."
        ) from e


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _cpu_count() -> int:
    # The cores that this process may use, where the system tells: a container has fewer.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
