from pathlib import Path

import pytest

from hybridiff_compile.bench import figures
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import fidelity

MOST = {"paper": 35, "guided": 40, "forecast": 40}


@pytest.mark.parametrize("steps", [50, 28, 20])
@pytest.mark.parametrize("model", ["tiny-sdxl", "tiny-sd3"])
def test_shipped_figures_know_both_kinds_of_denoiser(model: str, steps: int):
    measured = fidelity.errors(model, steps, MOST)
    assert measured.steps == steps
    found = {(k.name, k.m): k for k in measured.kinds}
    assert set(found) == {("paper", 1), ("guided", 1), ("forecast", 2), ("forecast", 4)}
    errors = {key: kind.error for key, kind in found.items()}
    assert errors["forecast", 2] < errors["forecast", 4]
    if steps == 50:
        assert errors["forecast", 4] < errors["paper", 1]
        assert errors["guided", 1] < errors["paper", 1]
    assert found["paper", 1].most == 35


def test_a_step_of_a_shorter_run_adds_more_error():
    """The error of a line grows with the square of a step's length, its square with the fourth."""
    long, short = (
        {(k.name, k.m): k.error for k in fidelity.errors("tiny-sdxl", steps, MOST).kinds}
        for steps in (50, 20)
    )
    for kind in (("forecast", 2), ("forecast", 4), ("guided", 1)):
        assert short[kind] > 10 * long[kind]


def row(mode: figures.Mode, psnr: float, steps: dict[str, int], m: int | None = None):
    """Of as many steps as are given."""
    phases = {"serial": 0, "pipelined": 0, "forecast": 0} | steps
    return figures.Row(
        command="sweep",
        model="own",
        mode=mode,
        steps=sum(steps.values()),
        psnr_db=psnr,
        m=m,
        steps_by_phase=phases,  # pyright: ignore
    )


def test_the_run_with_most_error_a_step_counts(tmp_path: Path):
    file = tmp_path / "figures.json"
    rows = [
        row("paper", 40.0, {"serial": 45, "pipelined": 5}),
        row("paper", 30.0, {"serial": 40, "pipelined": 10}),
        row("exact", 100.0, {"serial": 50}),
        row("guided", 10.0, {"serial": 10, "pipelined": 20, "forecast": 20}, m=2),
        row("forecast", 60.0, {"serial": 10, "forecast": 40}, m=3),
    ]
    figures.write(file, rows, figures.environment(1))
    found = fidelity.errors("own", 50, MOST, [file]).kinds
    assert [(k.name, k.m) for k in found] == [("forecast", 3), ("paper", 1)]
    assert found[1].error == pytest.approx(1e-3 / 10)
    assert found[0].error == pytest.approx(1e-6 / 40)


def test_runs_of_more_steps_say_nothing(tmp_path: Path):
    file = tmp_path / "figures.json"
    rows = [
        row("paper", 40.0, {"serial": 45, "pipelined": 5}),
        row("paper", 30.0, {"serial": 18, "pipelined": 2}),
    ]
    figures.write(file, rows, figures.environment(1))

    def read(steps: int) -> tuple[int | None, list[float]]:
        found = fidelity.errors("own", steps, MOST, [file])
        return found.steps, [kind.error for kind in found.kinds]

    assert read(60) == (50, [pytest.approx(1e-4 / 5)])
    assert read(49) == (20, [pytest.approx(1e-3 / 2)])
    assert read(20) == (20, [pytest.approx(1e-3 / 2)])
    assert read(19) == (None, [])


def test_a_file_that_says_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        fidelity.errors("own", 50, MOST, [tmp_path / "none.json"])
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema": 2}')
    with pytest.raises(ConfigError, match="is no file of figures: Input should be 1 at schema"):
        fidelity.errors("own", 50, MOST, [broken])
    with pytest.raises(ConfigError, match=r"no row of other in a mode that switches"):
        fidelity.errors("other", 50, MOST)


def test_error_is_that_of_pictures_between_0_and_1():
    assert fidelity.error_of(0) == 1
    assert fidelity.error_of(40) == pytest.approx(1e-4)
