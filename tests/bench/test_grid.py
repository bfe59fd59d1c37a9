import dataclasses
from typing import Any, get_args

import pytest

from hybridiff_compile import config
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.grid import STANDARD, Point, label, points
from hybridiff_compile.config import TOLERANCES, TRANSFORMER_SWITCHING, UNET_SWITCHING
from hybridiff_compile.errors import ConfigError


def row(mode: Any, **found: Any) -> Row:
    return Row(command="sweep", model="a", mode=mode, **found)


LINEAR = {"estimator": "linear"}
PINNED = {**LINEAR, "tolerance": None}


def test_a_plain_sweep_compares_what_the_readme_compares():
    assert points() == STANDARD
    paper = row("paper", tau1=15, k=5)
    used = [(p.mode, p.resolved(paper).used(UNET_SWITCHING, 50)) for p in STANDARD]
    assert used == [
        ("paper", {}),  # the pictures' own: it is found from the discrepancy
        ("guided", {"tau1": 15, "k": 5, "m": 1, **PINNED}),
        ("guided", {"tau1": 6, "k": 40, "m": 1, **PINNED}),
        ("forecast", {"tau1": 6, "k": 40, "m": 2, **PINNED}),
        ("forecast", {"tau1": 6, "k": 40, "m": 4, **PINNED}),
        (
            "hybrid",
            {"tau1": None, "k": None, "m": 4, "tolerance": TOLERANCES["balanced"][0], **LINEAR},
        ),
    ]
    assert [p.gpus for p in STANDARD] == [2, 2, 2, 1, 1, 1]


def test_the_papers_k_is_5_at_50_steps():
    for family in (UNET_SWITCHING, TRANSFORMER_SWITCHING):
        switching = config.Config(**Point("paper").settings()).switching(family, 50)
        assert isinstance(switching, config.SwitchSettings)
        assert switching.k == 5


def test_only_the_point_that_follows_the_paper_takes_its_row():
    paper = row("paper", tau1=9, k=3)
    assert Point("guided", tau1=4, k=2).resolved(paper) == Point("guided", tau1=4, k=2)
    assert Point("guided", as_paper=True).resolved(paper) == Point("guided", tau1=9, k=3)


def test_each_mode_runs_with_every_combination_of_what_it_takes():
    found = points(["hybrid", "guided"], k=[5, 40], m=[2, 3], tau1=[6], tolerance=["0.01", "fast"])
    assert found == (
        *(Point("guided", tau1=6, k=k, m=m) for k in (5, 40) for m in (2, 3)),
        *(Point("hybrid", m=m, tolerance=t) for m in (2, 3) for t in (0.01, "fast")),
    )
    assert points(["exact"]) == (Point("exact"),)
    assert points(k=[5, 5]) == (
        Point("paper", k=5),
        Point("guided", k=5),
        Point("forecast", k=5),
        Point("hybrid"),
    )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"modes": ["fast"]}, "unknown mode fast; choose from exact, paper"),
        ({"modes": ["paper"], "m": [2]}, "none of the modes paper takes m"),
        ({"modes": ["exact"], "k": [2], "tau1": [3]}, "none of the modes exact takes tau1, k"),
        ({"tolerance": ["much"]}, "tolerance='much' is neither a number nor one of fine"),
    ],
)
def test_a_grid_that_says_nothing_is_refused(asked, says):
    with pytest.raises(ConfigError, match=says):
        points(**asked)


@pytest.mark.parametrize(
    ("point", "steps", "says"),
    [
        (Point("guided", tau1=6, k=40), 20, "end at step 46, after the run's 20 steps"),
        (Point("forecast", m=1), 50, "m=1 extrapolates nothing"),
        (Point("paper", k=0), 50, "k=0 must be a whole number"),
        (Point("hybrid", tolerance=-0.1), 50, "tolerance=-0.1 must be above 0"),
    ],
)
def test_a_point_that_could_not_run_is_refused(point, steps, says):
    with pytest.raises(ConfigError, match=says):
        point.used(UNET_SWITCHING, steps)


def test_every_mode_of_optimize_can_be_swept():
    assert {p.mode for p in points(get_args(config.Mode))} == set(get_args(config.Mode))
    settings = {field.name for field in dataclasses.fields(Point)} - {"as_paper"}
    assert settings < {field.name for field in dataclasses.fields(config.Config)}


def test_labels_tell_the_rows_apart():
    assert label(row("paper", tau1=15, k=5)) == "paper k=5"
    assert label(row("guided", tau1=6, k=40, m=1)) == "guided k=40"
    assert label(row("guided", tau1=6, k=40, m=2)) == "guided k=40 m=2"
    assert label(row("forecast", k=40, m=4)) == "forecast k=40 m=4"
    assert label(row("hybrid", m=4, tolerance=0.02)) == "hybrid 0.02"
    assert label(row("exact")) == "exact"
