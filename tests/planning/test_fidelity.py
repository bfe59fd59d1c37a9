from pathlib import Path

import pytest

from hybridiff_compile.bench import figures
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import fidelity

MOST = {"paper": 35, "guided": 40, "forecast": 40}


def test_shipped_figures_know_both_kinds_of_denoiser():
    for model in ("tiny-sdxl", "tiny-sd3"):
        found = {(k.name, k.m): k for k in fidelity.kinds(model, MOST)}
        assert set(found) == {("paper", 1), ("guided", 1), ("forecast", 2), ("forecast", 4)}
        errors = {key: kind.error for key, kind in found.items()}
        assert errors["forecast", 2] < errors["forecast", 4] < errors["paper", 1]
        assert errors["guided", 1] < errors["paper", 1]
        assert found["paper", 1].most == 35


def row(mode: figures.Mode, psnr: float, steps: dict[str, int], m: int | None = None):
    phases = {"serial": 0, "pipelined": 0, "forecast": 0} | steps
    return figures.Row(
        command="sweep",
        model="own",
        mode=mode,
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
        row("forecast", 60.0, {"serial": 10, "forecast": 40}, m=3),
    ]
    figures.write(file, rows, figures.environment(1))
    found = fidelity.kinds("own", MOST, file)
    assert [(k.name, k.m) for k in found] == [("forecast", 3), ("paper", 1)]
    assert found[1].error == pytest.approx(1e-3 / 10)
    assert found[0].error == pytest.approx(1e-6 / 40)


def test_a_file_that_says_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.json holds no figures: .*No such file"):
        fidelity.kinds("own", MOST, tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema": 2}')
    with pytest.raises(ConfigError, match="holds no figures"):
        fidelity.kinds("own", MOST, broken)
    with pytest.raises(ConfigError, match=r"no row of other in a mode that switches"):
        fidelity.kinds("other", MOST)


def test_error_is_that_of_pictures_between_0_and_1():
    assert fidelity.error_of(0) == 1
    assert fidelity.error_of(40) == pytest.approx(1e-4)
