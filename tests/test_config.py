from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from hybridiff_compile.config import (
    TOLERANCES,
    TRANSFORMER_SWITCHING,
    UNET_SWITCHING,
    Config,
    Controlled,
    Lowering,
    Pinned,
    SwitchSettings,
)
from hybridiff_compile.errors import ConfigError, HybridiffError


def paper(**settings: Any) -> Config:
    return Config(mode="paper", **settings)


@pytest.mark.parametrize(
    ("family", "steps", "expected"),
    [
        (UNET_SWITCHING, 50, (12, 0.4e-3, 5, 15)),
        (UNET_SWITCHING, 28, (7, 0.4e-3 * 50 / 28, 3, 8)),
        (UNET_SWITCHING, 20, (5, 1e-3, 2, 6)),
        (TRANSFORMER_SWITCHING, 50, (15, 0.1e-3, 5, 40)),
        (TRANSFORMER_SWITCHING, 28, (8, 0.1e-3 * 50 / 28, 3, 22)),
        (TRANSFORMER_SWITCHING, 20, (6, 0.25e-3, 2, 16)),
    ],
)
def test_the_papers_constants_scale_with_the_steps(family, steps, expected):
    s = paper().switching(family, steps)
    assert isinstance(s, SwitchSettings)
    assert (s.L_slope, s.k, s.tau_cap, s.tau1) == (*(expected[i] for i in (0, 2, 3)), None)
    assert s.eps_slope == pytest.approx(expected[1])


def test_scaled_constants_are_at_least_one_step():
    assert UNET_SWITCHING.scaled(2) == SwitchSettings(1, 0.01, 1, 1)


def test_given_values_are_used_as_they_are():
    config = paper(L_slope=3, eps_slope=0.5, k=4, tau_cap=9)
    assert config.switching(UNET_SWITCHING, 20) == SwitchSettings(3, 0.5, 4, 9)
    assert paper(k=4).switching(UNET_SWITCHING, 20) == SwitchSettings(5, 0.4e-3 * 50 / 20, 4, 6)


def test_forced_tau1_replaces_the_cap_in_the_check():
    settings = paper(tau1=17, k=3, tau_cap=400).switching(UNET_SWITCHING, 20)
    assert isinstance(settings, SwitchSettings)
    assert settings.tau1 == 17


def test_exact_mode_never_switches():
    assert Config(mode="exact").switching(UNET_SWITCHING, 50) is None
    assert Config(gpus=1, mode="exact").switching(UNET_SWITCHING, 1) is None


def test_hybrid_is_the_default():
    assert isinstance(Config().switching(UNET_SWITCHING, 50), Controlled)


def test_pipelined_steps_may_end_with_the_run_but_not_after_it():
    assert paper(tau1=15, k=5).switching(UNET_SWITCHING, 20) is not None
    with pytest.raises(ConfigError, match=r"tau1=16 and k=5 end at step 21, .* 20 steps; set"):
        paper(tau1=16, k=5).switching(UNET_SWITCHING, 20)
    with pytest.raises(ConfigError, match=r"end at step 21, .* use more steps"):
        paper(tau_cap=19).switching(UNET_SWITCHING, 20)


@pytest.mark.parametrize(
    ("given", "steps", "says"),
    [
        ({}, 1, "tau_cap=1 and k=1 (of the paper, scaled to this run: tau_cap, k) end at step 2"),
        ({"k": 5}, 8, "tau_cap=6 and k=5 (of the paper, scaled to this run: tau_cap) end at"),
        ({"tau1": 8}, 8, "tau1=8 and k=1 (of the paper, scaled to this run: k) end at step 9"),
        ({"tau1": 7, "k": 2}, 8, "tau1=7 and k=2 end at step 9, after the run's 8 steps"),
    ],
)
def test_values_that_the_user_did_not_give_are_said_to_be_the_papers(given, steps, says):
    with pytest.raises(ConfigError) as e:
        paper(**given).switching(TRANSFORMER_SWITCHING, steps)
    assert str(e.value).startswith(says)


def test_a_backend_that_optimize_refuses_is_not_offered():
    with pytest.raises(ConfigError, match=r"choose one of eager, inductor, tensorrt\.$"):
        Lowering("cuda")  # pyright: ignore[reportArgumentType]
    assert Lowering("aot").backend == "aot"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 3}, "gpus=3: .* pass 1 or 2"),
        ({"gpus": 0}, "gpus=0: .* pass 1 or 2"),
        ({"gpus": True}, "gpus=True: .* pass 1 or 2"),
        ({"gpus": "2"}, "gpus='2': .* pass 1 or 2"),
        ({"mode": "fast"}, "mode='fast' is unknown; choose one of exact, paper"),
        ({"mode": "paper", "gpus": 1}, "mode='paper' pipelines two ranks; pass gpus=2, or ano"),
        ({"mode": "paper", "k": 0}, "k=0 must be a whole number of steps, at least 1"),
        ({"mode": "paper", "L_slope": -1}, "L_slope=-1 must be a whole number"),
        ({"mode": "paper", "tau_cap": 2.5}, "tau_cap=2.5 must be a whole number"),
        ({"mode": "paper", "tau1": "6"}, "tau1='6' must be a whole number"),
        ({"mode": "paper", "eps_slope": 0.0}, "eps_slope=0.0 must be above 0"),
        ({"mode": "paper", "eps_slope": "fine"}, "eps_slope='fine' must be above 0"),
        ({"mode": "paper", "eps_slope": float("nan")}, "eps_slope=nan must be above 0"),
        ({"k": 5}, "k=5 is for mode paper or guided or forecast or asyncdiff; drop it or ch"),
        ({"eps_slope": 0.1, "mode": "guided"}, "eps_slope=0.1 is for mode paper; drop it"),
        ({"mode": "paper", "m": 2}, "m=2 is for mode hybrid or guided or forecast"),
        ({"mode": "forecast", "tolerance": 0.1}, "tolerance=0.1 is for mode hybrid; drop it"),
        ({"mode": "hybrid", "tolerance": "exact"}, "tolerance='exact' is unknown; choose one of f"),
        ({"mode": "hybrid", "tolerance": 0}, "tolerance=0 must be above 0"),
        ({"mode": "hybrid", "tolerance": float("nan")}, "tolerance=nan must be above 0"),
        ({"mode": "hybrid", "estimator": "cubic"}, "estimator='cubic' is unknown; choose one of h"),
        ({"mode": "hybrid", "m": 1}, "m=1 extrapolates nothing in mode 'hybrid'; pass 2 or more"),
        ({"mode": "guided", "gpus": 1}, "mode='guided' pipelines two ranks; pass gpus=2"),
        ({"mode": "asyncdiff", "gpus": 1}, "mode='asyncdiff' pipelines two ranks; pass gpus=2"),
        ({"mode": "asyncdiff", "m": 2}, "m=2 is for mode hybrid or guided or forecast; drop it"),
        ({"mode": "asyncdiff", "tau_cap": 9}, "tau_cap=9 is for mode paper; drop it"),
        ({"mode": "asyncdiff", "tolerance": 1.0}, "tolerance=1.0 is for mode hybrid; drop it"),
        ({"mode": "asyncdiff", "estimator": "hold"}, "estimator='hold' is for mode hybrid or gui"),
        ({"deadline": 0}, "deadline=0 must be 0.5 to 86400 seconds, as an int or float"),
        ({"deadline": float("nan")}, "deadline=nan must be 0.5 to 86400 seconds"),
        ({"deadline": float("inf")}, "deadline=inf must be 0.5 to 86400 seconds"),
        ({"deadline": True}, "deadline=True must be 0.5 to 86400 seconds"),
        ({"deadline": "30"}, "deadline='30' must be 0.5 to 86400 seconds"),
        ({"mode": "asyncdiff", "k": 0}, "k=0 must be a whole number of steps, at least 1"),
    ],
)
def test_bad_setting_is_refused_with_its_value_and_what_to_do(settings, message):
    with pytest.raises(ConfigError, match=message) as e:
        Config(**settings)
    assert isinstance(e.value, HybridiffError)
    assert isinstance(e.value, ValueError)


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().gpus = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_pinned_phases_scale_with_the_steps_unless_given():
    def pinned(steps: int, **given: Any) -> Pinned:
        settings = Config(**{"mode": "forecast", **given}).switching(UNET_SWITCHING, steps)
        assert isinstance(settings, Pinned)
        return settings

    assert pinned(50) == Pinned("forecast", tau1=6, k=40, m=2, estimator="linear")
    assert pinned(20) == Pinned("forecast", tau1=5, k=11, m=2, estimator="linear")
    assert (pinned(2).tau1, pinned(2).k) == (2, 0)  # too short: all of it is serial
    for steps in range(5, 60):
        assert pinned(steps).tau1 + pinned(steps).k <= steps - 2
    assert pinned(20, mode="guided", tau1=5, k=7).m == 1
    assert (pinned(20, tau1=5, k=7).tau1, pinned(20, tau1=5, k=7).k) == (5, 7)
    with pytest.raises(ConfigError, match="tau1=15 and k=16 end at step 31"):
        pinned(20, tau1=15, k=16)


def test_asyncdiff_pipelines_every_step_after_the_first_unless_told():
    def settings(steps: int, **given: Any) -> tuple[int | None, int, bool]:
        found = Config(mode="asyncdiff", **given).switching(UNET_SWITCHING, steps)
        assert isinstance(found, SwitchSettings)
        return found.tau1, found.k, found.drains

    assert settings(50) == (1, 49, False)
    assert settings(1) == (1, 0, False)
    assert settings(20, tau1=5) == (5, 15, False)
    assert settings(20, tau1=5, k=7) == (5, 7, False)
    with pytest.raises(ConfigError, match=r"tau1=5 and k=16 end at step 21, .* 20 steps; set"):
        settings(20, tau1=5, k=16)
    with pytest.raises(ConfigError, match=r"tau1=30 and k=0 .* end at step 30"):
        settings(20, tau1=30)


def test_hybrid_takes_a_tolerance_by_name_or_number():
    def controlled(steps: int = 50, **given: Any) -> Controlled:
        settings = Config(mode="hybrid", **given).switching(UNET_SWITCHING, steps)
        assert isinstance(settings, Controlled)
        return settings

    assert controlled(tolerance="fine").tolerance < controlled().tolerance
    assert controlled().tolerance == TOLERANCES["balanced"][0]
    assert (controlled(tolerance=0.3).tolerance, controlled(tolerance=0.3).m) == (0.3, 4)
    assert controlled(tolerance="fast").m == 6
    assert controlled(tolerance="fast", m=3).m == 3
    assert (controlled(20).warm, controlled(20).tail, controlled(20).steps) == (5, 4, 20)
