"""Ops that do something else on another rank, or that it does not have, are not captured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import fx, library, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from hybridiff_compile.capture.alike import OF_TORCH, check_ops
from hybridiff_compile.errors import CaptureError
from tests import toy

Compute = Callable[[torch.Tensor], torch.Tensor]


class Computes(nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample + self.compute(sample)


@library.custom_op("tests_alike::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5


@halved.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def within_a_graph(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return 1e-7 * torch.rand_like(x)


def attended(x: torch.Tensor, p: float) -> torch.Tensor:
    x = x[:, None]
    return 1e-7 * scaled_dot_product_attention(x, x, x, dropout_p=p)[:, 0]


@pytest.mark.parametrize(
    ("compute", "op"),
    [
        (lambda x: 1e-7 * torch.randn(x.shape), "aten.randn"),
        (lambda x: 1e-7 * torch.zeros_like(x).normal_(), "aten.normal_"),
        (lambda x: 1e-7 * dropout(x, 0.5, training=True), "aten.dropout"),
        (lambda x: attended(x, 0.5), "aten.scaled_dot_product_attention"),
        (within_a_graph, "aten.rand_like"),
    ],
    ids=["noise", "in place", "dropout", "attention", "a graph within the graph"],
)
def test_random_numbers_are_not_captured_however_little_they_do(compute: Compute, op: str) -> None:
    with pytest.raises(CaptureError) as e:
        toy.capture_simple(Computes(compute))
    assert f"Computes draws random numbers ({op})" in str(e.value)
    assert ("eval() switches that off" in str(e.value)) == (op == "aten.dropout")


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: dropout(x, 0.5, training=False),
        lambda x: dropout(x, 0.0, training=True),
        lambda x: attended(x, 0.0),
    ],
    ids=["not trained", "of nothing", "attention"],
)
def test_ops_that_could_draw_and_do_not_are_captured(compute: Compute) -> None:
    toy.capture_simple(Computes(compute))


def test_an_op_of_the_users_own_is_not_captured_and_is_named() -> None:
    with pytest.raises(CaptureError, match="calls the op tests_alike::halved, which torch does"):
        toy.capture_simple(Computes(halved))


def test_ops_that_torch_export_writes_itself_are_known() -> None:
    op = torch.ops.export.access_subclass_inner_tensor.default
    graph = fx.Graph()
    graph.output(graph.call_function(op, (graph.placeholder("weight"), "data")))
    check_ops(fx.GraphModule({}, graph), "Quantised")


def test_a_worker_has_the_ops_that_are_taken_for_torch_s() -> None:
    code = (
        "import hybridiff_compile.worker, torch; "
        "print(*{name.split('::')[0] for name in torch._C._dispatch_get_all_op_names()})"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert set(OF_TORCH) <= set(done.stdout.split())
