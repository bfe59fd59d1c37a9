"""Models run in onnxruntime, another implementation than the one that wrote them."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import fx

from hybridiff_compile.errors import BackendError
from hybridiff_compile.lower.flat import flatten
from hybridiff_compile.lower.onnx import Place, check, export_part, places
from tests import pipelines
from tests.lower import embedded
from tests.lower.embedded import Case
from tests.lower.graphs import layer, with_values

#: Of the largest value, in fp32: what another order of additions makes of a denoiser.
TOLERANCE = 1e-4


def write(case: Case, folder: Path) -> Path:
    """The three models of a denoiser and the file of their weights."""
    weights = folder / "weights.safetensors"
    flat = flatten(case.denoiser)
    tensors = zip(flat.weights, flat.values, strict=True)
    save_file({n: t.detach().contiguous() for n, t in tensors}, weights)
    stage0, stage1 = case.stages
    for name, part, result in (
        ("stage0", stage0, "cut"),
        ("stage1", stage1, "eps"),
        ("branch", case.denoiser, "eps"),
    ):
        export_part(part, folder / f"{name}.onnx", places(weights), result=result)
    return weights


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model on those values that it asks for by name."""
    model = session(path)
    given = {i.name: values[i.name] for i in model.get_inputs()}
    names = [o.name for o in model.get_outputs()]
    results = (np.asarray(r) for r in model.run(names, given))
    return dict(zip(names, results, strict=True))


def error(result: np.ndarray, expected: torch.Tensor) -> float:
    assert result.shape == tuple(expected.shape)
    difference = torch.from_numpy(result) - expected
    return (difference.abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["toy", *pipelines.slow("tiny-sdxl", "tiny-sd3")])
def test_models_compute_what_their_graphs_do(name, tmp_path):
    case = embedded.case(name)
    weights = write(case, tmp_path)
    inputs = case.inputs(case.denoiser)
    with torch.no_grad():
        expected = case.denoiser(*inputs.values())
        features = case.stages[0](*case.inputs(case.stages[0]).values())
    values = {n: t.numpy() for n, t in inputs.items()}
    cut = run(tmp_path / "stage0.onnx", values)
    assert list(cut) == [f"cut_{i}" for i in range(len(features))]
    errors = [error(c, f) for c, f in zip(cut.values(), features, strict=True)]
    errors.append(error(run(tmp_path / "stage1.onnx", {**values, **cut})["eps"], expected))
    errors.append(error(run(tmp_path / "branch.onnx", values)["eps"], expected))
    print(name, *(f"{e:.1e}" for e in errors))
    assert max(errors) <= TOLERANCE
    # The weights are stored once: what is in the models is their nodes.
    models = sum(path.stat().st_size for path in tmp_path.glob("*.onnx"))
    assert {p.name for p in tmp_path.iterdir()} == {
        "stage0.onnx",
        "stage1.onnx",
        "branch.onnx",
        weights.name,
    }
    assert name == "toy" or models < weights.stat().st_size / 4


@pytest.fixture(scope="module")
def toy_models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write(embedded.case("toy"), folder)
    return folder


def test_inputs_are_named_as_the_graphs_placeholders(toy_models):
    def names(model: str) -> list[str]:
        return [i.name for i in onnx.load(toy_models / model, load_external_data=False).graph.input]

    others = ["timestep", "encoder_hidden_states", "added_text_embeds"]
    assert names("branch.onnx") == names("stage0.onnx") == ["sample", *others]
    assert names("stage1.onnx") == ["cut_0", "cut_1", *others]


def test_weights_are_the_file_s_bit_for_bit(toy_models):
    flat = flatten(embedded.case("toy").denoiser)
    model = onnx.load(toy_models / "branch.onnx", load_external_data=False)
    assert {t.name for t in model.graph.initializer} == set(flat.weights)
    for tensor in model.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.EXTERNAL
        assert {e.value for e in tensor.external_data if e.key == "location"} == {
            "weights.safetensors"
        }
        read = onnx.numpy_helper.to_array(tensor, base_dir=str(toy_models))
        original = flat.values[flat.weights.index(tensor.name)].detach().numpy()
        assert read.tobytes() == original.tobytes()


def test_changed_weights_file_changes_what_the_models_compute(toy_models, tmp_path):
    case = embedded.case("toy")
    shutil.copytree(toy_models, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "weights.safetensors"
    values = {n: t.numpy() for n, t in case.inputs(case.denoiser).items()}
    before = run(tmp_path / "branch.onnx", values)["eps"]
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 1
    save_file(tensors, weights)
    assert np.allclose(run(tmp_path / "branch.onnx", values)["eps"], before + 1, atol=1e-5)


def test_models_say_nothing_of_the_machine_that_wrote_them(toy_models):
    text = (toy_models / "stage0.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in text
    assert b"stack_trace" not in text


def test_places_are_where_the_bytes_are(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7, dtype=torch.int64)}
    file = tmp_path / "some.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    found, text = places(file), file.read_bytes()
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        place = found[name]
        assert place.file == file.name
        assert (
            text[place.offset : place.offset + place.nbytes]
            == tensor.contiguous().numpy().tobytes()
        )


def constant_part() -> fx.GraphModule:
    """`(x) -> {"sum": x + w + c}`, where c is a constant of the code."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta = {"val": torch.zeros(2, 3)}
    total = graph.call_function(torch.ops.aten.add.Tensor, (x, graph.get_attr("w")))
    total = graph.call_function(torch.ops.aten.add.Tensor, (total, graph.get_attr("c")))
    graph.output({"sum": total})
    return fx.GraphModule({"w": torch.full((3,), 2.0), "c": torch.tensor(0.5)}, graph)


def test_constants_that_are_no_weights_are_in_the_model_and_a_dict_names_its_outputs(tmp_path):
    save_file({"w": torch.full((3,), 2.0)}, tmp_path / "w.safetensors")
    path = tmp_path / "part.onnx"
    export_part(constant_part(), path, places(tmp_path / "w.safetensors"), result="unused")
    inside = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    assert inside["w"].data_location == onnx.TensorProto.EXTERNAL
    assert inside["c"].data_location == onnx.TensorProto.DEFAULT
    (name, total), *_ = run(path, {"x": np.ones((2, 3), np.float32)}).items()
    assert name == "sum"
    assert (total == 3.5).all()


def test_weights_are_not_read_so_they_may_be_anywhere(tmp_path):
    part = layer(seed=1)
    save_file({n: t.detach() for n, t in part.state_dict().items()}, tmp_path / "w.safetensors")
    away = with_values(layer(seed=1).to("meta"), torch.zeros(2, 4, device="meta"))
    path = tmp_path / "part.onnx"
    export_part(away, path, places(tmp_path / "w.safetensors"), result="y")
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert error(run(path, {"x": x.numpy()})["y"], part(x)) < TOLERANCE


def test_weights_named_as_an_input_and_an_operator_keep_apart(tmp_path):
    names = ("x", "mm", "w")
    held = {n: torch.randn(3, 3) for n in names}
    graph = fx.Graph()
    x = graph.placeholder("given")
    x.meta = {"val": torch.zeros(2, 3)}
    nodes = [graph.get_attr(n) for n in names]
    for node in nodes:
        x = graph.call_function(torch.ops.aten.mm.default, (x, node), name="mm")
    graph.output(x)
    part = fx.GraphModule(held, graph)
    next(iter(part.graph.nodes)).name = "x"
    save_file(held, tmp_path / "w.safetensors")
    path = tmp_path / "part.onnx"
    export_part(part, path, places(tmp_path / "w.safetensors"), result="y")
    given = torch.randn(2, 3)
    result = run(path, {"x": given.numpy()})["y"]
    assert error(result, given @ held["x"] @ held["mm"] @ held["w"]) < TOLERANCE


def test_place_of_another_size_is_refused(tmp_path):
    expected = r"w takes 12 bytes, its place in w.safetensors has 8; save"
    with pytest.raises(ValueError, match=expected):
        export_part(
            constant_part(), tmp_path / "p.onnx", {"w": Place("w.safetensors", 0, 8)}, result="y"
        )


def test_weights_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        onnx.checker.ValidationError, match=r"tensor name: w\) should be .*w.safetensors"
    ):
        export_part(
            constant_part(), tmp_path / "p.onnx", {"w": Place("w.safetensors", 0, 12)}, result="y"
        )


def test_operator_without_onnx_form_is_refused(tmp_path):
    part = constant_part()
    node = next(n for n in part.graph.nodes if n.op == "call_function")
    node.target = torch.ops.aten.igamma.default
    part.recompile()
    with pytest.raises(BackendError, match=r"p has no ONNX form: .*igamma.* backend='inductor'"):
        export_part(part, tmp_path / "p.onnx", {}, result="y")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_named_with_its_install_command(package, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "hybridiff_compile.lower.onnx.find_spec", lambda n: None if n == package else find(n)
    )
    expected = rf"the package {package}, .*pip install hybridiff-compile\[onnx\]"
    with pytest.raises(BackendError, match=expected):
        check()
    with pytest.raises(BackendError, match=expected):
        export_part(constant_part(), tmp_path / "p.onnx", {}, result="y")
