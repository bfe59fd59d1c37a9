"""A denoiser that cannot be exported, as the one node of a graph: a leaf, which each rank calls.

Nothing looks into a leaf. So it is not cut, compiled or packaged, and each rank has the module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.state import kept
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import Leaf, Parent
from hybridiff_compile.randomness import random_state


class DenoiserLeaf(Leaf):
    """Calls a denoiser's own forward, `(the tensors of a call, in order) -> prediction`.

    Args:
        denoiser: held, and no child: whoever walks through a program's modules ends here.
        call: whose constants are given with the tensors.
        form: of its answer.
    """

    def __init__(self, denoiser: nn.Module, call: DenoiserCall, form: Form) -> None:
        super().__init__()
        self._held, self._form = (denoiser,), form
        self._is_tensor = [isinstance(leaf, torch.Tensor) for leaf in call.leaves]
        self._call = _filled(call, [None] * len(call.tensors()), self._is_tensor)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the prediction, [rows, ...]."""
        (denoiser,) = self._held
        call = _filled(self._call, tensors, self._is_tensor)
        # Its class's: on rank 0 the forward of the object itself is routed to whoever asks this.
        own: Callable[..., Any] = type(denoiser).forward.__get__(denoiser)
        return self._form.pack(call.given_to(own))


def leaf_graphs(
    denoiser: nn.Module, calls: Sequence[DenoiserCall], answers: Sequence[Any]
) -> list[fx.GraphModule]:
    """A graph `(tensor arguments) -> prediction` for each call; alike calls have the same one.

    Args:
        denoiser: with its own forward in place.
        calls: of one step.
        answers: what it returned to each; of one form.

    Raises:
        CaptureError: it draws random numbers, which ranks would each draw for themselves.
    """
    name = type(denoiser).__name__
    _check_draws(denoiser, calls[0])
    made = dict[Signature, fx.GraphModule]()
    for call, answer in zip(calls, answers, strict=True):
        if call.signature() not in made:
            made[call.signature()] = _graph(denoiser, call, Form.of(answer, name), answer)
    return [made[call.signature()] for call in calls]


def _graph(denoiser: nn.Module, call: DenoiserCall, form: Form, answer: Any) -> fx.GraphModule:
    fake, graph = FakeTensorMode(), fx.Graph()
    inputs = []
    for name, tensor in call.tensors().items():
        inputs.append(graph.placeholder(name))
        inputs[-1].meta = {"val": fake.from_tensor(tensor.detach())}
    result = graph.create_node("call_module", "leaf", tuple(inputs), name="prediction")
    result.meta = {"val": fake.from_tensor(form.pack(answer).detach())}
    graph.output(result)
    return Parent({"leaf": DenoiserLeaf(denoiser, call, form)}, graph, class_name="Denoiser")


def _filled(
    call: DenoiserCall, tensors: Sequence[torch.Tensor | None], is_tensor: Sequence[bool]
) -> DenoiserCall:
    """The call with other tensors in the places of its own."""
    given, pairs = iter(tensors), zip(is_tensor, call.leaves, strict=True)
    return replace(call, leaves=tuple(next(given) if is_one else leaf for is_one, leaf in pairs))


def _check_draws(denoiser: nn.Module, call: DenoiserCall) -> None:
    device = next(iter(call.tensors().values())).device
    before = random_state(device)
    with kept(denoiser), torch.no_grad():
        call.given_to(denoiser)
    if not all(map(torch.equal, before, random_state(device))):
        raise CaptureError(
            f"{type(denoiser).__name__} draws random numbers, which ranks would each draw for "
            "themselves"
        )
