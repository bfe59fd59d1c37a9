import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import architectures, fake_calls

#: Parameters as the model cards and papers state them, to the digits that they give.
STATED = {
    "sdxl": 2.567e9,
    "sd15": 0.860e9,
    "sd3-medium": 2.03e9,
    "sd35-large": 8.06e9,
    "pixart-sigma": 0.61e9,
    "wan2.1-1.3b": 1.42e9,
    "cogvideox-2b": 1.69e9,
    "qwen-image": 20.4e9,
    "ltx": 1.92e9,
}


def test_every_architecture_has_its_published_size():
    assert set(STATED) == set(architectures.NAMES)


@pytest.mark.parametrize("name", architectures.NAMES)
def test_a_config_makes_the_model_of_that_name(name: str) -> None:
    denoiser, call = fake_calls.denoiser_and_call(architectures.named(name))
    count = sum(p.numel() for p in denoiser.parameters())
    assert count == pytest.approx(STATED[name], rel=0.005)
    noisy = next(iter(call.tensors().values()))
    assert noisy.shape[0] == 2


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("sdxl", {}, (2, 4, 128, 128)),
        ("sdxl", {"height": 512, "width": 768}, (2, 4, 64, 96)),
        ("sd15", {}, (2, 4, 64, 64)),
        ("qwen-image", {"height": 512, "width": 1024}, (2, 32 * 64, 64)),
        ("wan2.1-1.3b", {}, (2, 16, 21, 60, 104)),
        ("cogvideox-2b", {"frames": 9}, (2, 3, 16, 60, 90)),
        ("ltx", {"height": 512, "width": 704, "frames": 17}, (2, 3 * 16 * 22, 128)),
    ],
)
def test_the_noisy_tensor_is_of_the_asked_size(
    name: str, size: dict[str, int], shape: tuple[int, ...]
) -> None:
    _, call = fake_calls.denoiser_and_call(architectures.named(name, **size))
    assert next(iter(call.tensors().values())).shape == shape


def test_rows_are_those_of_both_branches_and_all_images() -> None:
    _, call = fake_calls.denoiser_and_call(architectures.named("sd3-medium"), batch=3)
    assert {value.shape[0] for value in call.tensors().values()} == {6}


def test_making_a_model_leaves_no_dtype_behind() -> None:
    fake_calls.denoiser_and_call(architectures.named("sd15"))
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sd4", {}, "model='sd4' is unknown; choose one of sdxl, sd15,"),
        ("sdxl", {"height": 1020}, "height=1020 is no positive multiple of 8 pixels"),
        ("sdxl", {"width": -8}, "width=-8 is no positive multiple"),
        ("sdxl", {"height": 0}, "height=0 is no positive multiple of 8"),
        ("ltx", {"frames": 0}, "frames=0 is not a multiple of 8"),
        ("sdxl", {"frames": 9}, "frames=9: sdxl makes pictures"),
        ("ltx", {"frames": 16}, "frames=16 is not a multiple of 8 and one more.*take 9"),
        ("sd3-medium", {"width": 1000}, "width=1000 is no positive multiple of 16.*take 992"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, size: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        architectures.named(name, **size)


def test_a_users_own_config_is_read_from_file_and_folder(tmp_path: Path) -> None:
    config: dict[str, Any] = dict(architectures.named("sd15").config)
    config["block_out_channels"] = [64, 128, 128, 128]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (tmp_path, tmp_path / "config.json", config):
        found = architectures.of_config(given, height=256, width=256)
        assert (found.name, found.height, found.config) == ("config", 256, config)
    assert architectures.of_config(config).height == 8 * config["sample_size"]
    small = {"_class_name": "SD3Transformer2DModel", "sample_size": 16}
    assert architectures.of_config(small).width == 128
    assert architectures.of_config({"_class_name": small["_class_name"]}).width == 1024


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json cannot be read as a config"):
        architectures.of_config(tmp_path)
    with pytest.raises(ConfigError, match=r"FluxTransformer2DModel.*one of UNet2DConditionModel"):
        architectures.of_config({"_class_name": "FluxTransformer2DModel"})
