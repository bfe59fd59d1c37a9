import operator
from typing import Any

import pytest
import torch
from torch import fx, nn

from hybridiff_compile.lower.flat import Compiled, flatten, hold
from tests.lower import embedded
from tests.lower.graphs import aten, layer, with_values


def returning(kind: str) -> fx.GraphModule:
    """`((a, b), z)` to `a + z` and `b - z`, in a container of a kind."""
    graph = fx.Graph()
    pair, z = graph.placeholder("pair"), graph.placeholder("z")
    first = graph.call_function(operator.getitem, (pair, 0))
    second = graph.call_function(operator.getitem, (pair, 1))
    total = graph.call_function(aten.add.Tensor, (first, z))
    rest = graph.call_function(aten.sub.Tensor, (second, z))
    results: dict[str, Any] = {"dict": {"total": total, "rest": rest}, "tuple": (total, rest)}
    graph.output(results.get(kind, total))
    values = (torch.zeros(2, 3), torch.zeros(3, 2).t()), torch.zeros(3)
    return with_values(fx.GraphModule({}, graph), *values)


def inputs() -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    return (torch.ones(2, 3), torch.ones(3, 2).t()), torch.arange(3.0)


def nested() -> fx.GraphModule:
    """`(x) -> layer(layer(x)) @ own`, where both children are one module."""
    root, graph = nn.Module(), fx.Graph()
    root.own = nn.Parameter(torch.eye(4) * 3)
    root.add_module("child", layer(seed=0))
    x = graph.placeholder("x")
    for _ in range(2):
        x = graph.call_module("child", (x,))
    graph.output(graph.call_function(aten.mm.default, (x, graph.get_attr("own"))))
    node = next(iter(graph.nodes))
    node.meta["val"] = torch.zeros(2, 4)
    return fx.GraphModule(root, graph)


def test_weights_come_first_and_in_the_order_of_their_use():
    part = layer(seed=0)
    flat = flatten(part)
    assert flat.weights == ("w", "b")
    assert [v is w for v, w in zip(flat.values, (part.w, part.b), strict=True)] == [True, True]
    names = [n.name for n in flat.module.graph.nodes if n.op == "placeholder"]
    assert names == ["w0", "w1", "x"]
    x = torch.randn(2, 4)
    assert torch.equal(flat.module(*flat.values, x)[0], part(x))


def test_tuples_are_opened_with_the_strides_of_their_tensors():
    flat = flatten(returning("tuple"))
    names = [n.name for n in flat.module.graph.nodes if n.op == "placeholder"]
    assert names == ["pair_0", "pair_1", "z"]
    assert [s.stride() for s in flat.specs] == [(3, 1), (1, 2), (1,)]
    assert not any(n.target is operator.getitem for n in flat.module.graph.nodes)


@pytest.mark.parametrize(
    ("kind", "keys"), [("dict", ("total", "rest")), ("tuple", None), ("single", "")]
)
def test_results_come_back_in_the_graph_s_own_container(kind, keys):
    part = returning(kind)
    flat = flatten(part)
    assert flat.keys == keys
    expected, result = part(*inputs()), Compiled(flat.module, flat.keys, flat.values)(*inputs())
    assert type(result) is type(expected)
    if kind == "dict":
        assert list(result) == list(expected)
        result, expected = tuple(result.values()), tuple(expected.values())
    results = result if isinstance(result, tuple) else (result,)
    for a, b in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert torch.equal(a, b)


def test_children_are_inlined_and_their_weights_lifted_once():
    part = nested()
    flat = flatten(part)
    assert flat.weights == ("w", "b", "own")
    assert {n.op for n in flat.module.graph.nodes} == {"placeholder", "call_function", "output"}
    x = torch.randn(2, 4)
    assert torch.equal(flat.module(*flat.values, x)[0], part(x))


def test_children_without_a_graph_are_called():
    pool, graph = nn.AvgPool1d(2), fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(1, 2, 4)
    graph.output(graph.call_module("pool", (x,)))
    flat = flatten(fx.GraphModule({"pool": pool}, graph))
    x = torch.randn(1, 2, 4)
    assert torch.equal(flat.module(x)[0], pool(x))
    assert torch.equal(flat.attached()(x)[0], pool(x))


def test_key_is_equal_for_other_weights_only():
    key = flatten(layer(seed=0)).key
    assert hash(key) == hash(flatten(layer(seed=1)).key)
    assert key == flatten(layer(seed=1)).key
    assert key != flatten(layer(seed=0, rows=3)).key
    assert key != flatten(layer(seed=0, size=5)).key
    assert key != flatten(nested()).key
    assert key != flatten(layer(seed=0).half()).key
    turned = layer(seed=0)
    turned.get_parameter("w").data = turned.get_parameter("w").data.t()
    assert key != flatten(turned).key


def test_key_tells_constants_apart():
    def scaled(by: float) -> fx.GraphModule:
        graph = fx.Graph()
        x = graph.placeholder("x")
        graph.output(graph.call_function(aten.mul.Scalar, (x, by)))
        return with_values(fx.GraphModule({}, graph), torch.zeros(2))

    assert flatten(scaled(2.0)).key == flatten(scaled(2.0)).key
    assert flatten(scaled(2.0)).key != flatten(scaled(3.0)).key


def test_flattening_leaves_its_input_alone():
    part = nested()
    before, names = part.code, [n for n, _ in part.named_parameters()]
    flatten(part)
    assert part.code == before
    assert [n for n, _ in part.named_parameters()] == names


def test_examples_are_the_weights_and_zeros_of_the_specs():
    flat = flatten(returning("single"))
    made = flat.examples(torch.device("cpu"))
    assert [(t.shape, t.stride()) for t in made] == [(s.shape, s.stride()) for s in flat.specs]
    assert not any(t.any() for t in made)
    flat = flatten(layer(seed=0))
    weight = flat.examples(torch.device("cpu"))[0]
    assert weight.data_ptr() == flat.values[0].data_ptr()
    assert not weight.requires_grad


def test_attached_holds_its_weights_by_their_names_and_kinds():
    part = nested()
    attached = flatten(part).attached()
    assert set(dict(attached.named_parameters())) == {"w", "own"}
    assert set(dict(attached.named_buffers())) == {"b"}
    assert attached.own is part.own
    x = torch.randn(2, 4)
    (result,) = attached(x)
    assert torch.equal(result, part(x))


@pytest.mark.parametrize("index", [0, 1])
def test_attached_stage_round_trip(index):
    case = embedded.case("toy")
    part = case.stages[index]
    flat = flatten(part)
    again = flatten(flat.attached())
    assert again.weights == flat.weights
    assert all(a is b for a, b in zip(again.values, flat.values, strict=True))
    assert again.key == flat.key


def test_weights_are_held_under_dotted_names():
    root = nn.Module()
    hold(root, "a.b.w", nn.Parameter(torch.ones(2)))
    hold(root, "a.c", torch.zeros(2))
    assert list(dict(root.named_parameters())) == ["a.b.w"]
    assert list(dict(root.named_buffers())) == ["a.c"]


def test_whole_program_is_flattened_with_its_stages_inside():
    serial, *_ = embedded.case("toy").programs(rank=0)
    parts = [m for m in serial.module.modules() if isinstance(m, fx.GraphModule)]
    assert len(parts) == 3  # the step and two stages
    flat = flatten(serial.module)
    assert not [n for n in flat.module.graph.nodes if n.target in ("stage0", "stage1")]
    assert isinstance(flat.keys, tuple)
    assert set(serial.contract.returned) <= set(flat.keys)
    assert len(flat.values) == len(flatten(embedded.case("toy").denoiser).values)


def test_children_with_different_weights_of_one_name_are_refused():
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(2, 4)
    graph.output(graph.call_module("two", (graph.call_module("one", (x,)),)))
    chained = fx.GraphModule({"one": layer(seed=0), "two": layer(seed=1)}, graph)
    with pytest.raises(ValueError, match="different weights of the name"):
        flatten(chained)


def test_weights_of_a_graph_without_inputs_are_lifted():
    graph = fx.Graph()
    graph.output(graph.call_function(torch.sin, (graph.get_attr("w"),)))
    root = nn.Module()
    root.register_buffer("w", torch.ones(3))
    flat = flatten(fx.GraphModule(root, graph))
    assert flat.weights == ("w",)
    assert torch.equal(flat.module(*flat.values)[0], torch.sin(torch.ones(3)))


def test_weights_that_are_read_before_anything_else_keep_their_order():
    root, graph = nn.Module(), fx.Graph()
    held = {name: torch.full((2,), float(i)) for i, name in enumerate("abc")}
    for name, tensor in held.items():
        root.register_buffer(name, tensor)
    a, b, c = (graph.get_attr(name) for name in held)
    less = graph.call_function(aten.sub.Tensor, (a, b))
    graph.output(graph.call_function(aten.div.Tensor, (less, c)))
    part = fx.GraphModule(root, graph)
    flat = flatten(part)
    assert flat.weights == tuple(held)
    (made,) = flat.module(*flat.values)
    assert torch.equal(made, part())
