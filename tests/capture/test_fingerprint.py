from collections.abc import Callable

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.fingerprint import fingerprint
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
    denoiser.up.processor = Processor()  # pyright: ignore


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
        remove_module,
        lambda d: d.train(),
        lambda d: d.half(),
    ],
)
def test_changed_denoiser_has_another_fingerprint(change: Callable[[toy.Toy], None]):
    denoiser = with_settings()
    before = fingerprint(denoiser)
    change(denoiser)
    assert fingerprint(denoiser) != before


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
    before = fingerprint(denoiser)
    denoiser.train()
    denoiser.eval()
    assert fingerprint(denoiser) == before
