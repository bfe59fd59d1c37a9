"""Check the CUDA path on a machine with one GPU or several, and measure what two would give.

`python examples/gpu_check.py --out gpu.json` takes about fifteen minutes on one large GPU. Each
case is a process of its own with a time limit: one that fails or hangs is a line in the table, and
the others go on. `--only pictures` runs one section, `--rehearse` all of them small on the CPU.

- pictures: two ranks, exact and paper, against one device that runs the branches apart, on the
  embedded pipelines. On one GPU both ranks share it and their links go through host memory; with
  two, NCCL carries them. Exact must have error 0.
- compile: exact on two ranks, compiled: seconds until ready from an empty cache, step, error.
- ranks: SDXL and SD3-medium at 1024 x 1024 with random weights in bf16: each rank's programs alone
  on one GPU, and steps on two projected from them and from stated link speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SECTIONS = ("pictures", "compile", "ranks")
_LIMITS = {"pictures": 120, "compile": 200, "ranks": 280}
_ROW = "row: "  # in front of each row that a case prints


@dataclass(frozen=True)
class Case:
    """One process: what it measures, and the seconds that it may take."""

    section: str
    name: str
    detail: str
    limit: float

    def __str__(self) -> str:
        return f"{self.section} {self.name} {self.detail}"


def cases(only: str | None, models: list[str]) -> list[Case]:
    """All cases, or those of one section, or of some models."""
    from gpu_denoisers import NAMES
    from gpu_pictures import COMPILED

    every = {
        "pictures": [(m, d) for m in ("tiny-sdxl", "tiny-sd3") for d in ("float32", "bfloat16")],
        "compile": [(m, kind) for m in ("tiny-sd3", "sdxl-small") for kind in COMPILED],
        "ranks": [(name, what) for name in NAMES for what in ("programs", "kernels")],
    }
    return [
        Case(section, name, detail, _LIMITS[section])
        for section in SECTIONS
        for name, detail in every[section]
        if only in (None, section) and (not models or name in models)
    ]


def run_case(case: Case, rehearse: bool) -> Iterator[dict[str, Any]]:
    """Measure, in this process."""
    import gpu_pictures
    import gpu_ranks

    device = torch.device("cpu") if rehearse else torch.device("cuda", 0)
    steps = 6 if rehearse else 50
    if rehearse:
        torch.set_num_threads(1)
    if case.section == "pictures":
        dtype = getattr(torch, case.detail)
        return gpu_pictures.rows(case.name, device, dtype, steps)
    if case.section == "compile":
        dtype = torch.float32 if rehearse else torch.bfloat16
        return gpu_pictures.compiled(case.name, device, dtype, steps, case.detail)
    return gpu_ranks.rows(case.name, case.detail, device, 3 if rehearse else 20, small=rehearse)


def in_process(
    case: Case, rehearse: bool, log: Path | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Run a case in a process of its own; its rows until it ended, and why it failed, if it did.

    What a failed case wrote to its standard error is put at the end of `log`.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cache, out, err = f"{folder}/cache", Path(folder, "out"), Path(folder, "err")
        command = [sys.executable, __file__, "--case", case.section, case.name, case.detail]
        folders = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        # Into files, because a compiler's processes would keep pipes open after a case was ended.
        with out.open("w") as rows, err.open("w") as errors:
            process = subprocess.Popen(
                [*command, *(["--rehearse"] if rehearse else [])],
                stdout=rows,
                stderr=errors,
                env={**os.environ, **folders, "PYTHONUNBUFFERED": "1"},
            )
            try:
                process.wait(case.limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        lines, said = out.read_text().splitlines(), err.read_text(errors="replace").split("\n")
    made = [json.loads(x.removeprefix(_ROW)) for x in lines if x.startswith(_ROW)]
    failed = _why_failed(process.returncode, said, case)
    if failed and log:
        with log.open("a", encoding="utf-8") as kept:
            kept.write("\n".join([f"=== {case}", *said[-200:], ""]))
    return made, failed


def _why_failed(code: int, said: list[str], case: Case) -> str | None:
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return f"killed: over its {case.limit:.0f} s, or out of memory"
    return next((line.strip() for line in reversed(said) if line.strip()), "(it said nothing)")


def main() -> None:
    """Run the cases, print a line for each row, and write all of them."""
    parser = argparse.ArgumentParser(description="check the CUDA path on this machine")
    parser.add_argument("--only", choices=SECTIONS, help="run one section")
    parser.add_argument("--models", nargs="*", default=[], help="run the cases of these models")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where to write figures")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        for row in run_case(Case(*args.case, limit=0), args.rehearse):
            print(_ROW + json.dumps({k: v for k, v in row.items() if v is not None}))
        return
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --rehearse runs a small version on the CPU")
    rows: list[dict[str, Any]] = []
    for case in cases(args.only, args.models):
        begin = time.monotonic()
        made, failed = in_process(case, args.rehearse, args.out.with_suffix(".log"))
        rows += made
        for row in made:
            print("  " + text_of(row))
        if failed:
            rows.append({"command": f"gpu-check {case.section}", "model": case.name})
            rows[-1] |= {"note": f"{case.detail} failed: {failed[:300]}"}
        state = f"FAILED: {failed[:300]}" if failed else "done"
        print(f"{case}: {state} ({time.monotonic() - begin:.0f} s)", flush=True)
        write(args.out, rows)  # after every case, so that an interrupted run is not lost
    print(f"wrote {args.out}")


def text_of(row: dict[str, Any]) -> str:
    """A row of the table: names first, then every figure with its name."""
    head = [row.get(k) for k in ("model", "dtype", "mode", "backend", "scope", "compile_mode")]
    known = {"command", "model", "dtype", "mode", "backend", "scope", "compile_mode", "scheduler"}
    known |= {"height", "width", "batch", "guidance_scale", "runs"}
    figures = [f"{k}={_short(v)}" for k, v in row.items() if k not in known]
    return " ".join([*(str(h) for h in head if h), "|", *figures])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{k}:{_short(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "/".join(_short(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the figures and what they were measured on; nothing in it names the machine."""
    on_gpu = torch.cuda.is_available()
    where = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "os": f"{platform.system()} {platform.machine()}",
        "cpu_count": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "gpu_count": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
    }
    text = json.dumps({"schema": 1, "environment": where, "rows": rows}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
