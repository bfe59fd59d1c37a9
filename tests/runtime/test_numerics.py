"""All ranks compute as the driver does: a switch of one process alone would be two answers."""

from collections.abc import Iterator

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.runtime import messages, numerics
from tests import pipelines

SWITCH = "mkldnn.matmul.fp32_precision"


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = numerics.current()
    yield
    numerics.apply(before)
    assert numerics.current() == before


def test_applied_switches_are_those_of_the_other_process():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True)
    theirs = numerics.current()
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)
    assert numerics.current() != theirs
    numerics.apply(theirs)
    assert numerics.current() == theirs
    assert torch.are_deterministic_algorithms_enabled()


def test_switch_that_this_torch_lacks_is_left_alone():
    numerics.apply({**numerics.current(), "mkldnn.no_such.switch": 1})


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_process_set_like_another_may_be_asked_by_the_older_names_too(precision):
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = False
    theirs = numerics.current()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    numerics.apply(theirs)
    assert numerics.current() == theirs
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_exact_keeps_the_bits_of_a_driver_with_another_attention():
    def apart() -> torch.Tensor:
        with hybridiff_compile.optimize(pipelines.shallow(), gpus=1, mode="exact") as model:
            return pipelines.latents(model, "small-sd3", num_inference_steps=2)

    before = apart()
    torch.backends.cuda.enable_flash_sdp(False)
    expected = apart()
    with hybridiff_compile.optimize(pipelines.shallow(), mode="exact") as model:
        result = pipelines.latents(model, "small-sd3", num_inference_steps=2)
    assert torch.equal(result, expected)
    assert not torch.equal(expected, before)


def test_worker_is_told_at_the_start_and_of_every_change(monkeypatch):
    told = []
    send = messages.send
    monkeypatch.setattr(messages, "send", lambda c, m: (told.append(m), send(c, m))[1])
    with hybridiff_compile.optimize(pipelines.shallow()) as model:
        call = {"num_inference_steps": 2}
        pipelines.latents(model, "small-sd3", **call)
        pipelines.latents(model, "small-sd3", **call)
        numerics.apply({**numerics.current(), SWITCH: "ieee"})
        pipelines.latents(model, "small-sd3", **call)
    agreed = [m.numerics[SWITCH] for m in told if isinstance(m, messages.Agree)]
    assert agreed == [agreed[0], "ieee"]
    assert agreed[0] != "ieee"
