import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import hybridiff_compile
from hybridiff_compile.lower import compilations, inductor
from hybridiff_compile.lower.flat import Compiled, flatten
from tests.lower import embedded
from tests.lower.graphs import chain, layer

CPU = torch.device("cpu")
PACKAGE = Path(hybridiff_compile.__file__).parent


def hits_and_misses() -> tuple[int, int]:
    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]


def test_compiled_stage_computes_what_its_graph_does(compiler_cache):
    case = embedded.case("toy")
    part = case.stages[0]
    flat = flatten(part)
    compiled = Compiled(inductor.compile_flat(flat, CPU, None), flat.keys, flat.values)
    inputs = case.inputs(part).values()
    with torch.no_grad():
        expected, result = part(*inputs), compiled(*inputs)
    assert isinstance(result, tuple)
    for a, b in zip(result, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert a.stride() == b.stride()
    assert compilations() == 1


def test_equal_part_comes_from_the_cache_and_runs_with_its_own_weights(compiler_cache):
    first, second = flatten(layer(seed=1)), layer(seed=2)
    inductor.compile_flat(first, CPU, None)
    assert hits_and_misses() == (0, 1)
    run = inductor.compile_flat(flatten(second), CPU, None)
    assert hits_and_misses() == (1, 1)
    x = torch.randn(2, 4)
    with torch.no_grad():
        other = flatten(second)
        result = Compiled(run, other.keys, other.values)(x)
        assert torch.allclose(result, second(x), atol=1e-6)


@pytest.mark.parametrize("change", ["shape", "mode", "linked", "sources"])
def test_other_part_is_compiled_anew(change, compiler_cache, monkeypatch):
    inductor.compile_flat(flatten(layer(seed=1)), CPU, None)
    if change == "sources":
        monkeypatch.setattr(inductor, "_sources", lambda: "hybridiff-other")
    inductor.compile_flat(
        flatten(layer(seed=1, rows=3 if change == "shape" else 2)),
        CPU,
        "max-autotune-no-cudagraphs" if change == "mode" else None,
        linked=change == "linked",
    )
    assert hits_and_misses() == (0, 2)


def test_whole_step_is_compiled_with_its_stage_inside(compiler_cache):
    part = chain(layer(seed=1)).module
    flat = flatten(part)
    run = Compiled(inductor.compile_flat(flat, CPU, None, linked=True), flat.keys, flat.values)
    x = torch.randn(2, 4)
    with torch.no_grad():
        result = run(x)
        assert list(result) == ["y"]
        assert torch.allclose(result["y"], part(x)["y"], atol=1e-6)


def test_static_shapes_are_compiled_in(compiler_cache):
    run = inductor.compile_flat(flatten(layer(seed=1)), CPU, None)
    flat = flatten(layer(seed=1))
    with pytest.raises(AssertionError, match="expected size 3==2"):
        run(*flat.values, torch.randn(3, 4))


@pytest.mark.parametrize("folder", ["passes", "lower"])
def test_tag_changes_with_every_source(folder, tmp_path):
    for name in ("passes", "lower"):
        shutil.copytree(PACKAGE / name, tmp_path / name)
    for name in ("ir.py", "layout.py", "ops.py"):
        shutil.copy(PACKAGE / name, tmp_path / name)
    before = inductor.sources_tag(tmp_path)
    assert before == inductor.sources_tag(PACKAGE)
    for file in sorted((tmp_path / folder).glob("*.py")):
        text = file.read_text()
        file.write_text(text + "\n")
        assert inductor.sources_tag(tmp_path) != before, file.name
        file.write_text(text)
    assert inductor.sources_tag(tmp_path) == before
    (tmp_path / folder / "zz_new.py").write_text("new = 1")
    assert inductor.sources_tag(tmp_path) != before


def test_compiler_is_given_the_tag_of_this_package(compiler_cache, monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch._inductor,
        "standalone_compile",
        lambda *args, **kwargs: seen.append(torch.compiler.config.cache_key_tag),
    )
    inductor.compile_flat(flatten(layer(seed=1)), CPU, None)
    assert seen == [inductor.sources_tag(PACKAGE.resolve())]
    assert torch.compiler.config.cache_key_tag == ""
