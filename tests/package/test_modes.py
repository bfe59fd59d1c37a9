"""Every mode goes into a package and comes out of it, with its phases and its switching."""

from pathlib import Path
from typing import Any

import pytest

import hybridiff_compile
from hybridiff_compile.errors import ConfigError, PackageError
from hybridiff_compile.package.manifest import MANIFEST
from tests import pipelines

NAME, CALL = "tiny-sd3", {"num_inference_steps": 12}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"mode": "guided", "tau1": 3, "k": 6, "estimator": "hold"}, marks=pytest.mark.slow
        ),
        pytest.param({"mode": "hybrid", "tolerance": 5.0, "m": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_loaded_model_switches_as_the_exported_one(settings: Any, tmp_path: Path) -> None:
    pipe, folder = pipelines.shallow(), tmp_path / "package"
    with hybridiff_compile.optimize(pipe, **settings) as model:
        picture = pipelines.latents(model, NAME, **CALL)
        phases = model.report.steps_by_phase
        hybridiff_compile.export(model, folder)
    with hybridiff_compile.load(folder, pipe) as model:
        loaded = pipelines.latents(model, NAME, **CALL)
        assert model.report.steps_by_phase == phases
        assert model.report.mode == settings["mode"]
        with pytest.raises(ConfigError, match="loaded from a package; copy that folder"):
            hybridiff_compile.export(model, tmp_path / "again")
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace(f'"{settings["mode"]}"', '"faster"'))
    with pytest.raises(PackageError, match=r"not as it was exported: mode='faster' is unknown"):
        hybridiff_compile.load(folder, pipe)
    assert phases["serial"] < CALL["num_inference_steps"]  # it did switch
    assert (loaded - picture).abs().max() <= 1e-4 * picture.abs().max()
