import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from hybridiff_compile.bench import schedulers
from hybridiff_compile.errors import ConfigError

NOISE = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m"])
def test_a_sampler_keeps_the_settings_of_the_pipelines_own(name):
    made = schedulers.build(name, NOISE, "a")
    assert (made.config["beta_schedule"], made.config["steps_offset"]) == ("scaled_linear", 1)
    made.set_timesteps(5)
    assert len(made.timesteps) == 5


def test_a_flow_model_keeps_its_flow():
    assert schedulers.build("flow-euler", FLOW, "a").config["shift"] == 3.0
    made = schedulers.build("dpm++2m", FLOW, "a")
    assert made.config["prediction_type"] == "flow_prediction"
    made.set_timesteps(5)
    # Shifted towards noise as the model was trained: without the shift the middle lies at 0.6.
    assert float(made.sigmas[2]) == pytest.approx(3 * 0.6 / (1 + 2 * 0.6), abs=0.01)
    assert schedulers.build("flow-euler", made, "a").config["shift"] == 3.0


@pytest.mark.parametrize(
    ("name", "own", "says"),
    [
        ("flow-euler", NOISE, "a predicts for noise, which flow-euler does not sample"),
        ("ddim", FLOW, "a predicts for flow matching, which ddim does not sample"),
        ("euler", FLOW, "choose from dpm\\+\\+2m, flow-euler, or leave that model out"),
    ],
)
def test_a_sampler_for_another_kind_of_model_is_refused(name, own, says):
    with pytest.raises(ConfigError, match=says):
        schedulers.build(name, own, "a")
