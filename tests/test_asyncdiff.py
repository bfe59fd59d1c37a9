"""mode="asyncdiff" against a plain re-computation with stale features on one device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

import hybridiff_compile
from hybridiff_compile import Phase
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.ir import output_node
from hybridiff_compile.planning import traffic
from tests import pipelines
from tests.reference_asyncdiff import BatchReference

STEPS = 8
CALL: dict[str, Any] = {"num_inference_steps": STEPS}


def optimized(name: str, **settings: Any) -> Any:
    return hybridiff_compile.optimize(pipelines.load(name), mode="asyncdiff", **settings)


@pytest.fixture(scope="module")
def sd3() -> Iterator[Any]:
    """A model that has made a picture."""
    with optimized("small-sd3") as model:
        pipelines.latents(model, "small-sd3", num_inference_steps=2)
        yield model


def crossing(model: Any) -> frozenset[str]:
    """The one fact taken from the library: names of the nodes at its cut."""
    programs = model.programs()[0]
    stage0 = programs[Phase.PIPELINED].graphs[0].get_submodule("stage0")
    assert isinstance(stage0, fx.GraphModule)
    nodes: Any = output_node(stage0.graph).args[0]
    return frozenset(n.name for n in nodes)


def recomputed(
    name: str, names: frozenset[str], tau1: int, k: int, **call: Any
) -> tuple[torch.Tensor, list[int]]:
    """The latents of one device, and the steps that it computed with stale features."""
    plain = pipelines.load(name)
    denoiser = plain.unet if name.endswith("sdxl") else plain.transformer
    reference = BatchReference(denoiser, names, tau1, k)
    with reference.attached():
        return pipelines.latents(plain, name, **call), reference.stale


@pytest.mark.parametrize(
    ("name", "given", "tau1", "k"),
    [
        ("small-sdxl", {}, 1, STEPS - 1),
        pytest.param("tiny-sdxl", {}, 1, STEPS - 1, marks=pytest.mark.slow),
        pytest.param("tiny-sd3", {}, 1, STEPS - 1, marks=pytest.mark.slow),
        pytest.param("tiny-sd3", {"tau1": 3}, 3, STEPS - 3, marks=pytest.mark.slow),
        pytest.param("tiny-sdxl", {"tau1": 2, "k": 4}, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_equals_a_plain_recomputation(name: str, given: dict[str, int], tau1: int, k: int) -> None:
    with optimized(name, **given) as model:
        made = pipelines.latents(model, name, **CALL)
        again = pipelines.latents(model, name, **CALL)
        report, names = model.report, crossing(model)
    expected, stale = recomputed(name, names, tau1, k, **CALL)
    assert torch.isfinite(made).all()
    assert torch.equal(made, expected)
    assert torch.equal(made, again)
    assert stale == list(range(tau1, tau1 + k))
    assert (report.ranks, report.tau1, report.tau2) == (2, tau1, tau1 + k)
    assert [s.phase for s in report.steps] == [
        Phase.PIPELINED if i in stale else Phase.SERIAL for i in range(STEPS)
    ]


def test_stale_features_show_in_the_picture(sd3: Any) -> None:
    """The comparison above can fail: one stale step less is far outside of rounding."""
    made = pipelines.latents(sd3, "small-sd3", **CALL)
    expected, _ = recomputed("small-sd3", crossing(sd3), 2, STEPS - 2, **CALL)
    assert (made - expected).abs().max() > 1e-2


def test_several_prompts_with_several_pictures_each(sd3: Any) -> None:
    call = {
        "prompt": [pipelines.PROMPT, pipelines.OTHER_PROMPT],
        "negative_prompt": ["a red circle", "a blue square"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 4,
    }
    made = pipelines.latents(sd3, "small-sd3", **call)
    assert torch.equal(made, recomputed("small-sd3", crossing(sd3), 1, 3, **call)[0])


def test_one_step_is_the_batched_call_of_one_device(sd3: Any) -> None:
    made = pipelines.latents(sd3, "small-sd3", num_inference_steps=1)
    assert sd3.report.steps_by_phase == {"serial": 1, "pipelined": 0, "forecast": 0}
    expected = pipelines.latents(pipelines.load("small-sd3"), "small-sd3", num_inference_steps=1)
    assert (made - expected).abs().max() < 1e-5


def test_what_is_sent_is_what_the_programs_say(sd3: Any) -> None:
    pipelines.latents(sd3, "small-sd3", num_inference_steps=3)
    entry = sd3.session().entries[0]
    phases = [step.phase for step in sd3.report.steps]
    changing = ("hidden_states", "timestep")
    expected = traffic.picture_bytes(entry.programs, phases, changing, entry.key)
    assert sd3.report.bytes_sent == expected
    serial, pipelined = entry.programs.values()
    assert [traffic.link_bytes(serial, rank) for rank in range(2)] == [0, 0]
    prediction = sd3.pipe.transformer.config.out_channels * 2 * 16 * 16 * 4
    assert traffic.link_bytes(pipelined, 1) == prediction


def test_verify_compares_it_with_one_device(sd3: Any) -> None:
    call = {**pipelines.models.call_settings("tiny-sd3"), **CALL}
    found = sd3.verify(pipelines.PROMPT, **call)
    assert found.mode == "asyncdiff"
    assert found.steps_by_phase == {"serial": 1, "pipelined": STEPS - 1, "forecast": 0}
    assert found.error_by_step[0] < 1e-5 < found.error_by_step[1]


def test_a_picture_without_guidance_runs_on_one_rank(sd3: Any) -> None:
    pipelines.latents(sd3, "small-sd3", num_inference_steps=2, guidance_scale=1.0)
    assert sd3.report.ranks == 1


def test_it_is_not_packaged(sd3: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mode='asyncdiff' is a baseline .* another mode"):
        hybridiff_compile.export(sd3, tmp_path / "package")


@pytest.mark.slow
def test_compiled_programs_make_the_same_picture() -> None:
    """Both ranks are given the expanded time of a batch of two, which is dense where it arrives."""
    made = []
    for backend in ("eager", "inductor"):
        pipe: Any = pipelines.shallow()
        with hybridiff_compile.optimize(pipe, mode="asyncdiff", backend=backend) as model:
            made.append(pipelines.latents(model, "small-sd3", num_inference_steps=4))
    assert (made[0] - made[1]).abs().max() <= 1e-4 * made[0].abs().max()


class Apart:
    """A pipeline that calls its denoiser for a branch at a time."""

    def __init__(self) -> None:
        self.transformer = pipelines.load("small-sd3").transformer

    def __call__(self) -> Any:
        config = self.transformer.config
        values = {
            "hidden_states": torch.zeros(1, config.in_channels, 8, 8),
            "encoder_hidden_states": torch.zeros(1, 4, config.joint_attention_dim),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
        }
        return self.transformer(timestep=torch.ones(1), **values)


def test_a_call_of_one_branch_at_a_time_is_refused() -> None:
    says = r"mode='asyncdiff' .* call of shape \(1, 4, 8, 8\) is no .*; use mode='exact' for it"
    with (
        hybridiff_compile.optimize(Apart(), mode="asyncdiff") as model,
        pytest.raises(ConfigError, match=says),
    ):
        model()
