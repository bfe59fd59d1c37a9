"""A pipeline that takes no prompt is compiled as it is called."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import hybridiff_compile
from hybridiff_compile.arguments import with_prompt
from tests import pipelines


class HandsOn:
    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


def unconditional() -> Any:
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    shape: dict[str, Any] = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "sample_size": 8,
        "in_channels": 3,
    }
    unet = UNet2DModel(**shape, **blocks, out_channels=3, layers_per_block=1)
    pipe = DDPMPipeline(unet.eval(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_without_a_prompt_is_compiled() -> None:
    with hybridiff_compile.optimize(unconditional(), mode="exact") as model:
        model.compile(batch_size=2)
        assert len(model.programs()) == 1
        model(batch_size=2, num_inference_steps=2, output_type="np")
        assert (len(model.programs()), model.report.ranks) == (1, 2)


def test_a_prompt_is_given_where_one_is_taken_and_none_is_given() -> None:
    pipe = pipelines.shallow()
    with hybridiff_compile.optimize(pipe, 1) as model:  # its class is another one
        assert with_prompt(model.pipe, {}, "a") == {"prompt": "a"}
    assert with_prompt(pipe, {"prompt": "b"}, "a") == {"prompt": "b"}
    assert with_prompt(pipe, {"prompt_embeds": 0}, "a") == {"prompt_embeds": 0}
    assert with_prompt(HandsOn(), {}, "a") == {"prompt": "a"}
    assert with_prompt(unconditional(), {"batch_size": 2}, "a") == {"batch_size": 2}
