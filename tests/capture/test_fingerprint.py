import functools
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.fingerprint import Watch, fingerprint
from tests import toy


class Lora(nn.Module):
    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.scaling = {"default": 1.0}
        self.active = ["default"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.scaling["default"]


class Processor:
    def __init__(self) -> None:
        self.steps = [{"strength": 0.5}]


class OtherProcessor(Processor):
    pass


toy_settings = ModuleType("tests.toy_settings")
vars(toy_settings)["strength"] = 1.0
STRENGTH = 1.0
SCALES = {"all": {"up": 1.0}}
SETTINGS = SimpleNamespace(strength=1.0)


class Options:
    strength = 1.0


class Slotted:
    __slots__ = ("strength",)

    def __init__(self) -> None:
        self.strength = 1.0


class Elsewhere:
    """A processor whose settings are not in it."""

    strength = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.strength * self._strength()

    def _strength(self) -> float:
        return STRENGTH * helper() * SETTINGS.strength * Options.strength


class Owner:
    def __init__(self) -> None:
        self.strength = 1.0

    def hook(self, module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out * self.strength * toy_settings.strength


def helper() -> float:
    return SCALES["all"]["up"]


def hook_of(settings: dict[str, float], own: Slotted) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, args: Any, out: torch.Tensor, more: Any = None) -> torch.Tensor:
        return out * settings["strength"] * own.strength

    return torch.no_grad()(hook)


def with_settings() -> toy.Toy:
    denoiser = toy.seeded(toy.Toy)
    assert isinstance(denoiser, toy.Toy)
    vars(denoiser.up)["processor"] = Processor()
    denoiser.add_module("lora", Lora(denoiser.conv_out))
    return denoiser.eval()


def with_hooks() -> tuple[toy.Toy, Owner, dict[str, float], Slotted, Iterator[int]]:
    """A denoiser whose hooks and processor read settings that no module has."""
    denoiser, owner, slotted, settings = with_settings(), Owner(), Slotted(), {"strength": 1.0}
    counter = itertools.count()
    vars(denoiser.up)["processor"] = Elsewhere()
    denoiser.up.register_forward_hook(owner.hook)
    denoiser.down.register_forward_hook(hook_of(settings, slotted))
    denoiser.embed.register_forward_hook(functools.partial(lambda n, *_: next(n), counter))
    return denoiser, owner, settings, slotted, counter


def own_call(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x


class OtherToy(toy.Toy):
    pass


#: What is set, to what, and of which of `with_hooks`.
SET: dict[str, Callable[[pytest.MonkeyPatch, tuple[Any, ...]], Any]] = {
    "a global": lambda m, _: m.setattr(sys.modules[__name__], "STRENGTH", 2.0),
    "in a global dict, by a helper": lambda m, _: m.setitem(SCALES["all"], "up", 2.0),
    "in a global object": lambda m, _: m.setattr(SETTINGS, "strength", 2.0),
    "in a global class": lambda m, _: m.setattr(Options, "strength", 2.0),
    "in a module": lambda m, _: m.setattr(toy_settings, "strength", 2.0),
    "the class of a processor": lambda m, _: m.setattr(Elsewhere, "strength", 2.0),
    "the code of a processor": lambda m, _: m.setattr(Elsewhere, "__call__", own_call),
    "the code of a denoiser": lambda m, _: m.setattr(toy.Toy, "forward", own_call),
    "the object of a method": lambda m, made: m.setattr(made[1], "strength", 2.0),
    "a closure's dict": lambda m, made: m.setitem(made[2], "strength", 2.0),
    "a slot": lambda m, made: m.setattr(made[3], "strength", 2.0),
    "an iterator": lambda m, made: next(made[4]),
    "a default": lambda m, _: m.setattr(helper, "__defaults__", (1,)),
    "an attribute of a function": lambda m, _: m.setattr(helper, "note", 1, raising=False),
    "the class of a module": lambda m, made: m.setattr(made[0], "__class__", OtherToy),
}


@pytest.mark.parametrize("what", SET)
def test_what_is_set_elsewhere_changes_the_fingerprint(what: str, monkeypatch: pytest.MonkeyPatch):
    made = with_hooks()
    before, watch = fingerprint(made[0]), Watch(made[0])
    assert watch.holds()
    SET[what](monkeypatch, made)
    assert fingerprint(made[0]) != before
    assert not watch.holds()
    monkeypatch.undo()
    assert (fingerprint(made[0]) == before) == (what != "an iterator")


def test_what_nobody_reads_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    made = with_hooks()
    watch = Watch(made[0])
    monkeypatch.setattr(sys.modules[__name__], "UNREAD", 1, raising=False)
    monkeypatch.setattr(toy_settings, "unread", 1, raising=False)
    logging.getLogger(__name__).isEnabledFor(7)
    assert watch._look.is_untouched()


def test_what_went_from_one_list_into_the_next_is_seen():
    denoiser = with_settings()
    processor: Any = denoiser.up.processor
    processor.first, processor.second = [1], [2]
    watch = Watch(denoiser)
    processor.first.append(processor.second.pop())
    assert not watch.holds()


def test_an_equal_hook_is_the_same():
    """Pipelines and scripts make theirs anew for each picture."""
    denoiser = with_settings()
    handle = denoiser.up.register_forward_hook(hook_of({"strength": 1.0}, Slotted()))
    watch = Watch(denoiser)
    hooks = denoiser.up._forward_hooks
    hooks[handle.id] = hook_of({"strength": 1.0}, Slotted())
    assert watch.holds()
    hooks[handle.id] = hook_of({"strength": 2.0}, Slotted())
    assert not watch.holds()


def replace_module(denoiser: toy.Toy) -> None:
    denoiser.down = Lora(denoiser.down)  # pyright: ignore[reportAttributeAccessIssue]


def write_in_place(denoiser: toy.Toy) -> None:
    with torch.no_grad():
        denoiser.up.weight.mul_(1.5)


def write_buffer(denoiser: toy.Toy) -> None:
    denoiser.scale.add_(1)


def replace_parameter(denoiser: toy.Toy) -> None:
    denoiser.up.weight = nn.Parameter(denoiser.up.weight.detach().clone())


def set_data(denoiser: toy.Toy) -> None:
    denoiser.up.weight.data = denoiser.up.weight.detach().clone()


def change_attribute(denoiser: toy.Toy) -> None:
    denoiser.down.stride_note = "2"  # pyright: ignore


def scale_lora(denoiser: toy.Toy) -> None:
    denoiser.lora.scaling["default"] = 0.5  # pyright: ignore


def switch_adapter(denoiser: toy.Toy) -> None:
    denoiser.lora.active = ["other"]  # pyright: ignore


def add_hook(denoiser: toy.Toy) -> None:
    denoiser.up.register_forward_hook(lambda module, args, out: None)


def add_pre_hook(denoiser: toy.Toy) -> None:
    denoiser.up.register_forward_pre_hook(lambda module, args: None)


def set_processor(denoiser: toy.Toy) -> None:
    denoiser.up.processor = OtherProcessor()  # pyright: ignore


def set_inside_a_processor(denoiser: toy.Toy) -> None:
    denoiser.up.processor.steps[0]["strength"] = 0.25  # pyright: ignore


def replace_a_function(denoiser: toy.Toy) -> None:
    denoiser.up.forward = functools.partial(type(denoiser.up).forward, denoiser.up)


def rename_a_setting(denoiser: toy.Toy) -> None:
    scaling: dict[str, float] = denoiser.lora.scaling  # pyright: ignore
    scaling["other"] = scaling.pop("default")


def remove_module(denoiser: toy.Toy) -> None:
    del denoiser.embed


@pytest.mark.parametrize(
    "change",
    [
        replace_module,
        write_in_place,
        write_buffer,
        replace_parameter,
        set_data,
        change_attribute,
        scale_lora,
        switch_adapter,
        add_hook,
        add_pre_hook,
        set_processor,
        set_inside_a_processor,
        replace_a_function,
        rename_a_setting,
        remove_module,
        lambda d: d.train(),
        lambda d: d.half(),
    ],
)
def test_changed_denoiser_has_another_fingerprint(change: Callable[[toy.Toy], None]):
    denoiser = with_settings()
    before, watch = fingerprint(denoiser), Watch(denoiser)
    assert watch.holds()
    change(denoiser)
    assert fingerprint(denoiser) != before
    assert not watch.holds()


def test_running_or_reading_a_denoiser_changes_nothing():
    denoiser = with_settings()
    before = fingerprint(denoiser)
    toy.run(denoiser, toy.call_of())
    denoiser.state_dict()
    denoiser.eval()
    denoiser.to("cpu")
    assert fingerprint(denoiser) == before


def test_capturing_a_denoiser_changes_nothing():
    denoiser = with_settings()
    before = fingerprint(denoiser)
    toy.capture_of(denoiser, toy.call_of())
    assert fingerprint(denoiser) == before


def test_attribute_that_is_set_back_is_as_before():
    denoiser = with_settings()
    before, watch = fingerprint(denoiser), Watch(denoiser)
    denoiser.train()
    denoiser.eval()
    denoiser.up.processor = Processor()  # pyright: ignore - an equal one
    assert fingerprint(denoiser) == before
    assert watch.holds()


def test_what_holds_itself_ends():
    denoiser = with_settings()
    processor: Any = denoiser.up.processor
    processor.owner, processor.steps = denoiser.up, [processor]
    assert Watch(denoiser).holds()
