import hashlib
from contextlib import nullcontext

import pytest
from typer.testing import CliRunner

import hybridiff_compile
from hybridiff_compile.bench import models, ranks
from hybridiff_compile.bench.wanted import Wanted
from hybridiff_compile.cli import app
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.package.manifest import (
    MANIFEST,
    VERSION,
    Call,
    ConstantLeaf,
    Manifest,
    Switching,
    TensorLeaf,
)
from tests import pipelines

runner = CliRunner()


@pytest.fixture
def folder(tmp_path):
    """A package that is whole, as far as its files go."""
    files = {"rank0.json": b"{}", "rank1.json": b"{}", "0-stage0.pt2": b"x" * 2_500_000}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    picture = TensorLeaf(
        shape=(2, 4, 16, 16), stride=(1024, 256, 16, 1), dtype="float32", device="cpu"
    )
    step = TensorLeaf(shape=(), stride=(), dtype="int64", device="cpu")
    leaves = (picture, step, ConstantLeaf(constant="False"))
    call = Call(
        names=("sample", "timestep", "return_dict"),
        leaves=leaves,
        arguments="*",
        answer="*",
        answer_leaves=((4, 16, 16),),
        rows={"sample": 0},
    )
    given = dict.fromkeys(Switching.model_fields) | {"tau1": 4, "k": 3}
    made = Manifest(
        format="aot",
        torch="2.13.0",
        device="cpu x86_64 AVX2",
        denoiser="UNet2DConditionModel",
        mode="paper",
        version=VERSION,
        switching=Switching.model_validate(given),
        strides={},
        constants=(),
        ranks=2,
        calls=(call,),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    (tmp_path / MANIFEST).write_text(made.model_dump_json())
    return tmp_path


def test_load_check_says_what_a_package_holds(folder):
    result = runner.invoke(app, ["load-check", str(folder)])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == f"{folder} is whole: 3 files, 2.50 MB, as exported"
    assert lines[1:] == [
        "format      aot, version 2",
        "made with   torch 2.13.0 for cpu x86_64 AVX2",
        "denoiser    UNet2DConditionModel",
        "mode        paper (k=3, tau1=4), 2 ranks",
        "call 0      2x4x16x16 float32, scalar int64",
        "file           2.50 MB  0-stage0.pt2",
        "file           0.00 MB  rank0.json",
        "file           0.00 MB  rank1.json",
    ]


def test_load_check_names_a_file_that_was_changed(folder):
    (folder / "rank1.json").write_text("[]")
    result = runner.invoke(app, ["load-check", str(folder)])
    assert result.exit_code == 2
    assert "rank1.json is not as it was exported" in result.output
    assert result.output.count("\n") == 1


def test_the_calls_keywords_are_the_models_own_unless_given():
    trained = models.call_settings("tiny-sd3")
    assert Wanted("tiny-sd3", None).call() == {**trained, "num_images_per_prompt": 1}
    given = Wanted("tiny-sd3", None, height=96, images=2, steps=20).call()
    assert (given["height"], given["width"]) == (96, trained["width"])
    assert (given["num_images_per_prompt"], given["num_inference_steps"]) == (2, 20)


def test_a_users_pipeline_is_called_with_what_was_given_only(tmp_path):
    wanted = Wanted(None, tmp_path, width=512)
    assert wanted.call() == {"width": 512, "num_images_per_prompt": 1}
    assert wanted.name == str(tmp_path)


@pytest.mark.parametrize("name", ["height", "width", "images", "steps"])
def test_sizes_that_no_picture_has_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        Wanted("tiny-sd3", None, **{name: 0})


def test_a_size_that_the_pipeline_refuses_is_an_error_of_one_line():
    result = runner.invoke(app, ["compile", "--model", "tiny-sd3", "--height", "63"])
    assert result.exit_code == 2
    assert "error: the pipeline refuses this call" in result.output
    assert "63" in result.output


def test_compile_tells_seconds_and_graphs_of_every_rank(monkeypatch, tmp_path):
    """With a pipeline from a folder, which is the whole of what a user's pipeline is."""
    own, asked = hybridiff_compile.optimize, {}

    def optimize(pipe, *, mode, **lowering):
        asked.update(lowering)
        return own(pipe, mode=mode)  # eagerly, so that nothing takes long

    monkeypatch.setattr(hybridiff_compile, "optimize", optimize, raising=False)
    monkeypatch.setattr(ranks, "compilations", lambda model: [len(model.programs()), 2])
    pipelines.shallow().save_pretrained(tmp_path)
    command = ["compile", "--pipe", str(tmp_path), "--scope", "regional"]
    result = runner.invoke(app, [*command, "--height", "64", "--width", "64"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "hybrid, inductor, regional: all ranks ready in" in lines[0]
    assert lines[1:3] == ["rank 0: 1 compiled graphs", "rank 1: 2 compiled graphs"]
    assert lines[3].startswith("the cache is /")
    assert asked == {"backend": "inductor", "scope": "regional"}


def test_export_exports_a_compiled_model(monkeypatch, tmp_path):
    did = []

    class Model(nullcontext):
        def compile(self, **call):
            did.append(call)

    def optimize(pipe, *, mode):
        did.append(mode)
        model = Model()
        model.enter_result = model
        return model

    def export(model, folder, format):
        did.append((type(model), folder, format))

    monkeypatch.setattr(hybridiff_compile, "optimize", optimize, raising=False)
    monkeypatch.setattr(hybridiff_compile, "export", export, raising=False)
    wanted = Wanted("tiny-sd3", None, mode="paper")
    command = ["export", "--model", "tiny-sd3", "--mode", "paper", "--format", "onnx"]
    result = runner.invoke(app, [*command, "--out", str(tmp_path / "package")])
    assert result.exit_code == 0, result.output
    assert f"tiny-sd3, paper: wrote {tmp_path / 'package'} (onnx) in" in result.output
    assert did == ["paper", wanted.call(), (Model, tmp_path / "package", "onnx")]


def test_a_folder_of_a_pipeline_that_was_saved_without_a_part_is_loaded(tmp_path):
    models.load("tiny-sd3").save_pretrained(tmp_path)
    pipe = models.load_folder(tmp_path)
    assert pipe.components["text_encoder_3"] is None
    assert pipe.components["transformer"] is not None


@pytest.mark.parametrize("text", ["{", "[]", '{"_class_name": "NoSuchPipeline"}'])
def test_a_folder_that_diffusers_cannot_load_is_refused(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ConfigError, match=f"diffusers cannot load {tmp_path}"):
        models.load_folder(tmp_path)
