"""Where the rows of each argument are, found at a second batch size."""

import logging

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.rows import rows_of, ways_to_halve
from hybridiff_compile.capture.state import State
from hybridiff_compile.capture.trace import capture
from hybridiff_compile.errors import CaptureError


def found(denoiser: nn.Module, **arguments: torch.Tensor) -> dict[str, int]:
    call = DenoiserCall.of(tuple(arguments), tuple(arguments.values()), {})
    return rows_of(denoiser, call, denoiser(*arguments.values()))[0]


class Frames(nn.Module):
    """As AnimateDiff: the text is repeated for each frame, so its dim 0 is a multiple."""

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        batch, channels, frames = sample.shape
        rows = sample.transpose(1, 2).reshape(batch * frames, channels) + text
        return rows.view(batch, frames, channels).transpose(1, 2)


class Layers(nn.Module):
    """As HiDream: a text of each layer, with the batch in dim 1."""

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for layer in text:
            sample = sample + layer
        return sample


class Residuals(nn.Module):
    """As AnimateDiff with a ControlNet: the residuals are of frames, too, in several shapes."""

    def forward(
        self, sample: torch.Tensor, text: torch.Tensor, down: list[torch.Tensor]
    ) -> torch.Tensor:
        batch, channels, frames = sample.shape
        rows = sample.transpose(1, 2).reshape(batch * frames, channels) + text
        for residual in down:
            rows = rows + residual.mean(1, keepdim=True)
        return rows.view(batch, frames, channels).transpose(1, 2)


def test_residuals_of_several_shapes_have_their_rows_by_frames() -> None:
    down = [torch.randn(6, width) for width in (5, 7, 9, 11)]
    arguments = {"sample": torch.randn(2, 4, 3), "text": torch.randn(6, 4), "down": down}
    call = DenoiserCall.of(tuple(arguments), tuple(arguments.values()), {})
    denoiser = Residuals()
    rows, _ = rows_of(denoiser, call, denoiser(**arguments))
    assert rows == {name: 0 for name in ("sample", "text", "down_0", "down_1", "down_2", "down_3")}


class Rope(nn.Module):
    """As Allegro: a pair of tables that happens to be as long as the batch."""

    def forward(self, sample: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        cos, sin = rope
        return sample * cos + sample.flip(-1) * sin


class Tokens(nn.Module):
    """As Flux: positions of the tokens, whose number is a multiple of the batch."""

    def forward(self, sample: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return sample + ids.sum(-1)


def test_a_multiple_of_the_batch_in_dim_0_has_rows_if_the_denoiser_needs_them():
    sample, text = torch.randn(2, 3, 4), torch.randn(8, 3)
    assert found(Frames(), sample=sample, text=text) == {"sample": 0, "text": 0}


def test_a_multiple_of_the_batch_in_dim_0_has_none_otherwise():
    sample, ids = torch.randn(2, 8), torch.randn(8, 3)
    assert found(Tokens(), sample=sample, ids=ids) == {"sample": 0}


def test_rows_may_be_in_another_dimension():
    for layers in (2, 3, 4):
        sample, text = torch.randn(2, 5), torch.randn(layers, 2, 5)
        rows = found(Layers(), sample=sample, text=text)
        assert rows == {"sample": 0, "text": 1}, layers


def test_a_pair_of_tables_is_no_batch_of_two():
    for batch in (2, 4):
        sample, rope = torch.randn(batch, 6), torch.randn(2, 6)
        assert found(Rope(), sample=sample, rope=rope) == {"sample": 0}


def test_tokens_as_many_as_rows_are_no_rows():
    sample, ids = torch.randn(8, 8), torch.randn(8, 3)
    assert found(Tokens(), sample=sample, ids=ids) == {"sample": 0}


def test_a_denoiser_that_fake_tensors_cannot_run_goes_by_shapes():
    class Reads(nn.Module):
        def forward(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return sample * int(time[0].item())

    sample, time = torch.randn(2, 4), torch.tensor([3.0, 3.0])
    assert found(Reads(), sample=sample, time=time) == {"sample": 0, "time": 0}


def test_the_look_leaves_nothing_in_the_denoiser():
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables: dict[int, torch.Tensor] = {}

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            table = self.tables.setdefault(sample.shape[0], torch.ones(sample.shape[0], 1))
            return sample * table

    denoiser = Remembers()
    sample = torch.randn(2, 4)
    denoiser(sample)
    before = State.of(denoiser)
    assert found(denoiser, sample=sample) == {"sample": 0}
    assert list(denoiser.tables) == [2]
    assert before.changes() == []


class Positions(nn.Module):
    """As Allegro: two tables, stacked, of which rows are picked by positions."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(
        self, sample: torch.Tensor, tables: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        return self.mix(sample + nn.functional.embedding(positions, tables))


def test_a_table_that_may_grow_is_left_out_when_the_values_say_so() -> None:
    torch.manual_seed(0)
    denoiser = Positions().eval()
    arguments = {
        "sample": torch.randn(2, 3, 6),
        "tables": torch.randn(2, 6),
        "positions": torch.tensor([0, 1, 1]),
    }
    call = DenoiserCall.of(tuple(arguments), tuple(arguments.values()), {})
    with torch.no_grad():
        answer = denoiser(**arguments)
    first, second = ways_to_halve(denoiser, call, answer)
    assert first == {"sample": 0, "tables": 0}  # nothing speaks against it at another batch size
    assert second == {"sample": 0}
    captured = capture(denoiser, call, answer)
    assert captured.rows == second


def test_what_half_of_a_batch_raises_is_said() -> None:
    class Whole(nn.Module):
        def forward(self, sample: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return sample + nn.functional.embedding(positions, sample.flatten(1))[:, :, None]

    arguments = {"sample": torch.randn(2, 3, 1), "positions": torch.tensor([1, 0])}
    call = DenoiserCall.of(tuple(arguments), tuple(arguments.values()), {})
    answer = Whole()(**arguments)
    with pytest.raises(CaptureError, match="cannot compute a part of its batch: IndexError"):
        capture(Whole(), call, answer)


class Experts(nn.Module):
    """As HiDream: experts that are chosen by values, and a text with its batch in dim 1."""

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        chosen = (sample.flatten(1).sum(1) > 0).long()
        for expert in range(int(chosen.bincount().numel())):
            sample = torch.where((chosen == expert)[:, None], sample * (expert + 2), sample)
        return sample + text[0] + text[1]


def test_where_no_look_can_be_taken_all_ways_are_tried_by_values() -> None:
    arguments = {"sample": torch.randn(2, 6), "text": torch.randn(2, 2, 6)}
    call = DenoiserCall.of(tuple(arguments), tuple(arguments.values()), {})
    captured = capture(Experts(), call, Experts()(**arguments))
    assert captured.rows == {"sample": 0, "text": 1}
    assert captured.not_exported.startswith("Experts cannot be exported")


class Together(Experts):
    """Its rows depend on each other."""

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(sample, text) + sample.mean(0)


def test_that_no_look_could_be_taken_is_said_with_what_a_guess_raised() -> None:
    arguments = {"sample": torch.randn(2, 6), "text": torch.randn(2, 2, 6)}
    call = DenoiserCall.of(tuple(arguments), tuple(arguments.values()), {})
    says = r"^Together cannot .*; where the rows .* guessed .*DynamicOutputShape"
    with pytest.raises(CaptureError, match=says):
        capture(Together(), call, Together()(**arguments))


class Filled(nn.Module):
    """As CogVideoX at another size than its config's: it fills a table of its own by `data`."""

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        table = sample.new_zeros(1, *sample.shape[1:])
        table.data[:, 1:].copy_(torch.arange(float(sample.shape[-1])).cos())
        return sample * 2 + table


def test_a_table_that_is_filled_by_its_data_is_part_of_the_program() -> None:
    call = DenoiserCall.of(("sample",), (torch.randn(4, 3, 6),), {})
    captured = capture(Filled(), call, Filled()(*call.leaves))  # its halves are compared
    assert captured.rows == {"sample": 0}


def test_a_wrong_guess_is_not_logged_by_torch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert found(Rope(), sample=torch.randn(2, 3, 6), rope=torch.randn(2, 6)) == {"sample": 0}
    assert not caplog.records
