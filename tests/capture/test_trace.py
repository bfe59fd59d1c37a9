import logging

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import capture, capture_step
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import Level, Phase
from tests import toy


@pytest.mark.parametrize("batch", [1, 2])
def test_step_computes_both_branches_bit_for_bit(batch):
    denoiser, call = toy.seeded(toy.Toy), toy.call_of(batch)
    captured = toy.capture_of(denoiser, call)
    later = toy.call_of(batch, seed=7)
    values = Branches.of_batch(later, captured.rows).inputs()
    (contract,) = captured.program.contracts
    with torch.no_grad():
        out = captured.program.graphs[0](*(values[n] for n in contract.inputs))["prediction"]
    expected = torch.cat([toy.run(denoiser, later.branch(b)) for b in range(2)])
    assert out.shape == (2 * batch, 4, 8, 8)
    assert torch.equal(out, expected)


def test_program_is_a_small_serial_graph_of_one_rank():
    program = toy.captured().program
    assert (program.phase, program.level) == (Phase.SERIAL, Level.CAPTURED)
    assert program.contracts[0].results == ("prediction",)
    calls = [n.target for n in program.graphs[0].graph.nodes if n.op == "call_module"]
    assert calls == ["denoiser", "denoiser"]
    assert len(program.graphs[0].graph.nodes) <= 15


def test_program_prediction_has_the_batch_that_the_pipeline_expects():
    (node,) = [n for n in toy.captured().program.graphs[0].graph.nodes if n.name == "cat"]
    assert node.meta["val"].shape == (2, 4, 8, 8)


def test_parameters_and_buffers_are_named_and_shared_with_the_denoiser():
    denoiser = toy.seeded(toy.Toy)
    captured = toy.capture_of(denoiser, toy.call_of())
    own = dict((*denoiser.named_parameters(), *denoiser.named_buffers()))
    assert captured.program.parameters == own.keys()
    graph = toy.denoiser_of(captured)
    for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
        assert tensor is own[name]


def test_what_has_rows_is_halved_and_what_has_none_is_one_object():
    captured = toy.captured()
    assert "timestep" not in captured.rows
    inputs = Branches.of_batch(toy.call_of(seed=4), captured.rows).inputs()
    call = toy.call_of(seed=4)
    assert torch.equal(inputs["timestep"], call.tensors()["timestep"])
    for b, branch in enumerate("uc"):
        for name in ("sample", "encoder_hidden_states", "added_text_embeds"):
            assert torch.equal(inputs[f"{name}_{branch}"], call.branch(b).tensors()[name])


def test_argument_that_is_not_read_is_no_input():
    text = torch.randn(2, 3, 6)
    call = toy.call_of(added={"text_embeds": torch.randn(2, 8), "unread": text})
    captured = toy.capture_of(toy.seeded(toy.Toy), call)
    (contract,) = captured.program.contracts
    assert not any("unread" in name for name in contract.inputs)


def test_keyword_arguments_may_come_in_any_order():
    denoiser, call = toy.seeded(toy.Toy), toy.call_of()
    positional, keyword = call.arguments
    swapped = dict(reversed(keyword.items()))
    other = DenoiserCall.of(toy.PARAMETERS, tuple(positional.values()), swapped)
    captured = toy.capture_of(denoiser, other)
    values = Branches.of_batch(other, captured.rows).inputs()
    with torch.no_grad():
        (graph,), (contract,) = captured.program.graphs, captured.program.contracts
        out = graph(*(values[n] for n in contract.inputs))["prediction"]
    assert torch.equal(out, torch.cat([toy.run(denoiser, call.branch(b)) for b in range(2)]))


@pytest.mark.parametrize("return_dict", [True, False])
def test_tree_around_the_prediction_is_kept(return_dict):
    denoiser, call = toy.seeded(toy.Toy), toy.call_of(return_dict=return_dict)
    positional, keyword = call.arguments
    captured = capture(denoiser, call, denoiser(*positional.values(), **keyword))
    rebuilt = captured.form.unpack(torch.ones(1))
    assert rebuilt == ({"sample": torch.ones(1)} if return_dict else (torch.ones(1),))


def test_dropout_in_eval_mode_leaves_no_node():
    denoiser = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)).eval()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = denoiser

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.body(sample)

    targets = [
        str(n.target) for n in toy.denoiser_of(toy.capture_simple(Named().eval())).graph.nodes
    ]
    assert targets.count("aten.linear.default") == 2
    assert not any("dropout" in t or "assert" in t for t in targets)


def test_decision_on_a_tensor_value_is_not_exported_and_its_line_named(capfd, caplog):
    class Decides(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            if sample.abs().sum() > 0:  # in each part as in the whole
                return sample + 1
            return sample - 1

    talker = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    talker.addHandler(caplog.handler)  # torch's loggers do not propagate
    text = toy.capture_simple(Decides()).not_exported
    talker.removeHandler(caplog.handler)
    assert "Decides cannot be exported at forward (if sample.abs().sum() > 0:" in text
    assert "make that line free of decisions on tensor values" in text
    assert capfd.readouterr() == ("", "")  # no listing of the graph
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_what_is_no_decision_is_given_no_advice_on_decisions():
    class Raises(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            if type(sample) is not torch.Tensor:
                raise ValueError("no such layer")
            return sample

    assert toy.capture_simple(Raises()).not_exported.endswith("): ValueError: no such layer")


def test_denoiser_whose_rows_depend_on_each_other_is_refused():
    class Mixes(nn.Module):
        def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return sample - sample.mean(0) + text

    call = DenoiserCall.of(("sample", "text"), (torch.randn(2, 4), torch.randn(2, 4)), {})
    denoiser = Mixes()
    with pytest.raises(
        CaptureError, match=r"parts of Mixes's batch, .*a relative difference.*rows depend on each"
    ):
        capture(denoiser, call, denoiser(*call.arguments[0].values()))


def test_an_argument_that_counts_as_a_whole_is_given_to_both_halves():
    class Averages(nn.Module):
        def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return sample + text.mean(0)

    values = torch.randn(2, 4), torch.randn(2, 4)
    captured = capture(
        Averages(), DenoiserCall.of(("sample", "text"), values, {}), Averages()(*values)
    )
    assert captured.rows == {"sample": 0}


def test_branches_that_stay_together_may_depend_on_each_other():
    class Normalized(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample - sample.cumsum(0)

    sample = torch.randn(1, 4)
    denoiser = Normalized()
    call = DenoiserCall.of(("sample",), (torch.cat([sample, sample]),), {})
    batch = call.tensors()["sample"]
    captured = capture(denoiser, call, denoiser(batch), together=True)
    assert (captured.rows, captured.program.contracts[0].inputs) == ({}, ("sample",))
    (sample,) = [n for n in toy.denoiser_of(captured).graph.nodes if n.op == "placeholder"]
    assert sample.meta["val"].shape == (2, 4)
    assert torch.equal(captured.program.graphs[0](batch)["prediction"], denoiser(batch))
    with pytest.raises(CaptureError, match="the program of Normalized gives a relative difference"):
        capture(denoiser, call, denoiser(batch) + 1, together=True)


def test_prediction_of_another_shape_than_the_batched_one_is_refused():
    class Sums(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample.sum(0)

    with pytest.raises(CaptureError, match=r"parts of Sums\'s batch, .*shapes \(8,\) and \(4,\)"):
        toy.capture_simple(Sums())


def test_prediction_that_is_no_number_in_the_same_places_is_the_same():
    class Root(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample.sqrt()

    toy.capture_simple(Root(), torch.tensor([[4.0, -1.0]]))


def test_halves_that_are_no_number_where_the_batch_is_one_are_refused():
    class NotANumber(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample * torch.nan if sample.shape[0] == 1 else sample + sample.flip(0)

    with pytest.raises(CaptureError, match="a relative difference of nan"):
        toy.capture_simple(NotANumber())


def test_several_outputs_of_one_batch_are_one_prediction():
    class Two(nn.Module):
        def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return sample.view(-1, 2, 2) + 1, sample * 2

    half = torch.randn(1, 4)
    call = DenoiserCall.of(("sample",), (torch.cat([half, 3 * half]),), {})
    batch = call.tensors()["sample"]
    captured = capture(Two(), call, Two()(batch))
    values = Branches.of_batch(call, captured.rows).inputs()
    (step,), (contract,) = captured.program.graphs, captured.program.contracts
    answer = captured.form.unpack(step(*(values[n] for n in contract.inputs))["prediction"])
    for made, expected in zip(answer, Two()(batch), strict=True):
        assert torch.equal(made, expected)


def test_denoiser_that_writes_into_itself_or_its_arguments_is_refused():
    class Counts(nn.Module):
        count: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return sample + 0 * self.count

    with pytest.raises(CaptureError, match=r"Counts writes into \w*count when it is called"):
        toy.capture_simple(Counts())


def test_what_the_export_lifted_is_held_by_the_graph_again():
    class Holds(nn.Module):
        kept: torch.Tensor
        not_saved: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = self.tied = nn.Parameter(torch.randn(4))
            self.register_buffer("kept", torch.randn(4))
            self.register_buffer("not_saved", torch.randn(4), persistent=False)
            self.plain, self.sample_ = torch.randn(4), nn.Parameter(torch.randn(4))

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):  # a graph within the graph
                doubled = sample * 2
            own = self.weight * self.tied + self.kept * self.not_saved + self.plain
            return doubled + own + self.sample_ + torch.tensor([1.0, 2.0, 3.0, 4.0])

    denoiser, sample = Holds(), torch.randn(1, 4)
    module = toy.denoiser_of(toy.capture_simple(denoiser, sample))
    assert torch.equal(module(sample), denoiser(sample))
    for name in ("tied", "kept", "not_saved", "plain", "sample_"):
        assert getattr(module, name) is getattr(denoiser, name)


def test_a_prediction_whose_size_depends_on_values_is_not_exported():
    class Masked(nn.Module):
        def forward(self, sample: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return sample[:, mask.nonzero().flatten()]

    mask = torch.ones(4, dtype=torch.int64)
    step = Branches(
        tuple(DenoiserCall.of(("sample", "mask"), (torch.ones(2, 4), mask), {}) for _ in "cu")
    )
    captured = capture_step(Masked(), step, [torch.ones(2, 4)] * 2)
    assert "size of a value in it depends on values" in captured.not_exported


def test_a_write_that_torch_vmap_hides_is_refused():
    class Mapped(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            def write(row: torch.Tensor) -> torch.Tensor:
                return row.clone().mul_(2)

            return torch.vmap(write)(sample)

    with pytest.raises(CaptureError):
        toy.capture_simple(Mapped())
