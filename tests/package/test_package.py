"""Exported in one process, loaded in another: the same pictures, and nothing traced or compiled."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession

import hybridiff_compile
from hybridiff_compile import package
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.entry import not_packaged
from hybridiff_compile.errors import ConfigError, HybridiffError, PackageError
from hybridiff_compile.package.manifest import MANIFEST, WEIGHTS
from tests import pipelines

NAME = "tiny-sd3"
CALL = {"num_inference_steps": 6}

# What a deployment does; it prints what torch's own counters saw.
DEPLOY = f"""
import gc, sys, warnings
warnings.simplefilter("error", UserWarning)
import torch, hybridiff_compile
from torch._dynamo.utils import counters
from hybridiff_compile import ops
from hybridiff_compile.runtime import messages
from tests import pipelines

pipe = pipelines.shallow()
with torch.no_grad():
    for weight in pipe.transformer.parameters():
        weight.zero_()  # the package brings its own
def refuse(*args, **kwargs):
    raise AssertionError("a deployment traces and compiles nothing")
torch.export.export = refuse
with hybridiff_compile.load(sys.argv[1], pipe) as model:
    picture = pipelines.latents(model, "{NAME}", num_inference_steps=6)
    phases = model.report.steps_by_phase
    def run(count):
        for seed in range(count):
            pipelines.latents(model, "{NAME}", seed, num_inference_steps=50)
        gc.collect()
        worker = model._session.ranks.driver.fleet.ask(messages.Ask())
        return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6, worker
    before, worker_before = run(3)
    after, worker = run(10)
    assert after - before < 4 and worker.rss_mb - worker_before.rss_mb < 4
torch.save(picture, sys.argv[2])
print(phases, dict(counters["inductor"]), dict(counters["stats"]), dict(counters["frames"]))
print(worker.compilations, worker.unwaited, ops.unwaited())
"""


def test_a_fresh_process_loads_it_without_tracing_or_compiling(
    exported: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, picture = exported
    command = [sys.executable, "-c", DEPLOY, str(folder), str(tmp_path / "picture")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    counted, worker = done.stdout.splitlines()[-2:]
    assert counted == "{'serial': 4, 'pipelined': 2, 'forecast': 0} {} {} {}"
    assert worker == "0 0 0"
    loaded = torch.load(tmp_path / "picture")
    assert ((loaded - picture).abs().max() / picture.abs().max()).item() < 1e-4


def test_it_holds_the_weights_once_and_each_stage_once(
    exported: tuple[Path, torch.Tensor],
) -> None:
    folder, _ = exported
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*.*")}
    assert set(files) == {
        MANIFEST,
        WEIGHTS,
        "rank0.json",
        "rank1.json",
        "0-stage0.pt2",
        "1-stage1.pt2",
    }
    transformer = pipelines.shallow().transformer
    held = sum(t.nbytes for t in (*transformer.parameters(), *transformer.buffers()))
    assert held <= files[WEIGHTS] < 1.02 * held
    for name in ("rank0.json", "rank1.json"):
        (programs,) = json.loads((folder / name).read_text())
        assert list(programs) == ["SERIAL", "PIPELINED", "DRAINED"]


def test_export_leaves_the_compilers_settings_as_they_were(
    exported: tuple[Path, torch.Tensor],
) -> None:
    """They are part of the key of its caches: the ranks would not find each other's code."""
    from torch._inductor import config

    assert config.aot_inductor.metadata == {}  # pyright: ignore[reportAttributeAccessIssue]


def test_loaded_programs_read_as_they_were(exported: tuple[Path, torch.Tensor]) -> None:
    folder, _ = exported
    manifest = package.check(folder)
    pipe = pipelines.shallow()
    found, give_back = package.load(folder, manifest, pipe.transformer)
    (entry,) = found.values()
    give_back()
    with hybridiff_compile.optimize(pipe, mode="paper", tau1=2, k=2) as model:
        model.compile(**pipelines.settings(NAME, **CALL))
        assert "\n\n".join(map(str, entry.programs.values())) == model.graphs()


def test_flipped_byte_is_refused_in_every_file(copy: Path) -> None:
    for file in sorted(p for p in copy.rglob("*.*") if p.name != MANIFEST):
        data = file.read_bytes()
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        name = file.relative_to(copy).as_posix()
        with pytest.raises(PackageError, match=f"{name} is not as it was exported"):
            package.check(copy)
        file.write_bytes(data)
    assert package.check(copy).ranks == 2


def test_missing_rank_missing_file_and_stray_file_are_refused(copy: Path) -> None:
    (copy / "stray").write_text("")
    with pytest.raises(PackageError, match="stray is not in the manifest"):
        package.check(copy)
    (copy / "stray").unlink()
    (copy / WEIGHTS).rename(copy.parent / WEIGHTS)
    with pytest.raises(PackageError, match=f"{WEIGHTS} is missing"):
        package.check(copy)
    (copy / "rank1.json").unlink()
    with pytest.raises(PackageError, match=r"rank 1 of 2 is missing \(rank1.json\)"):
        package.check(copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("torch", "1.0.0", "exported for torch 1.0.0, this is"),
        ("device", "cuda sm_90", "exported for device cuda sm_90, this is cpu"),
        ("version", 1, "version 1: .*manifests of version 2 are read here"),
        ("denoiser", "OtherModel", "exported from a OtherModel, the pipeline has a SD3Trans"),
        ("surprise", 1, "surprise 1: Extra inputs are not permitted"),
    ],
)
def test_package_for_something_else_is_refused(
    copy: Path, key: str, value: object, message: str
) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, key: value}))
    pipe = pipelines.shallow()
    with pytest.raises(PackageError, match=message):
        hybridiff_compile.load(copy, pipe)
    assert pipe.transformer.forward.__func__ is type(pipe.transformer).forward


def test_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"is no package: it has no manifest.json"):
        package.check(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(PackageError, match=r"manifest.json: text .*Invalid JSON"):
        package.check(tmp_path)


def test_other_weights_shapes_are_refused(exported: tuple[Path, torch.Tensor]) -> None:
    pipe = pipelines.shallow()
    pipe.transformer.half()
    with pytest.raises(PackageError, match=r"weight .* is torch.float32.*torch.float16"):
        hybridiff_compile.load(exported[0], pipe)


def test_loaded_model_refuses_what_was_not_exported(exported: tuple[Path, torch.Tensor]) -> None:
    pipe = pipelines.shallow()
    with hybridiff_compile.load(exported[0], pipe) as model:
        with pytest.raises(PackageError, match=r"hidden_states is .*2x4x24x24, not .*2x4x16x16"):
            pipelines.latents(model, NAME, height=96, width=96, **CALL)
        with torch.no_grad():
            pipe.transformer.proj_out.bias.add_(1)
        with pytest.raises(PackageError, match="has changed since its package was loaded"):
            pipelines.latents(model, NAME, **CALL)


def test_refused_load_leaves_the_pipeline_as_it_was(
    exported: tuple[Path, torch.Tensor],
) -> None:
    pipe = pipelines.shallow()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(7)
    with hybridiff_compile.optimize(pipe), pytest.raises(HybridiffError, match="already"):
        hybridiff_compile.load(exported[0], pipe)
    assert pipe.transformer.proj_out.bias.eq(7).all()


def test_package_refused_for_one_weight_changes_none(
    exported: tuple[Path, torch.Tensor],
) -> None:
    folder, _ = exported
    pipe = pipelines.shallow()
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.fill_(7)
    pipe.transformer.proj_out.half()
    with pytest.raises(PackageError, match="weight proj_out"):
        package.load(folder, package.check(folder), pipe.transformer)
    assert all(weight.eq(7).all() for weight in pipe.transformer.parameters())


@pytest.mark.slow
def test_onnx_package_runs_in_another_runtime(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "onnx", pipelines.shallow()
    settings: Any = {"mode": "paper", "tau1": 2, "k": 2}
    with hybridiff_compile.optimize(pipe, **settings) as model:
        model.compile(**pipelines.settings(NAME, **CALL))
        hybridiff_compile.export(model, folder, "onnx")
    manifest = package.check(folder)
    assert (manifest.format, len(manifest.files)) == ("onnx", 6)
    sizes = {p.name: p.stat().st_size for p in folder.glob("*.onnx")}
    assert set(sizes) == {"0-stage0.onnx", "1-stage1.onnx", "2-branch.onnx"}
    assert sum(sizes.values()) < (folder / WEIGHTS).stat().st_size  # the weights are not in them
    with pytest.raises(PackageError, match="holds onnx models for other runtimes"):
        hybridiff_compile.load(folder, pipelines.shallow())

    def session(name: str) -> InferenceSession:
        return InferenceSession(folder / name, providers=["CPUExecutionProvider"])

    whole, *stages = map(session, ("2-branch.onnx", "0-stage0.onnx", "1-stage1.onnx"))
    rng = np.random.default_rng(0)
    given = {i.name: rng.standard_normal(i.shape, np.float32) for i in whole.get_inputs()}
    with torch.no_grad():
        eager = pipe.transformer(**{k: torch.from_numpy(v) for k, v in given.items()}).sample
    (at_once,) = whole.run(None, given)
    values = dict(given)
    for stage in stages:  # as any runtime would drive them: by the names of inputs and outputs
        asked = {i.name: values[i.name] for i in stage.get_inputs()}
        values |= zip((o.name for o in stage.get_outputs()), stage.run(None, asked), strict=True)
    for predicted in (at_once, values["eps"]):
        error = (torch.from_numpy(predicted) - eager).abs().max() / eager.abs().max()
        assert error < 1e-4


def test_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("hybridiff_compile.lower.aot.compile_to", fail)
    with hybridiff_compile.optimize(pipelines.shallow()) as model:
        with pytest.raises(ConfigError, match="nothing to export"):
            hybridiff_compile.export(model, tmp_path / "package")
        model.compile(**pipelines.settings(NAME, **CALL))
        with pytest.raises(RuntimeError, match="no compiler"):
            hybridiff_compile.export(model, tmp_path / "package")
        assert not list(tmp_path.iterdir())
        with pytest.raises(ConfigError, match="format='zip' is unknown"):
            hybridiff_compile.export(model, tmp_path / "package", "zip")  # pyright: ignore
        (tmp_path / "package").mkdir()
        with pytest.raises(PackageError, match="exists; name a new folder"):
            hybridiff_compile.export(model, tmp_path / "package")


def test_a_call_that_differs_in_strides_is_told_by_them() -> None:
    dense = torch.zeros(2, 4, 8, 8)
    calls = [DenoiserCall.of(("sample",), (x,), {}) for x in (dense, dense.transpose(2, 3))]
    said = not_packaged(calls[1], [calls[0].signature()])
    assert "sample is torch.float32 2x4x8x8 of strides (256, 64, 1, 8) on cpu, not " in said
    assert "not torch.float32 2x4x8x8 of strides (256, 64, 8, 1) on cpu" in said
    wider = DenoiserCall.of(("sample",), (torch.zeros(2, 4, 9, 8),), {})
    said = not_packaged(wider, [calls[0].signature()])
    assert "sample is torch.float32 2x4x9x8, not torch.float32 2x4x8x8)" in said
