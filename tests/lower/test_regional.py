import pytest
import torch
from torch import fx, nn

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import capture
from hybridiff_compile.lower.flat import flatten
from hybridiff_compile.lower.regional import Block, blocks, choose, outline, rest
from tests.lower import embedded

#: Operations of an Inner: matmul, add, sin, six times.
INNER = 18


def small(*shape: int) -> torch.Tensor:
    """Random numbers whose products stay small: larger ones make chaos of a rounding."""
    return 0.2 * torch.randn(*shape)


class Inner(nn.Module):
    def __init__(self, size: int = 4, factor: float = 1.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(small(size, size)), nn.Parameter(small(size))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = torch.sin(x @ self.w + self.b)
        return x if self.factor == 1.0 else x * self.factor


class Outer(nn.Module):
    """Some Inners, and as many operations of its own as are asked for."""

    def __init__(self, inners: int, own: int) -> None:
        super().__init__()
        self.inner, self.own = nn.Sequential(*(Inner() for _ in range(inners))), own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        for _ in range(self.own):
            x = torch.cos(x)
        return x


class Given(nn.Module):
    """An Inner whose matrix is an argument."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(9):
            x = torch.sin(x @ w)
        return x


def exported(module: nn.Module, size: int = 4) -> fx.GraphModule:
    half = small(1, 4, size)
    call = DenoiserCall.of(("sample",), (torch.cat([half, half]),), {})
    positional, _ = call.arguments

    def batched() -> torch.Tensor:
        with torch.no_grad():
            return module(*positional.values())

    denoiser = capture(module, call, batched()).program.graphs[0].get_submodule("denoiser")
    assert isinstance(denoiser, fx.GraphModule)
    return denoiser


def chosen(module: fx.GraphModule) -> list[Block]:
    return choose(list(blocks(module.graph)))


def children(module: nn.Module) -> list[fx.GraphModule]:
    return [m for m in module.children() if isinstance(m, fx.GraphModule)]


def test_repeated_blocks_are_found_in_order_without_a_class_name():
    class Renamed(Inner):
        pass

    graph = exported(nn.Sequential(Inner(), Renamed(), Inner(), Renamed()))
    found = chosen(graph)
    assert [len(b.nodes) for b in found] == [INNER] * 4
    assert len({b.structure for b in found}) == 1
    position = {n: i for i, n in enumerate(graph.graph.nodes)}
    starts = [position[b.nodes[0]] for b in found]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("inners", "own", "sizes"),
    [
        pytest.param(2, 1, [INNER] * 8, id="the inner: eight times, little around it"),
        pytest.param(1, 9, [INNER + 9] * 4, id="the outer: as often, and larger"),
        pytest.param(1, 0, [INNER] * 4, id="one that only wraps another is the same"),
    ],
)
def test_level_that_saves_most_is_chosen(inners, own, sizes):
    graph = exported(nn.Sequential(*(Outer(inners, own) for _ in range(4))))
    assert [len(b.nodes) for b in chosen(graph)] == sizes


def test_chosen_blocks_do_not_overlap():
    graph = exported(
        nn.Sequential(*(Outer(2, 150) for _ in range(3)), *(Inner() for _ in range(3)))
    )
    nodes = [n for b in chosen(graph) for n in b.nodes]
    assert len(nodes) == len(set(nodes))
    # The outers gain most; of the inners, three are left.
    assert sorted(len(b.nodes) for b in chosen(graph)) == [INNER] * 3 + [2 * INNER + 150] * 3


@pytest.mark.parametrize(("count", "taken"), [(1, 0), (2, 2)])
def test_a_block_is_one_that_repeats(count, taken):
    assert len(chosen(exported(nn.Sequential(*(Inner() for _ in range(count)))))) == taken


def test_small_modules_are_left():
    assert not list(blocks(exported(nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))).graph))


def structures(module: nn.Module) -> list[object]:
    return [b.structure for b in blocks(exported(module).graph)]


def test_blocks_of_other_shapes_are_not_merged():
    class Widens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = Inner(4), Inner(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wide(self.narrow(x).repeat(1, 1, 2))

    narrow, wide = structures(Widens())[-2:]
    assert narrow != wide


def test_blocks_of_other_constants_are_not_merged():
    two, three, again = structures(nn.Sequential(Inner(factor=2), Inner(factor=3), Inner(factor=2)))
    assert two != three
    assert two == again


def test_weight_is_not_merged_with_an_activation():
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(small(1, 4, 4))
            self.given = nn.ModuleList(Given() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second, third = self.given
            return third(second(first(x, self.w), x), self.w)

    weight, activation, again = structures(Uses())
    assert weight != activation
    assert weight == again


def test_module_whose_nodes_are_not_adjacent_is_left():
    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Given(), Given()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = x.new_zeros(4, 4)
            return self.a(self.b(self.a(x, w), w), w)

    found = list(blocks(exported(Interleaved()).graph))
    assert len(found) == 1  # b; a was called twice, around it


def test_outlined_graph_gives_the_same_bits_and_leaves_its_input_alone():
    graph = exported(nn.Sequential(*(Outer(1, 3) for _ in range(4)), Inner(factor=3.0)))
    x, before = torch.randn(1, 4, 4), graph.code
    (after,) = outline(graph)
    with torch.no_grad():
        assert torch.equal(after(x), graph(x))
    assert graph.code == before
    assert not children(graph)
    parts = children(after)
    assert len({flatten(p).key for p in parts[:4]}) == 1
    assert [n.op for n in after.graph.nodes].count("call_module") == len(parts)
    assert len({id(v) for p in parts[:4] for v in flatten(p).values}) == 8  # each its own weights
    assert all(n.users for n in after.graph.nodes if n.op == "get_attr")  # which are read there


def test_blocks_with_several_results_and_with_skips_give_the_same_bits():
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Two() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = first = x
            for block in self.blocks:
                x, y = block(x, y + first)
            return x * y

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.inner(x)
            return x, x - y

    graph = exported(Skips())
    (after,) = outline(graph)
    assert [len(b.outputs) for b in chosen(graph)] == [2, 2, 2]
    x = torch.randn(1, 4, 4)
    with torch.no_grad():
        assert torch.equal(after(x), graph(x))


class Long(nn.Module):
    """Three Inners, then as many other operations as are asked for."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.inners, self.others = nn.Sequential(*(Inner() for _ in range(3))), others

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inners(x)
        for _ in range(self.others):
            x = torch.cos(x)
        return x


@pytest.mark.parametrize(
    ("others", "sizes"),
    [
        pytest.param(2 * INNER, [2 * INNER], id="twice the blocks: compiled"),
        pytest.param(2 * INNER + 1, [], id="more: left to eager"),
        pytest.param(15, [], id="too small to fuse"),
    ],
)
def test_rest_is_compiled_when_it_is_cheap_beside_the_blocks(others, sizes):
    graph = exported(Long(others))
    repeated = chosen(graph)
    assert len(repeated) == 3
    assert [len(b.nodes) for b in rest([graph.graph], repeated)] == sizes
    (after,) = outline(graph)
    assert len(children(after)) == 3 + len(sizes)
    x = torch.randn(1, 4, 4)
    with torch.no_grad():
        assert torch.equal(after(x), graph(x))


def test_graph_without_repeated_blocks_is_not_cut_up():
    graph = exported(nn.Sequential(Inner(), Inner(factor=2.0)))
    (after,) = outline(graph)
    assert not children(after)


@pytest.mark.parametrize(
    ("name", "kinds"), [("tiny-sd3", 1), pytest.param("tiny-sdxl", 2, marks=pytest.mark.slow)]
)
def test_blocks_of_the_embedded_models(name, kinds):
    case = embedded.case(name)
    found = chosen(case.denoiser)
    assert len(found) == 7
    assert len({b.structure for b in found}) == kinds
    (after,), inputs = outline(case.denoiser), case.inputs(case.denoiser).values()
    with torch.no_grad():
        assert torch.equal(after(*inputs), case.denoiser(*inputs))
