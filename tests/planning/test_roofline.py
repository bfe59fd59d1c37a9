import pytest
import torch
from torch import Tensor, fx, nn

from hybridiff_compile.passes.balance import node_flops
from hybridiff_compile.planning import roofline
from hybridiff_compile.planning.devices import COMPUTE, LAUNCH, MEMORY, Device
from hybridiff_compile.planning.roofline import kernel_seconds
from tests import toy
from tests.passes.test_balance import exported

DEVICE = Device(
    "round", flops=1e12 / COMPUTE, flops32=1e11 / COMPUTE, memory_rate=1e9 / MEMORY, memory=1e9
)


def test_a_kernel_takes_its_flops_or_its_bytes_or_a_launch():
    assert kernel_seconds(DEVICE, 10**9, 0, 0) == pytest.approx(1e-3)
    assert kernel_seconds(DEVICE, 0, 3 * 10**6, 10**6) == pytest.approx(4e-3)
    assert kernel_seconds(DEVICE, 1, 1, 1) == LAUNCH


def test_what_computes_in_32_bits_has_the_rate_of_32_bits():
    assert kernel_seconds(DEVICE, 10**9, 0, 0, wide=True) == pytest.approx(1e-2)


def test_a_batch_reads_the_weights_once():
    assert kernel_seconds(DEVICE, 10**6, 10**6, 10**6, batch=2) == pytest.approx(3e-3)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        wide = self.layer(sample.unflatten(-1, (2, 8)).flatten(-2)) * timestep
        return wide.transpose(0, 1).sin().transpose(0, 1)


@pytest.fixture(scope="module")
def two() -> fx.GraphModule:
    return exported(toy.seeded(Two), torch.randn(1, 4, 16), torch.tensor(2.0))


#: So slow that flops count, or bytes, and no launch does.
BY_FLOPS = Device("flops", flops=1, flops32=0.5, memory_rate=1e30, memory=1)
BY_BYTES = Device("bytes", flops=1e30, flops32=1e30, memory_rate=1, memory=1)


def by_name(module: fx.GraphModule, device: Device, batch: int = 1) -> dict[str, float]:
    return {n.name: s for n, s in roofline.seconds(module, device, batch).items()}


def test_only_what_runs_a_kernel_takes_time(two):
    size, weights = 4 * 16 * 4, 16 * 16 * 4
    found = by_name(two, BY_BYTES)
    assert list(found) == ["linear", "mul", "sin"]
    bytes_moved = {"linear": 2 * size + weights, "mul": 2 * size + 4, "sin": 2 * size}
    assert found == pytest.approx({n: b / MEMORY for n, b in bytes_moved.items()})
    twice = {"linear": 4 * size + weights, "mul": 4 * size + 8, "sin": 4 * size}
    assert by_name(two, BY_BYTES, 2) == pytest.approx({n: b / MEMORY for n, b in twice.items()})


def test_flops_are_those_of_torch_at_the_rate_of_the_dtype(two):
    assert sum(node_flops(two).values()) == 2 * 4 * 16 * 16
    wide = {"linear": 2 * 4 * 16 * 16 / (COMPUTE * 0.5), "mul": LAUNCH, "sin": LAUNCH}
    assert by_name(two, BY_FLOPS) == pytest.approx(wide)
    half = exported(toy.seeded(Two).half(), torch.randn(1, 4, 16).half(), torch.tensor(2.0).half())
    assert by_name(half, BY_FLOPS)["linear"] == pytest.approx(2 * 4 * 16 * 16 / COMPUTE)


def test_peak_counts_what_is_alive_and_views_once(two):
    size, scalar = 4 * 16 * 4, 4
    # while `linear` runs: its input (seen through views) and its output, and the timestep.
    assert roofline.peak_bytes(two) == 2 * size + scalar


def test_peak_holds_a_skip_connection_until_it_is_read():
    class Skip(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            first = sample * timestep
            x = first.sin()
            x = x.cos()
            return x + first

    module = exported(Skip(), torch.randn(1, 100), torch.tensor(2.0))
    assert roofline.peak_bytes(module) == 3 * 400
