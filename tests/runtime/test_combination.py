"""Weights that are known in advance, read off what a pipeline would give its scheduler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hybridiff_compile.runtime.combination import (
    WORST,
    View,
    not_uncond_cond,
    read,
    weighted_error,
)

SHAPE = (4, 16, 16)
G = torch.Generator()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    G.manual_seed(0)


def groups(n: int, batch: int = 1, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    """Predictions that are much alike, as those of one noisy picture are."""
    common = random(batch, *shape)
    return [common + 0.1 * random(batch, *shape) for _ in range(n)]


def fitted(
    prediction: torch.Tensor, given: torch.Tensor, sample: torch.Tensor | None = None
) -> tuple[list[list[float]], bool]:
    view = View.of(prediction, given, sample)
    assert view is not None
    weights, known = read(view, prediction, given, sample)
    return weights.tolist(), bool(known)


def near(weights: list[list[float]], *expected: list[float], rel: float = 1e-3) -> bool:
    return all(
        w == pytest.approx(e, rel=rel, abs=rel) for w, e in zip(weights, expected, strict=True)
    )


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 5.0, 7.5, 30.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_weights_of_guidance(w: float, batch: int) -> None:
    u, c = groups(2, batch)
    weights, known = fitted(torch.cat([u, c]), u + w * (c - u))
    assert known
    assert near(weights, [1 - w, w])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(dtype: torch.dtype) -> None:
    u, c = (x.to(dtype) for x in groups(2, shape=(4, 64, 64)))
    weights, known = fitted(torch.cat([u, c]), u + 7.5 * (c - u))
    assert known
    assert near(weights, [-6.5, 7.5], rel=0.02)


def test_float64_is_read_too() -> None:
    u, c = (x.double() for x in groups(2))
    assert near(fitted(torch.cat([u, c]), u + 5 * (c - u))[0], [-4.0, 5.0])


def test_three_groups_of_rows() -> None:
    a, b, c = groups(3, 2)
    weights, known = fitted(torch.cat([a, b, c]), c + 7 * (a - b) + 1.5 * (b - c))
    assert known
    assert near(weights, [7.0, -5.5, -0.5])


Made = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda u, c: -(u + 5 * (c - u)), [4.0, -5.0]),  # a flow whose time runs backwards
        (lambda u, c: c + 4 * (c - u), [-4.0, 5.0]),  # another convention of the scale
        (lambda u, c: u, [1.0, 0.0]),
        (lambda u, c: 0.5 * (u + 5 * (c - u)), [-2.0, 2.5]),
    ],
)
def test_sums_other_than_one(made: Made, expected: list[float]) -> None:
    u, c = groups(2)
    weights, known = fitted(torch.cat([u, c]), made(u, c))
    assert known
    assert near(weights, expected)


def test_guidance_rescaled_by_picture() -> None:
    """As `rescale_noise_cfg` does it: the guided prediction takes the spread of the conditional."""
    u, c = groups(2, 3)
    guided = u + 7.5 * (c - u)
    dims = (1, 2, 3)
    rescaled = guided * c.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    given = 0.7 * rescaled + 0.3 * guided
    weights, known = fitted(torch.cat([u, c]), given)
    assert known
    ((a, b),) = weights
    assert b / (a + b) == pytest.approx(7.5, rel=0.05)


def test_guidance_rescaled_by_token() -> None:
    """No weighted sum of whole groups: the nearest one."""
    u, c = groups(2, shape=(64, 32))
    guided = u + 4 * (c - u)
    given = guided * c.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    weights, known = fitted(torch.cat([u, c]), given)
    assert known
    ((a, b),) = weights
    assert b / (a + b) == pytest.approx(4, rel=0.1)


def test_prediction_converted_with_the_noisy_picture() -> None:
    (u, c), x = groups(2), random(1, *SHAPE)
    guided = u + 5 * (c - u)
    weights, known = fitted(torch.cat([u, c]), (x - guided) / 0.3, x)
    assert known
    assert near(weights, [4 / 0.3, -5 / 0.3])
    weights, known = fitted(torch.cat([u, c]), 0.8 * guided + 0.6 * x, x)  # v to epsilon
    assert known
    assert near(weights, [-3.2, 4.0])
    assert not fitted(torch.cat([u, c]), 0.8 * guided + 0.6 * x)[1]  # without it, it is no sum


def test_learned_variance_is_left_out() -> None:
    u, c = groups(2, shape=(8, 16, 16))
    guided, x = u + 5 * (c - u), random(1, *SHAPE)
    assert near(fitted(torch.cat([u, c]), guided[:, :4], x)[0], [-4.0, 5.0])
    # DeepFloyd IF gives the variance of the conditional half along, unguided.
    along = torch.cat([guided[:, :4], c[:, 4:]], 1)
    weights, known = fitted(torch.cat([u, c]), along, x)
    assert known
    assert near(weights, [-4.0, 5.0])


def test_first_tokens_dropped_dimensions_and_several_predictions() -> None:
    u, c = groups(2, shape=(20, 32))
    assert near(fitted(torch.cat([u, c]), (u + 5 * (c - u))[:, :12])[0], [-4.0, 5.0])
    u, c = groups(2, shape=(4, 1, 16, 16))
    assert near(fitted(torch.cat([u, c]), (u + 5 * (c - u)).squeeze(2))[0], [-4.0, 5.0])
    u, c = groups(2, shape=(500,))  # two predictions side by side; the first is [10, 20]
    given = (u + 5 * (c - u))[:, :200].reshape(1, 10, 20)
    assert near(fitted(torch.cat([u, c]), given)[0], [-4.0, 5.0])


def test_batch_that_is_not_guided() -> None:
    prediction = torch.cat(groups(2, 2))
    weights, known = fitted(prediction, prediction)
    assert known
    assert near(weights, [1.0, 0.0], [0.0, 1.0])
    assert near(fitted(prediction, -prediction)[0], [-1.0, 0.0], [0.0, -1.0])
    twins = torch.cat([prediction[:1], prediction[:1]])
    weights, known = fitted(twins, twins)  # two prompts that are one, of one seed
    assert known
    assert near(weights, [1.0, 0.0], [0.0, 1.0])


def test_guided_batch_that_is_given_back_doubled() -> None:
    c, u = groups(2)
    guided = u + 4 * (c - u)
    weights, known = fitted(torch.cat([c, u]), torch.cat([guided, guided]))
    assert known
    assert near(weights, [4.0, -3.0], [4.0, -3.0])


def test_one_row() -> None:
    (p,) = groups(1)
    assert near(fitted(p, p)[0], [1.0])
    assert near(fitted(p, -2 * p)[0], [-2.0])


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_equal_groups_tell_no_weights(noise: float) -> None:
    u = random(1, *SHAPE)
    c = u + noise * random(1, *SHAPE)
    weights, known = fitted(torch.cat([u, c]), u + 5 * (c - u))
    assert not known
    assert weights == [[WORST, WORST]]


def test_what_is_no_sum_tells_no_weights() -> None:
    u, c = groups(2)
    assert fitted(torch.cat([u, c]), random(1, *SHAPE)) == ([[WORST, WORST]], False)
    assert fitted(torch.cat([u, c]), (u + 5 * (c - u)).clamp(-0.3, 0.3))[1] is False
    assert fitted(torch.cat([u, c]), torch.full((1, *SHAPE), float("nan")))[1] is False


def test_what_has_another_shape_is_not_looked_at() -> None:
    prediction = torch.cat(groups(2, 2))
    for given in (random(3, *SHAPE), random(2, 4, 32, 32), random(2, 9), torch.ones(())):
        assert View.of(prediction, given, None) is None
    assert View.of(prediction, torch.ones(2, *SHAPE, dtype=torch.long), None) is None


def test_error_is_weighted_by_what_guidance_makes_of_each_half() -> None:
    u, c = torch.full((1, 4), 2.0), torch.full((1, 4), 3.0)  # w = 5: guided = 2 + 5 = 7
    exact, weights, size = torch.cat([u, c]), torch.tensor([[-4.0, 5.0]]), torch.tensor([7.0])

    def error(estimate: torch.Tensor) -> float:
        return weighted_error(exact, estimate, weights, size).item()

    assert error(torch.cat([u + 0.1, c])) == pytest.approx(4 * 0.1 / 7)
    assert error(torch.cat([u, c - 0.1])) == pytest.approx(5 * 0.1 / 7)
    assert error(torch.cat([u + 0.1, c - 0.1])) == pytest.approx(9 * 0.1 / 7)
    assert error(exact) == 0


def test_error_of_pictures_that_are_not_guided_is_that_of_the_worse_one() -> None:
    exact = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    off = exact + torch.tensor([[0.1], [0.3]])
    error = weighted_error(exact, off, torch.eye(2), torch.tensor([1.0, 2.0]))
    assert error.item() == pytest.approx(0.15)


def test_order_of_the_batch() -> None:
    assert not_uncond_cond([[-4.0, 5.0]]) == ""
    assert not_uncond_cond([[4.0, -5.0]]) == ""  # negated
    assert "[cond, uncond]" in not_uncond_cond([[5.0, -4.0]])
    assert "3 groups" in not_uncond_cond([[7.0, -5.5, -0.5]])
    for weights in ([[0.5, 0.5]], [[0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0]], [[1.0, -1.0]]):
        assert "not combined as guidance" in not_uncond_cond(weights)
    assert "[cond, uncond]" in not_uncond_cond([[4.0, -3.0], [4.0, -3.0]])
