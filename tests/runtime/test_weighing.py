"""The weights of a run: what is kept, what is assumed, and that nothing waits for a device."""

from __future__ import annotations

import pytest
import torch

from hybridiff_compile.runtime.combination import WORST
from hybridiff_compile.runtime.weighing import Weighing

SHAPE = (1, 4, 16, 16)


def halves(seed: int = 0, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    common, u, c = (torch.randn(SHAPE, generator=g) for _ in range(3))
    return (common + 0.1 * u).to(device), (common + 0.1 * c).to(device)


def looked(weighing: Weighing, step: int, w: float = 5.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Look at a guided step: its prediction, and the guided one."""
    u, c = halves(step)
    guided = u + w * (c - u)
    weighing.look(step, torch.cat([u, c]), guided, None)
    return torch.cat([u, c]), guided


def error(weighing: Weighing, prediction: torch.Tensor, off_u: float, off_c: float) -> float:
    off = torch.tensor([off_u, off_c])[:, None, None, None]
    return float(weighing.error(prediction, prediction + off))


def test_error_is_that_of_the_weights_of_the_step() -> None:
    weighing = Weighing()
    for step, w in enumerate([5.0, 2.0, 7.5]):
        prediction, guided = looked(weighing, step, w)
        size = float(guided.abs().mean())
        for off in ((0.1, 0.0), (0.0, 0.1)):
            expected = (abs(w - 1) * off[0] + w * off[1]) / size
            assert error(weighing, prediction, *off) == pytest.approx(expected, rel=1e-3)


def test_last_weights_that_were_read_stay() -> None:
    weighing = Weighing()
    looked(weighing, 0)
    u, _ = halves(1)
    weighing.look(1, torch.cat([u, u]), u, None)  # equal halves tell nothing
    size = float(u.abs().mean())
    assert error(weighing, torch.cat([u, u]), 0.1, 0.1) == pytest.approx(0.9 / size, rel=1e-3)
    assert not weighing.are_unknown()
    assert weighing.not_uncond_cond(1) == ""


def test_worst_is_assumed_before_any_were_read() -> None:
    weighing = Weighing()
    u, c = halves()
    prediction, strange = torch.cat([u, c]), torch.randn(SHAPE)
    weighing.look(0, prediction, strange, None)
    size = float(prediction.abs().mean().minimum(strange.abs().mean()))
    assert error(weighing, prediction, 0.1, 0.0) == pytest.approx(WORST * 0.1 / size, rel=1e-3)
    # A tiny input of the scheduler makes it worse, a huge one, in another unit, no better.
    weighing.look(1, prediction, 1000 * strange, None)
    whole = float(prediction.abs().mean())
    assert error(weighing, prediction, 0.1, 0.0) == pytest.approx(WORST * 0.1 / whole, rel=1e-3)
    assert weighing.are_unknown()
    assert "does not tell which half" in str(weighing.not_uncond_cond(1))


@pytest.mark.parametrize("given", [None, torch.zeros(1, 3, 5)])
def test_input_of_another_shape_is_taken_for_the_worst(given: torch.Tensor | None) -> None:
    weighing = Weighing()
    prediction, _ = looked(weighing, 0)
    weighing.look(1, prediction, given, None)
    size = float(prediction.abs().mean())
    assert error(weighing, prediction, 0.1, 0.2) == pytest.approx(WORST * 0.3 / size, rel=1e-3)


def test_weights_of_other_groups_are_not_kept() -> None:
    weighing = Weighing()
    looked(weighing, 0)
    three = torch.cat([*halves(1), halves(2)[0]])
    weighing.look(1, three, torch.randn(SHAPE), None)
    off = float(weighing.error(three, three + 0.1))
    assert off > 3 * WORST * 0.1 / 2


def test_order_is_told_by_the_steps_up_to_one() -> None:
    weighing = Weighing()
    assert weighing.not_uncond_cond(5) is None
    looked(weighing, 3)
    assert weighing.not_uncond_cond(2) is None
    assert weighing.not_uncond_cond(3) == ""
    looked(weighing, 4, w=-4.0)  # [cond, uncond] of scale 5
    assert weighing.not_uncond_cond(3) == ""
    assert "[cond, uncond]" in str(weighing.not_uncond_cond(4))


@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_is_read_from_the_device(rows: int) -> None:
    """A meta tensor has no values: whoever asks for one fails."""
    weighing = Weighing()
    prediction = torch.empty(2, *SHAPE[1:], device="meta")
    given = torch.empty(rows, *SHAPE[1:], device="meta")
    with pytest.raises(RuntimeError):
        bool(given.sum())
    readings = []
    for step in range(3):
        weighing.look(step, prediction, given, given)
        readings.append(weighing.error(prediction, prediction))
    with pytest.raises(RuntimeError):
        float(readings[-1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_a_gpu() -> None:
    weighing = Weighing()
    u, c = halves(device="cuda")
    given = u + 5 * (c - u)
    readings = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            weighing.look(step, torch.cat([u, c]), given, given)
            readings.append(weighing.error(torch.cat([u, c]), torch.cat([u, c])))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [float(reading) for reading in readings] == [0, 0, 0]
