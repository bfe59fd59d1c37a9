"""mode="paper" against a plain re-computation of the paper's three stages on one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

import hybridiff_compile
from hybridiff_compile import Phase
from hybridiff_compile.config import TRANSFORMER_SWITCHING, UNET_SWITCHING
from hybridiff_compile.ir import output_node
from tests import pipelines
from tests.reference import PaperReference

CONSTANTS = {"sdxl": UNET_SWITCHING, "sd3": TRANSFORMER_SWITCHING}


def crossing(model: Any) -> frozenset[str]:
    """The one fact taken from the library: names of the nodes at its cut."""
    (programs,) = model.programs()
    stage0 = programs[Phase.PIPELINED].graphs[0].get_submodule("stage0")
    assert isinstance(stage0, fx.GraphModule)
    nodes: Any = output_node(stage0.graph).args[0]
    return frozenset(n.name for n in nodes)


@pytest.mark.parametrize(
    "name", ["small-sdxl", *pipelines.slow("small-sd3", "tiny-sdxl", "tiny-sd3")]
)
@pytest.mark.parametrize(
    ("steps", "override"),
    [
        pytest.param(50, {}, marks=pytest.mark.slow),
        pytest.param(24, {}, marks=pytest.mark.slow),
        (20, {"tau1": 4, "k": 9}),
        pytest.param(20, {"eps_slope": 1.0, "L_slope": 3, "k": 2}, marks=pytest.mark.slow),
    ],
)
def test_equals_a_plain_recomputation(name: str, steps: int, override: dict[str, Any]) -> None:
    plain, call = pipelines.load(name), {"num_inference_steps": steps}
    with hybridiff_compile.optimize(pipelines.load(name), mode="paper", **override) as model:
        made = pipelines.latents(model, name, **call)
        report, names = model.report, crossing(model)

    base = CONSTANTS[name.partition("-")[2]]
    k = override.get("k", max(1, round(base.k * steps / 50)))
    reference = PaperReference(
        plain.unet if name.endswith("sdxl") else plain.transformer,
        names,
        L=override.get("L_slope", max(1, round(base.L_slope * steps / 50))),
        g=override.get("eps_slope", base.eps_slope * 50 / steps),
        k=k,
        cap=max(1, round(base.tau_cap * steps / 50)),
    )
    reference.tau1 = override.get("tau1")
    with reference.attached():
        expected = pipelines.latents(plain, name, **call)

    assert (made - expected).abs().max() <= 1e-5
    assert reference.tau1 is not None
    assert (report.tau1, report.tau2) == (reference.tau1, reference.tau1 + k)
    assert report.steps_by_phase == {"serial": steps - k, "pipelined": k, "forecast": 0}
    measured = [s.discrepancy for s in report.steps if s.discrepancy is not None]
    torch.testing.assert_close(measured, reference.M, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_reference_notices_the_wrong_branch() -> None:
    """The comparison above can fail: swapping the branches' embeddings is far outside 1e-5."""
    name, plain = "small-sdxl", pipelines.load("small-sdxl")
    call: dict[str, Any] = {"num_inference_steps": 6}
    swapped: dict[str, Any] = {"prompt": "a red circle", "negative_prompt": pipelines.PROMPT}
    with hybridiff_compile.optimize(
        pipelines.load(name), mode="paper", tau1=2, k=3, tau_cap=2
    ) as model:
        made = pipelines.latents(model, name, **call, **swapped)
        names = crossing(model)
    reference = PaperReference(plain.unet, names, L=9, g=0.0, k=3, cap=9)
    reference.tau1 = 2
    with reference.attached():
        expected = pipelines.latents(plain, name, **call, negative_prompt="a red circle")
    assert (made - expected).abs().max() > 1e-2
