"""Each rank's programs alone on one device, for `gpu_check.py`; two devices are projected from it.

The programs are those that two ranks would run. Only their links are others: a received value is
copied from what the other rank's program sent on the same device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gpu_denoisers
import torch
import torch.distributed as dist

from hybridiff_compile import lower, ops
from hybridiff_compile.capture.call import DenoiserCall, only_tensor
from hybridiff_compile.capture.trace import capture
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase, RankProgram, StepProgram
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime.rank import Rank

#: Stated, not measured: bytes a second of one direction of a link between two cards.
LINKS = {"PCIe 3 x16": 12e9, "PCIe 4 x16": 25e9, "NVLink": 300e9}
STEPS, K = 50, 5
EAGER, REGIONAL = Lowering(), Lowering("inductor", "regional")


class _Done(dist.Work):
    def wait(self, timeout: Any = None) -> bool:
        return True


class LocalLink:
    """What one program sends, another one of the same process receives; the last value of a tag."""

    def __init__(self) -> None:
        self.sent: dict[int, torch.Tensor] = {}

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int) -> dist.Work:
        """Keep the tensor."""
        self.sent[tag] = tensors[0]
        return _Done()

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int) -> dist.Work:
        """Copy what was kept; zeros before anything was."""
        if tag in self.sent:
            tensors[0].copy_(self.sent[tag])
        else:
            tensors[0].zero_()
        return _Done()


def local_links() -> ops.Groups:
    """A link for each direction; stamps come back to their sender, so that its guard agrees."""
    stamps, links = LocalLink(), [LocalLink(), LocalLink()]
    return {
        **{ops.group_name(r, 1 - r): link for r, link in enumerate(links)},
        **{ops.group_name(r, 1 - r, stamp=True): stamps for r in range(2)},
    }


class Alone:
    """Both ranks' programs in one process, run one at a time."""

    def __init__(
        self,
        programs: dict[Phase, StepProgram],
        how: Lowering,
        values: dict[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        self._ranks, self._values = (Rank(), Rank()), values
        count = len(programs)
        both = [RankProgram.of(p, r) for r in range(2) for p in programs.values()]
        prepared = lower.prepare(both, how)
        for r, rank in enumerate(self._ranks):
            own = prepared[r * count : (r + 1) * count]
            rank.load(0, lower.begin(own, how, device, ranks=1)())
        ops.activate(local_links())
        for r in (1, 0):  # rank 1 first: rank 0 reads what it sent
            self.step(r, Phase.SERIAL)
        cut = self._ranks[0].kept(0, ["cut"])
        self._values = {**values, **cut}

    def step(self, rank: int, phase: Phase) -> Any:
        """Run one rank's step of a phase."""
        contract = self._ranks[rank].variant(0, phase).contract
        wanted = (*contract.inputs, *contract.state)
        fed = {n: self._values[n] for n in wanted if n in self._values}
        return self._ranks[rank].step(0, phase, 0, fed)


def rows(
    name: str, detail: str, device: torch.device, rounds: int, *, small: bool
) -> Iterator[dict[str, Any]]:
    """Measure a denoiser of `gpu_denoisers.NAMES`; a row as soon as it is there.

    Args:
        detail: "kernels": one device without the time of launches; "programs": each rank's.
    """
    dtype = torch.float32 if small else torch.bfloat16
    denoiser: Any = gpu_denoisers.build(name, device, dtype, small=small)
    call, batched = gpu_denoisers.call_of(name, denoiser, device, dtype)
    size = 8 * denoiser.config.sample_size
    what = {"command": "gpu-check ranks", "model": name, "dtype": str(dtype).split(".")[-1]}
    what |= {"height": size, "width": size, "batch": 1}
    with torch.no_grad():
        if detail == "kernels":
            yield _kernels(denoiser, call, batched, device, rounds, what)
        else:
            yield from _programs(denoiser, call, batched, device, rounds, what)


def _branch(denoiser: Any, call: DenoiserCall, index: int) -> Callable[[], Any]:
    positional, keyword = call.branch(index).arguments
    return lambda: denoiser(*positional.values(), **keyword)


def _kernels(
    denoiser: Any,
    call: DenoiserCall,
    batched: Callable[[], Any],
    device: torch.device,
    rounds: int,
    what: dict[str, Any],
) -> dict[str, Any]:
    """T(2B) and T(B) from CUDA graphs: launching a big denoiser's kernels can outlast them."""
    runs = (batched, _branch(denoiser, call, 1))
    both, one = (gpu_denoisers.graphed_ms(run, device, rounds) for run in runs)
    row = {**what, "mode": "one-device", "backend": "eager", "note": "from a CUDA graph"}
    return {**row, "step_ms": both, "branch_ms": one, "ratio": both / one}


def _programs(
    denoiser: Any,
    call: DenoiserCall,
    batched: Callable[[], Any],
    device: torch.device,
    rounds: int,
    what: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    def clocked(run: Callable[[], Any]) -> float:
        return gpu_denoisers.median_ms(run, device, rounds)

    branches = [_branch(denoiser, call, index) for index in range(2)]
    together, apart = clocked(batched), clocked(branches[1])
    eager = {**what, "backend": "eager", "mode": "one-device"}
    yield {**eager, "step_ms": together, "branch_ms": apart, "ratio": together / apart}
    expected = torch.cat([only_tensor(run(), "denoiser")[0] for run in branches])
    begin = time.perf_counter()
    captured = capture(denoiser, call, batched)
    programs = build_programs(captured.program, "paper")
    captured_in = time.perf_counter() - begin
    values, sizes = call.inputs(captured.shared), sent_bytes(programs)
    for how in (EAGER, REGIONAL):
        own = {**what, "backend": how.backend, **sizes}
        own |= {} if how.backend == "eager" else {"scope": how.scope}
        begin = time.perf_counter()
        alone = Alone(programs, how, values, device)
        gpu_denoisers.synchronize(device)
        ready = time.perf_counter() - begin
        prediction = alone.step(0, Phase.SERIAL)["prediction"]
        serial, stage = (
            [clocked(partial(alone.step, rank, phase)) for rank in range(2)] for phase in Phase
        )
        yield {
            **own,
            "mode": "paper",
            "serial_ms": serial,
            "stage_ms": stage,
            "capture_seconds": captured_in,
            "compile_seconds_cold": ready,
            "max_abs_error": float((prediction - expected).abs().max()),
            "largest": float(expected.abs().max()),
        }
        if how.backend != "eager":  # the other side of the ratio is compiled by blocks as well
            gpu_denoisers.compile_blocks(denoiser)
            together = clocked(batched)
            yield {
                **own,
                "mode": "one-device",
                "note": "blocks, by torch.compile",
                "step_ms": together,
            }
        for link, rate in LINKS.items():
            times = projected(serial, stage, sizes["cut_bytes"], sizes["prediction_bytes"], rate)
            for mode, steps in times.items():
                row = {**own, "mode": mode, "link": link, "predicted_step_ms": steps}
                yield {**row, "predicted_speedup": together / mean_step_ms(mode, steps)}


def sent_bytes(programs: dict[Phase, StepProgram]) -> dict[str, int]:
    """Bytes of the two data links of a pipelined step: the cut, and the prediction."""
    sizes = {}
    for rank, name in enumerate(("cut_bytes", "prediction_bytes")):
        sends = filter(ops.is_send, programs[Phase.PIPELINED].graphs[rank].graph.nodes)
        data = [n.args[0].meta["val"] for n in sends if n.args[3] == ops.group_name(rank, 1 - rank)]
        sizes[name] = sum(t.numel() * t.element_size() for t in data)
    return sizes


def projected(
    serial: list[float], stage: list[float], cut: int, prediction: int, rate: float
) -> dict[str, dict[str, float]]:
    """Milliseconds of a step on two devices, by mode and phase, from each rank's time alone.

    Serial, rank 0 waits for rank 1's prediction. Pipelined, it also sends the cut, and the step
    ends when both have arrived. Latencies and the driver's own work are left out.
    """
    x, e = 1e3 * cut / rate, 1e3 * prediction / rate
    exact = max(serial[0], serial[1] + e)
    pipelined = max(stage[0] + x, stage[1] + e)
    return {"exact": {"serial": exact}, "paper": {"serial": exact, "pipelined": pipelined}}


def mean_step_ms(mode: str, steps: dict[str, float]) -> float:
    """A run's mean step: in paper mode, K of STEPS steps are pipelined."""
    if mode == "exact":
        return steps["serial"]
    return (K * steps["pipelined"] + (STEPS - K) * steps["serial"]) / STEPS
