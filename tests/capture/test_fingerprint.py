import functools
from collections.abc import Callable
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


def with_settings() -> toy.Toy:
    denoiser = toy.seeded(toy.Toy)
    assert isinstance(denoiser, toy.Toy)
    vars(denoiser.up)["processor"] = Processor()
    denoiser.add_module("lora", Lora(denoiser.conv_out))
    return denoiser.eval()


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
