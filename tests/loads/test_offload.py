"""Weights that are moved or cast when they are needed: of other parts, and of the denoiser."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from packaging.version import Version

import hybridiff_compile
from hybridiff_compile import looking
from hybridiff_compile.errors import UnsupportedPipelineError
from tests.loads import switches
from tests.loads.switches import apart, make

#: diffusers offloads by groups without an accelerator from 0.41 on.
in_groups = pytest.mark.skipif(
    Version(version("diffusers")) < Version("0.41") and not torch.accelerator.is_available(),
    reason="this diffusers offloads by groups only to an accelerator",
)
HERE: Any = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}

#: Switches on for a whole pipeline, and what is said of its denoiser.
OF_DENOISERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model offload": (
        lambda p: p.enable_model_cpu_offload(device="cpu"),
        "is offloaded by accelerate, and every rank holds the whole model",
    ),
    "block offload": (
        lambda p: p.transformer.enable_group_offload(
            offload_type="block_level", num_blocks_per_group=1, **HERE
        ),
        r"hooks of diffusers \(group_offloading\) run this",
    ),
    "leaf offload": (
        lambda p: p.transformer.enable_group_offload(offload_type="leaf_level", **HERE),
        "it moves or casts its weights as it runs",
    ),
    "layerwise casting": (
        lambda p: p.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        "it moves or casts its weights as it runs",
    ),
}


@in_groups
def test_other_parts_may_be_offloaded() -> None:
    pipe, plain = switches.sd3(), switches.sd3()
    pipe.enable_group_offload(offload_type="leaf_level", exclude_modules=["transformer"], **HERE)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(make(model), apart(plain))
        assert model.report.ranks == 2


@pytest.mark.parametrize(
    "name",
    [
        "model offload",
        pytest.param("block offload", marks=in_groups),
        pytest.param("leaf offload", marks=in_groups),
        "layerwise casting",
    ],
)
def test_after_optimize_one_rank_runs_it_and_says_why(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    switch, says = OF_DENOISERS[name]
    pipe, plain = switches.sd3(), switches.sd3()
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        make(model)
        for each in (pipe, plain):
            switch(each)
        with caplog.at_level(logging.WARNING, "hybridiff_compile"):
            made = [make(model) for _ in range(2)]
        assert torch.equal(made[0], make(plain))
        assert torch.equal(made[1], made[0])
        assert model.report.ranks == 1
    after, before = _said(caplog), []
    try:  # before optimize
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "hybridiff_compile"),
            hybridiff_compile.optimize(plain, mode="exact") as model,
        ):
            assert torch.equal(make(model), made[0])
            assert model.report.ranks == 1
        before = _said(caplog)
    except UnsupportedPipelineError as e:
        before = [str(e)]
    assert after
    assert before
    for text in after + before:
        assert re.search(says, text)
        assert len(text) < 600


def test_a_denoiser_that_casts_its_weights_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, own, pipe = [], looking.look, switches.sd3()
    monkeypatch.setattr(looking, "look", lambda *args: tried.append(1) or own(*args))
    plain = switches.sd3().transformer
    OF_DENOISERS["layerwise casting"][0](pipe)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for _ in range(3):
            make(model)
            assert len(tried) == model.report.ranks == 1
        pipe.transformer = plain
        make(model)
        assert len(tried) == model.report.ranks == 2


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if "one rank runs this" in text]
