"""What a pipeline makes of a batched prediction: a weighted sum of its groups of rows.

Guidance is such a sum: of [uncond, cond] it is (1 - w, w). The weights are read off one step, from
what the denoiser returned and what the scheduler was given, so that nothing has to be known of the
pipeline: neither where it keeps its scale, nor the order of its batch. All of it stays on the
device: nothing here waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Assumed of each group whose weight cannot be read: twice the largest default of diffusers'
#: pipelines that guide by a batch (10), and the end of the scale that people use.
WORST = 20.0

# Relative residual up to which a sum explains what the scheduler was given: rounding in bfloat16,
# of several operations, stays below the first; a rescaling by token or by picture below the second.
_EXACTLY, _ROUGHLY = 0.02, 0.25
# Two directions that differ by less than this share of a prediction are one, in float32.
_SAME = 1e-5
# Largest standard error of a weight.
_WOBBLE = 0.1
# The scale, and what is left of it, that says that a weight is above 1.
_ABOVE_ONE = 1.01


@dataclass(frozen=True)
class View:
    """How a prediction, [rows, ...], is seen where the scheduler is given what was made of it.

    Attributes:
        groups: n, of equal numbers of rows.
        given: J, how many groups the scheduler was given: 1, or all n.
        sizes: what it was given of each dimension but the rows: the first channels where a
            denoiser learns its variance, the first tokens where others are only read.
    """

    groups: int
    given: int
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, prediction: torch.Tensor, given: torch.Tensor, sample: torch.Tensor | None
    ) -> View | None:
        """Find how the scheduler's input lies in a prediction; None if it does not.

        Args:
            prediction: [rows, ...], that the denoiser returned.
            given: first argument of the scheduler's step.
            sample: the noisy picture that it was given with. Where a denoiser learns its variance
                it has fewer channels than the prediction, and only those are guided.
        """
        if not (prediction.dim() and given.dim() and prediction.device == given.device):
            return None
        rows, some = prediction.shape[0], given.shape[0]
        if not some or rows % some or not given.is_floating_point():
            return None
        groups = rows // some
        if groups == 1 and rows % 2 == 0:
            groups = 2  # the halves of a batch that is not guided, or is given back doubled
        sizes = given.shape[1:]
        if sample is not None and sample.dim() == given.dim():
            sizes = [min(pair) for pair in zip(sizes, sample.shape[1:], strict=True)]
        view = cls(groups, groups if some == rows else 1, tuple(sizes))
        return view if view._lies_in(prediction) and math.prod(sizes) > groups + 1 else None

    def of_prediction(self, prediction: torch.Tensor) -> torch.Tensor:
        """The groups of a prediction, [n, elements], float32."""
        return self._seen(prediction, self.groups)

    def of_given(self, given: torch.Tensor) -> torch.Tensor:
        """The groups of what the scheduler was given, or of its noisy picture: [J, elements]."""
        return self._seen(given, self.given)

    def _lies_in(self, prediction: torch.Tensor) -> bool:
        shape = prediction.shape[1:]
        if len(shape) == len(self.sizes):
            return all(s <= n for s, n in zip(self.sizes, shape, strict=True))
        # Several predictions side by side, the first of which this is; or dimensions of size 1.
        length = math.prod(self.sizes)
        return length <= shape[0] if len(shape) == 1 else length == shape.numel()

    def _seen(self, tensor: torch.Tensor, groups: int) -> torch.Tensor:
        if tensor.dim() - 1 == len(self.sizes):
            for dim, size in enumerate(self.sizes, 1):
                tensor = tensor.narrow(dim, 0, size)
        else:
            tensor = tensor.flatten(1)[:, : math.prod(self.sizes)]
        return tensor.float().reshape(groups, -1)


def read(
    view: View, prediction: torch.Tensor, given: torch.Tensor, sample: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read off with which weights the groups of a prediction make what the scheduler was given.

    A least-squares fit in float32: the weights sum to 1 where that explains it, to anything where
    the pipeline rescales or negates, and with a share of the noisy picture where it converts one
    kind of prediction to another.

    Args:
        view: of this prediction.
        prediction, given, sample: as in `View.of`.

    Returns:
        The weights, [J, n], float32; and whether they explain what the scheduler was given, a 0-dim
        bool tensor. They do not where the groups are equal, as nothing tells them apart then.
    """
    groups, targets = view.of_prediction(prediction), view.of_given(given)
    noisy = None
    if sample is not None and sample.shape[0] == given.shape[0] and sample.dim() == given.dim():
        seen = view.of_given(sample.to(given.device))
        noisy = seen if seen.shape == targets.shape else None
    rows = [
        _row(groups, j, target, None if noisy is None else noisy[j], view.given > 1)
        for j, target in enumerate(targets)
    ]
    return torch.stack([row for row, _ in rows]), torch.stack([fits for _, fits in rows]).all()


def _row(
    groups: torch.Tensor, base: int, target: torch.Tensor, noisy: torch.Tensor | None, own: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of one group that the scheduler was given, and whether they explain it.

    Args:
        groups: [n, elements].
        base: the group that the others are compared with.
        target: [elements].
        noisy: [elements], or None.
        own: whether the target may be the base itself, as in a batch that is not guided.
    """
    count, size = groups.shape[0], target.norm()
    others = [k for k in range(count) if k != base]
    columns = [groups[k] - groups[base] for k in others] + [groups[base]]
    scales = [groups[base].norm()] * count
    if noisy is not None:
        columns, scales = [*columns, noisy], [*scales, noisy.norm()]
    triangle, parts, left = _projected(columns, target - groups[base])

    def fit(used: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        row, told = groups.new_zeros(count), groups.new_ones((), dtype=torch.bool)
        row[base] = 1.0
        if used:
            corner = triangle[:used, :used]
            unit = torch.eye(used, dtype=corner.dtype, device=corner.device)
            inverse = torch.linalg.solve_triangular(corner, unit, upper=True)
            found = inverse @ parts[:used]
            for k, weight in zip(others, found, strict=False):
                row[k], row[base] = weight, row[base] - weight
            if used >= count:
                row[base] = row[base] + found[count - 1]
            told = (corner.diagonal() > _SAME * torch.stack(scales[:used])).all()
            if others:
                noise = left[used] / target.numel() ** 0.5
                told = told & (inverse[: len(others)].norm(dim=1).max() * noise <= _WOBBLE)
        return row, left[used] / size, told

    # From the plainest explanation to the one that takes most; then the best rough ones.
    tried = [fit(0)] if own else []
    tried += [fit(used) for used in range(count - 1, len(columns) + 1)]
    rough = tried[-2:] if noisy is not None else tried[-1:]
    explained = [(row, told & (off <= _EXACTLY)) for row, off, told in tried]
    if own:  # bits: two pictures that nearly agree are no sign that neither is weighed
        explained[0] = (tried[0][0], tried[0][1] <= _SAME)
    explained += [(row, told & (off <= _ROUGHLY)) for row, off, told in rough]
    weights, known = torch.full_like(tried[0][0], WORST), torch.zeros_like(tried[0][2])
    for row, fits in reversed(explained):
        weights, known = torch.where(fits, row, weights), known | fits
    return weights, known


def _projected(
    columns: Sequence[torch.Tensor], target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """QR by modified Gram-Schmidt: R, Q^T target, and what is left of it after each column.

    Columns come one by one, so that each leading part of them is a fit of its own.
    """
    basis: list[torch.Tensor] = []
    triangle = target.new_zeros(len(columns), len(columns))
    parts, left = [], [target.norm()]
    for j, column in enumerate(columns):
        for i, unit in enumerate(basis):
            share = unit @ column
            triangle[i, j] = share
            column = column - share * unit
        length = column.norm()
        triangle[j, j] = length
        basis.append(column / length.clamp_min(torch.finfo(length.dtype).tiny))
        parts.append(basis[-1] @ target)
        target = target - parts[-1] * basis[-1]
        left.append(target.norm())
    return triangle, torch.stack(parts), left


def weighted_error(
    exact: torch.Tensor, estimate: torch.Tensor, weights: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    """How far the estimates of a prediction put off what the scheduler is given, by its size.

    Args:
        exact, estimate: groups of a prediction, [n, elements].
        weights: [J, n], of each group in what the scheduler is given.
        size: [J], mean|g_j| of that.

    Returns:
        The largest over j of sum_k |a_jk| mean|P_k - est_k| / mean|g_j|; a 0-dim float32 tensor.
        With [uncond, cond] and a scale w that is
        (w mean|eps_c - est_c| + |w - 1| mean|eps_u - est_u|) / mean|guided|.
    """
    off = (exact.float() - estimate.float()).abs().mean(1)
    return (weights.abs() @ off / size).max()


def not_uncond_cond(weights: Sequence[Sequence[float]]) -> str:
    """Why a batch of these weights is not [uncond, cond], guided; "" if it is.

    Guided by a scale w > 1, the unconditional half has the weight 1 - w < 0 and the conditional one
    w > 1, up to a factor that both have in common.
    """
    if len(weights[0]) > 2:
        return f"the batch is guided by {len(weights[0])} groups of rows, not by [uncond, cond]"
    sums = [sum(row) or math.inf for row in weights]
    if len(weights[0]) == 2 and all(
        c / n > _ABOVE_ONE for (_, c), n in zip(weights, sums, strict=True)
    ):
        return ""
    if len(weights[0]) == 2 and all(
        u / n > _ABOVE_ONE for (u, _), n in zip(weights, sums, strict=True)
    ):
        return "the batch is [cond, uncond], and the paper's mode needs [uncond, cond]"
    return "the halves of the batch are not combined as guidance combines [uncond, cond]"
