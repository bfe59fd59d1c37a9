import pytest
import torch
from torch import Tensor, fx, nn

from hybridiff_compile.passes.balance import node_flops
from hybridiff_compile.planning import roofline
from hybridiff_compile.planning.devices import COMPUTE, LAUNCH, MEMORY, Device
from hybridiff_compile.planning.roofline import Work
from tests import toy
from tests.passes.test_balance import exported

DEVICE = Device(
    "round", flops=1e12 / COMPUTE, flops32=1e11 / COMPUTE, memory_rate=1e9 / MEMORY, memory=1e9
)


def test_a_node_takes_its_flops_or_its_bytes_or_a_launch():
    assert Work(flops=10**9, values=0, weights=0).seconds(DEVICE) == pytest.approx(1e-3)
    assert Work(flops=0, values=3 * 10**6, weights=10**6).seconds(DEVICE) == pytest.approx(4e-3)
    assert Work(flops=1, values=1, weights=1).seconds(DEVICE) == LAUNCH


def test_what_computes_in_32_bits_has_the_rate_of_32_bits():
    assert Work(10**9, 0, 0, wide=True).seconds(DEVICE) == pytest.approx(1e-2)


def test_a_batch_reads_the_weights_once():
    work = Work(flops=10**6, values=10**6, weights=10**6)
    assert work.seconds(DEVICE, batch=2) == pytest.approx(3e-3)
    assert roofline.seconds([work, work], DEVICE) == pytest.approx(4e-3)


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


def test_only_what_runs_a_kernel_works(two):
    found = {n.name: w for n, w in roofline.work(two).items()}
    assert list(found) == ["linear", "mul", "sin"]
    size = 4 * 16 * 4
    assert found["linear"] == Work(2 * 4 * 16 * 16, 2 * size, 16 * 16 * 4, wide=True)
    assert found["mul"] == Work(0, 2 * size + 4, 0, wide=True)  # and the timestep
    assert found["sin"] == Work(0, 2 * size, 0, wide=True)


def test_what_computes_in_16_bits_is_not_wide():
    half = exported(toy.seeded(Two).half(), torch.randn(1, 4, 16).half(), torch.tensor(2.0).half())
    assert {w.wide for w in roofline.work(half).values()} == {False}


def test_flops_are_those_of_torch(two):
    assert sum(w.flops for w in roofline.work(two).values()) == sum(node_flops(two).values()) > 0


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
