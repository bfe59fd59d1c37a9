"""Rows taken out of a batch's graph, of denoisers that cut their batch by what its rows mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.exporting import export
from hybridiff_compile.capture.rows import FACTOR
from hybridiff_compile.capture.take_rows import take_rows
from hybridiff_compile.capture.trace import capture, capture_taken
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import format_graph
from tests import toy
from tests.passes.golden import assert_golden

REFUSED = CaptureError("it cannot compute a part")
ROWS = {"sample": 0, "text": 0}


def call_of(rows: int, seed: int = 0) -> DenoiserCall:
    g = torch.Generator().manual_seed(seed)
    sample, text = torch.randn(rows, 5, 16, generator=g), torch.randn(rows, 3, 16, generator=g)
    return DenoiserCall.of(("sample", "t", "text"), (sample, torch.tensor(0.3)), {"text": text})


class Perturbed(nn.Module):
    """Of three branches, the last one attends to nothing but itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mixed, self.out = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, sample: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.inner(sample + t) + text.mean(1, keepdim=True)
        plain, perturbed = self.cut(h)
        frames = plain.reshape(plain.shape[0] * 5, 1, 16).expand(-1, 2, -1)
        plain = plain + self.mixed(frames).sum(1).view(plain.shape[0], 5, 16).softmax(1)
        return self.out(torch.cat([plain, perturbed]))

    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        uncond, cond, perturbed = h.chunk(3)
        return torch.cat([uncond, cond]), perturbed


class Sliced(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = h.shape[0] // 3
        return h[:-last], h[-last:]


class Narrowed(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = h.shape[0] // 3
        return h.narrow(0, 0, 2 * last), h.narrow(0, 2 * last, last)


class Written(Perturbed):
    """Writes into what may be no more than a view of a row."""

    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plain, perturbed = super().cut(h)
        return plain.mul_(2) + torch.cat(h.chunk(3)[:2]), perturbed


@pytest.mark.parametrize("kind", [Perturbed, Sliced, Narrowed, Written])
@pytest.mark.parametrize("rows", [3, 6, 9])
def test_parts_of_a_batch_that_is_cut_add_up_to_it(kind, rows):
    denoiser, call = toy.seeded(kind), call_of(rows)
    with torch.no_grad():
        answer = denoiser(*call.leaves)
        captured = capture(denoiser, call, answer)
        other = call_of(rows, seed=1)
        expected = denoiser(*other.leaves)
        assert captured.is_taken
        assert torch.allclose(captured.compute(other), expected, atol=1e-6)
    calls = [n.target for n in captured.program.graphs[0].graph.nodes if n.op == "call_module"]
    assert len(calls) == (2 if rows == 6 else 3)


def test_a_row_has_a_graph_of_its_own():
    denoiser, call = toy.seeded(Perturbed), call_of(3)
    batched, _ = export(denoiser, call)
    wide, _ = export(denoiser, call.repeated(FACTOR, ROWS))
    texts = (format_graph(take_rows(batched, wide, FACTOR, [row]), row) for row in (0, 2))
    assert_golden("\n\n".join(texts), __file__)


def test_each_row_is_computed_as_if_it_were_alone():
    denoiser, call = toy.seeded(Perturbed), call_of(3)
    batched, _ = export(denoiser, call)
    wide, _ = export(denoiser, call.repeated(FACTOR, ROWS))
    attends = [
        torch.ops.aten.softmax.int in {n.target for n in part.graph.nodes}
        for part in (take_rows(batched, wide, FACTOR, [row]) for row in range(3))
    ]
    assert attends == [True, True, False]


def test_values_have_the_shapes_that_they_turn_out_to_have():
    denoiser, call = toy.seeded(Perturbed), call_of(6)
    batched, _ = export(denoiser, call)
    wide, _ = export(denoiser, call.repeated(FACTOR, ROWS))
    part = take_rows(batched, wide, FACTOR, [0, 1, 2])
    given = Branches.of_batch(call, ROWS).calls[0].tensors()
    found: list[tuple[torch.Size, torch.Size]] = []

    class Seen(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node):
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and n.op != "output":
                found.append((value.shape, n.meta["val"].shape))
            return value

    with torch.no_grad():
        names = [n.target for n in part.graph.nodes if n.op == "placeholder"]
        Seen(part).run(*(given[str(name)] for name in names))
    assert len(found) > 10
    assert [real for real, _ in found] == [fake for _, fake in found]


class Mean(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h - h.mean(0))


class Rolled(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h.roll(1, 0))


class Counted(Perturbed):
    """Knows its rows by numbers."""

    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h + torch.arange(h.shape[0])[:, None, None])


class Borrowed(Perturbed):
    """One branch reads another one's rows."""

    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plain, perturbed = super().cut(h)
        return plain, perturbed + h.chunk(3)[0]


class Every(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(torch.cat([h[::3], h[1::3], h[2::3]]))


class Within(Perturbed):
    """Cuts its pictures, of five, in the midst of one."""

    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plain, perturbed = super().cut(h)
        many = plain.reshape(-1, 16)
        return torch.cat([many[:7], many[7:]]).view(plain.shape), perturbed


class Beside(Perturbed):
    """Puts something of no row beside the rows."""

    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(torch.cat([h, torch.zeros(1, 5, 16)])[: h.shape[0]])


class ByCount(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h.sin() if h.shape[0] > 6 else h.cos())


class Scaled(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h * (1 / h.shape[0]))


class Divided(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h / h.shape[0])


class Kept(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().cut(h * torch.tensor([[[1.0 + i]] for i in range(h.shape[0])]))


class Twice(Perturbed):
    def cut(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = torch.cat([h.reshape(h.shape[0] * 5, 16), h[:, 0]])
        return super().cut(pairs[: h.shape[0] * 5].view(h.shape))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Mean, "something of all rows together"),
        (Borrowed, "with different rows at once"),
        (Every, "leaves others between them"),
        (Within, "within a row"),
        (Beside, "rows together with something else|in two dimensions"),
        (ByCount, "otherwise for another size"),
        (Scaled, "becomes .* in a larger batch"),
        (Kept, "a constant for each row"),
        (Twice, "rows of several sizes"),
    ],
)
def test_what_cannot_be_told_apart_by_shapes_says_why(kind, why):
    denoiser, call = toy.seeded(kind), call_of(6)
    batched, _ = export(denoiser, call)
    wide, _ = export(denoiser, call.repeated(FACTOR, ROWS))
    with pytest.raises(CaptureError, match=why):
        take_rows(batched, wide, FACTOR, [0, 1, 2])


def test_a_part_that_takes_less_than_a_row_of_a_value_is_none():
    class Thirds(nn.Module):
        def forward(
            self, sample: torch.Tensor, t: torch.Tensor, text: torch.Tensor
        ) -> torch.Tensor:
            return sample + t + text.sum(1)[:, None].expand(-1, 5, -1).roll(sample.shape[0] // 3, 0)

    denoiser, call = toy.seeded(Thirds), call_of(6)
    batched, _ = export(denoiser, call)
    wide, _ = export(denoiser, call.repeated(FACTOR, ROWS))
    with pytest.raises(CaptureError, match=r"2 is not a whole number of rows|becomes"):
        take_rows(batched, wide, FACTOR, [0])


TOLD = (Mean, Borrowed, Every)  # by shapes; the others are refused by their values


@pytest.mark.parametrize("kind", [Mean, Rolled, Counted, Borrowed, Every, Divided])
@pytest.mark.parametrize("rows", [3, 6])
def test_rows_that_depend_on_others_are_not_taken_for_rows_of_their_own(kind, rows):
    denoiser, call = toy.seeded(kind), call_of(rows)
    with torch.no_grad():
        answer = denoiser(*call.leaves)
        with pytest.raises(CaptureError, match="cannot compute a part") as told:
            capture_taken(denoiser, call, answer, REFUSED)
    assert ("taken out of its batch's graph" in str(told.value)) == (kind in TOLD)
