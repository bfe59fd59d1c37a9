"""Whole plans, of models that fit here and of the paper's two."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hybridiff_compile
from hybridiff_compile.bench import models
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.planning import architectures, devices, fidelity, predict
from hybridiff_compile.planning.devices import Device
from hybridiff_compile.planning.report import Plan
from tests import pipelines
from tests.test_three_branches import Three


@pytest.fixture(scope="module")
def small() -> Plan:
    return hybridiff_compile.plan("tiny-sdxl", num_inference_steps=20)


@pytest.fixture(scope="module", params=["sd3-medium", *pipelines.slow("sdxl")])
def papers(request: pytest.FixtureRequest) -> Plan:
    """On two RTX 3090 over PCIe 3, as the paper's Table 1."""
    return hybridiff_compile.plan(request.param)


@pytest.mark.slow
def test_flops_are_those_that_torch_counts_while_the_model_runs() -> None:
    small = hybridiff_compile.plan("sdxl-small", num_inference_steps=20)
    pipe: Any = models.load("sdxl-small")
    counter = FlopCounterMode(display=False)
    call = {**models.call_settings("sdxl-small"), "num_inference_steps": 1}
    forward = pipe.unet.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with counter, sdpa_kernel(SDPBackend.MATH):  # of products that torch has formulas for
            return forward(*args, **kwargs)

    pipe.unet.forward = counted
    pipe(pipelines.PROMPT, output_type="latent", **call)
    assert 2 * small.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_stages_share_the_denoiser(small: Plan) -> None:
    assert small.times.branch[0] <= sum(small.times.stages) <= 1.1 * small.times.branch[0]
    assert min(small.times.stages) > 0.4 * small.times.branch[0]


def test_a_picture_of_the_papers_sends_few_bytes(papers: Plan) -> None:
    most = {"sdxl": 0.27e9, "sd3-medium": 0.13e9}[papers.subject.name]
    row = next(r for r in papers.rows if r.mode == "paper")
    assert row.steps_by_phase == {"serial": 45, "pipelined": 5, "forecast": 0}
    assert 5 * papers.cuts[papers.chosen].crossing < 1.2 * (row.bytes_sent or 0) < 1.2 * most


def test_the_paper_is_beside_its_own_setting_only(papers: Plan) -> None:
    shown = str(papers)
    assert "paper s" in shown
    assert {"sdxl": "16.49", "sd3-medium": "19.36"}[papers.subject.name] in shown


def test_frontier_is_from_balance_to_few_bytes(papers: Plan) -> None:
    balance = [max(c.cost) for c in papers.cuts]
    assert balance == sorted(balance)
    crossing = [c.crossing for c in papers.cuts]
    assert crossing == sorted(crossing, reverse=True)


@pytest.mark.slow
def test_faster_links_and_devices_are_seen() -> None:
    # So many pictures that kernels outlast their launches.
    many = hybridiff_compile.plan("tiny-sdxl", num_inference_steps=20, images=64)

    def seconds(device: str, link: str) -> dict[str, float]:
        on, over = devices.device(device), devices.link(link)
        found = predict.of_subject(many.subject, on, over)
        return {row.mode: row.predicted_seconds or 0 for row in found.rows}

    slow, linked = seconds("rtx3090", "pcie3"), seconds("rtx3090", "nvlink")
    fast = seconds("h200", "nvlink")
    wide = Device("wide", flops=1e15, flops32=1e12, memory_rate=1e13, memory=1e10)
    found = predict.of_subject(many.subject, wide, devices.link("nvlink"))  # in float32
    assert found.times.both > 2 * many.flops / 1e12
    for mode in ("exact", "paper", "guided"):
        assert fast[mode] < linked[mode] < slow[mode]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": 3}, "gpus=3: the passes make programs for 2 devices"),
        ({"device": "tpu"}, "device='tpu' is unknown; choose one of rtx3090"),
        ({"link": "usb"}, "link='usb' is unknown; choose one of pcie3"),
        ({"gpus": 2.0}, "gpus=2.0: the passes make programs for 2 devices"),
        ({"images": 0}, "images=0 must be a whole number, at least 1"),
        ({"images": True}, "images=True must be a whole number, at least 1"),
        ({"images": 2, "num_images_per_prompt": 3}, "images=2 and num_images_per_prompt=3: give"),
        ({"num_inference_steps": 2}, "num_inference_steps=2 must be a whole number, at least 3"),
        ({"num_inference_steps": 9.5}, "num_inference_steps=9.5 must be a whole number"),
        ({"height": "big"}, "height='big' must be a whole number, at least 1"),
        ({"width": 64.0}, "width=64.0 must be a whole number, at least 1"),
        ({"frames": "a"}, "frames='a' must be a whole number, at least 1"),
        ({"figures": 5}, "figures=5 is not a path"),
        ({"psnr_db": "40"}, "psnr_db='40' must be above 0"),
        ({"k": 60}, "k=60"),
        ({"hieght": 64}, "hieght=64: StableDiffusion3Pipeline takes no such keyword"),
        ({"frames": 5}, "num_frames=5: StableDiffusion3Pipeline takes no such keyword"),
        ({"height": 63}, "StableDiffusion3Pipeline refuses this call: .height."),
        ({"figures": "none.json"}, "none.json"),
        ({"psnr_db": float("nan")}, "psnr_db=nan must be above 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hybridiff_compile.plan("tiny-sd3", **asked)


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(UnsupportedPipelineError):
        hybridiff_compile.plan(torch.nn.Linear(1, 1))
    with pytest.raises(UnsupportedPipelineError, match="guidance_scale"):
        hybridiff_compile.plan(models.load("tiny-sdxl"), guidance_scale=1.0)


def test_a_plan_says_where_three_branches_are_placed() -> None:
    class Plain(Three):
        def set_progress_bar_config(self, **_: Any) -> None: ...

    placed = "3 branches, of which rank 0 computes 2 and rank 1 1: exact and hybrid run so"
    with pytest.raises(UnsupportedPipelineError, match=placed):
        hybridiff_compile.plan(Plain())


def test_settings_of_an_architecture_are_refused_before_it_is_traced(tmp_path: Path) -> None:
    told: list[str] = []

    def refused(of: Any, message: str, **asked: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            hybridiff_compile.plan(of, tell=told.append, **asked)

    refused("sdxl", "hieght=512: a plan without weights takes no such keyword", hieght=512)
    refused("sdxl", "k=60", k=60)
    config = {"_class_name": "UNet2DConditionModel"}
    refused(config, "sample_size=None in the config is no size.*: pass height and width")
    refused({**config, "sample_size": "big"}, "sample_size='big' in the config is no size")
    refused({"_class_name": ["x"]}, r"_class_name=\['x'\] is no denoiser")
    refused("nope", "'nope' is neither a file nor a folder nor a model; choose one of .*tiny-sd3")
    refused("", "'' is neither a file nor a folder nor a model")
    refused("sdxl", "height='big' must be a whole number", height="big")
    broken = {"_class_name": "SD3Transformer2DModel", "num_layers": "x"}
    refused(broken, "SD3Transformer2DModel cannot be made of this config")
    refused(str(tmp_path), "cannot be read as a config")
    refused("sdxl", "no row of sdxl in a mode that switches", figures=fidelity.MEASURED[0])
    assert told == ["tracing config"]  # of the broken one, which diffusers refused


def test_a_config_may_leave_defaults_out_and_lie_in_a_pipelines_folder(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = {"_class_name": "SD3Transformer2DModel", "num_layers": 2, "sample_size": 32}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    found = hybridiff_compile.plan(str(tmp_path), height=256, width=256)
    assert found.subject.picture.shape == (1, 16, 32, 32)


def test_a_prompt_and_a_count_of_pictures_are_the_calls_own() -> None:
    found = hybridiff_compile.plan(
        "tiny-sdxl", prompt="a cat", num_images_per_prompt=2, num_inference_steps=9
    )
    assert found.subject.picture.shape[0] == 2


def test_planning_a_pipeline_leaves_it_as_it_was() -> None:
    pipe: Any = models.load("tiny-sdxl")
    before, state = dict(vars(pipe.unet)), torch.get_rng_state()
    found = hybridiff_compile.plan(pipe, num_inference_steps=5, images=2)
    assert found.subject.picture.shape[0] == 2
    assert vars(pipe.unet) == before
    assert torch.equal(torch.get_rng_state(), state)


# Not by getrusage: a child begins with its parent's peak.
_PEAK = """
from hybridiff_compile.bench.ranks import field
from hybridiff_compile.cli import app
try:
    app()
finally:
    print("peak", field("/proc/self/status", "VmHWM"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_full_size_sdxl_is_planned_in_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    command = (sys.executable, "-c", _PEAK, "plan", "--model", "sdxl", "--json", str(file))
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}
    )
    (*_, last) = done.stdout.splitlines()
    assert last.startswith("peak ")
    assert int(last.split()[1]) < 1.5e9
    rows = json.loads(file.read_text())["rows"]
    assert [row["mode"] for row in rows][:3] == ["one-device", "exact", "paper"]
    assert all(row["predicted_seconds"] > 0 and row["model"] == "sdxl" for row in rows)


@pytest.mark.parametrize(
    "name",
    [
        *("wan2.1-1.3b", "qwen-image"),
        *pipelines.slow("sd35-large", "pixart-sigma", "cogvideox-2b", "ltx"),
    ],
)
def test_every_kind_of_transformer_is_traced_cut_and_linked(name: str) -> None:
    config = {**architectures.named(name).config, "num_layers": 4}
    frames = None if architectures.named(name).frames == 1 else 9
    found = hybridiff_compile.plan(config, height=256, width=256, frames=frames)
    assert re.search(r"blocks\.[12]", found.cuts[found.chosen].where)
    crossing = found.cuts[found.chosen].crossing
    assert 0 < crossing < 20 * found.subject.picture.nbytes + 10**7
    both = 2 if name == "pixart-sigma" else 1  # which predicts the variance, too
    prediction = both * found.subject.picture.nbytes
    row = {r.mode: r for r in found.rows}
    sent = {mode: r.bytes_sent or 0 for mode, r in row.items()}
    assert sent["asyncdiff"] == 2 * (50 * crossing + 49 * prediction)
    assert (row["exact"].predicted_seconds or 0) < found.times.both * 50
    assert sent["paper"] > sent["exact"]
