"""A denoiser that cannot be exported, as the one node of a graph: a leaf, which each rank calls.

Nothing looks into a leaf. So it is not cut, compiled or packaged, and each rank has the module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.capture.differing import of_another_picture
from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.capture.place import PLAIN, Names
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.state import State, kept
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import Leaf, Parent
from hybridiff_compile.randomness import random_numbers_now, random_state


class DenoiserLeaf(Leaf):
    """Calls a denoiser's own forward, `(the tensors of a call, in order) -> prediction`.

    What a program could not do, and was not seen when the leaf was made, is noted in `Leaf.told`:
    an error, an answer of another form, random numbers, something that it keeps from call to call.
    What is returned then means nothing.

    Args:
        denoiser: held, and no child: whoever walks through a program's modules ends here.
        call: whose constants are given with the tensors.
        form: of its answer.
        prediction: of a shape and dtype like this one.
    """

    def __init__(
        self, denoiser: nn.Module, call: DenoiserCall, form: Form, prediction: torch.Tensor
    ) -> None:
        super().__init__()
        self._held, self._form = (denoiser,), form
        self._is_tensor = [isinstance(leaf, torch.Tensor) for leaf in call.leaves]
        self._call = _filled(call, [None] * len(call.tensors()), self._is_tensor)
        self._shape, self._dtype = tuple(prediction.shape), prediction.dtype
        self._before: tuple[Watch, State] | None = None  # what it was after the last call

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process; with the settings that another one lacks."""
        return {**self.__dict__, "_before": None, "_settings": settings(self._held[0])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process."""
        for owner, values in state.pop("_settings"):
            place = importlib.import_module(owner) if isinstance(owner, str) else owner
            for name, value in values.items():
                setattr(place, name, value)
        self.__dict__.update(state)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the prediction, [rows, ...]; zeros if something was told."""
        (denoiser,) = self._held
        call = _filled(self._call, tensors, self._is_tensor)
        put_back = random_numbers_now(tensors[0].device)
        state = random_state(tensors[0].device)
        try:
            # Its class's: on rank 0 the forward of the object itself is routed to whoever asks.
            own: Callable[..., Any] = type(denoiser).forward.__get__(denoiser)
            answer = call.given_to(own)
            told = self._other_form(answer) or self._left(denoiser, call, own)
            if not all(map(torch.equal, state, random_state(tensors[0].device))):
                told = "it draws random numbers, which ranks would each draw for themselves"
        except Exception as e:  # the denoiser's own, which the pipeline is to see
            told, answer = f"{type(e).__name__}: {e}", None
        if not told:
            return self._form.pack(answer)
        put_back()
        Leaf.told.append(told)
        return tensors[0].new_zeros(self._shape, dtype=self._dtype)

    def _other_form(self, answer: Any) -> str:
        (denoiser,) = self._held
        packed = self._form.pack(answer)
        is_same = Form.of(answer, type(denoiser).__name__) == self._form
        if is_same and (tuple(packed.shape), packed.dtype) == (self._shape, self._dtype):
            return ""
        return "its answer has another form than before"

    def _left(self, denoiser: nn.Module, call: DenoiserCall, own: Callable[..., Any]) -> str:
        """What it keeps from call to call; a table that is made once is no such thing."""
        if self._before is None:
            self._before = Watch(denoiser), State.of(denoiser)
        watch, before = self._before
        if watch.holds():
            return ""
        written, between = before.written(), State.of(denoiser)
        of_another_picture(call).given_to(own)
        if not (changing := written or between.changes()):
            self._before = Watch(denoiser), State.of(denoiser)
            return ""
        before.restore()
        self._before = None
        lost = Leaf.LOST if written else ""
        return f"it keeps something from call to call ({changing[0]}){lost}"


def settings(denoiser: nn.Module) -> list[tuple[str | type, dict[str, Any]]]:
    """Plain values that its code reads in modules and classes: another process imports its own.

    Returns:
        (name of a module, or class; values by name).
    """
    found: list[tuple[str | type, dict[str, Any]]] = []
    for held in State.of(denoiser).held:
        owner = held.place.owner
        of_module = owner.get("__name__") if isinstance(owner, dict) else None
        named = of_module if isinstance(of_module, str) and of_module in sys.modules else owner
        if isinstance(held.place, Names) and isinstance(named, str | type):
            plain = {n: v for n, v in held.content.items() if isinstance(v, PLAIN)}
            found += [(named, plain)] if plain else []
    return found


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
    leaf = DenoiserLeaf(denoiser, call, form, result.meta["val"])
    return Parent({"leaf": leaf}, graph, class_name="Denoiser")


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
