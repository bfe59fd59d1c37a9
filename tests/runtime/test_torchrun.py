"""Under torchrun the launched ranks are used: rank 0 drives, the others serve it and exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import torch, torch.distributed as dist
import hybridiff_compile
from tests import pipelines
from tests.reference import branches_apart

{init}
pipe, plain = pipelines.load("small-sd3"), pipelines.load("small-sd3")
model = hybridiff_compile.optimize(pipe)
made = pipelines.latents(model, "small-sd3", num_inference_steps=4)
model.restore()
again = hybridiff_compile.optimize(pipe, mode="paper", tau1=2, k=2)
pipelines.latents(again, "small-sd3", num_inference_steps=4)
print("phases", again.report.steps_by_phase, flush=True)
with branches_apart(plain.transformer):
    wanted = pipelines.latents(plain, "small-sd3", num_inference_steps=4)
print("same bits", torch.equal(made, wanted), flush=True)
"""


def torchrun(text: str, folder: Path, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", str(ranks), str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    "init", ["", pytest.param("dist.init_process_group('gloo')", marks=pytest.mark.slow)]
)
def test_ranks_cooperate_and_exit_cleanly(tmp_path: Path, init: str) -> None:
    done = torchrun(SCRIPT.format(init=init), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same bits True") == 1  # only rank 0 got as far
    assert done.stdout.count("phases {'serial': 2, 'pipelined': 2, 'forecast': 0}") == 1


@pytest.mark.slow
def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    text = """
import hybridiff_compile
from tests import pipelines
hybridiff_compile.optimize(pipelines.load("small-sd3"), gpus=1)
"""
    done = torchrun(text, tmp_path)
    assert done.returncode != 0
    assert "gpus=1, but the launcher started 2 ranks" in done.stderr


FROZEN = """
import os, signal, sys, time
from pathlib import Path
import hybridiff_compile
from hybridiff_compile.errors import WorkerError
from tests import pipelines

pid_file = Path(sys.argv[0]).with_name("pid")
if os.environ["RANK"] == "1":
    pid_file.write_text(str(os.getpid()))
model = hybridiff_compile.optimize(pipelines.load("small-sd3"), mode="exact", deadline=2.0)
pipelines.latents(model, "small-sd3", num_inference_steps=3)
pid = int(pid_file.read_text())

def freeze(pipe, step, t, values):
    if step == MOMENT:
        os.kill(pid, signal.SIGSTOP)
    return values

try:
    for call in range(2):
        begin = time.monotonic()
        try:
            pipelines.latents(
                model, "small-sd3", num_inference_steps=3, callback_on_step_end=freeze
            )
            print("made a picture", flush=True)
        except WorkerError as e:
            print("said", e, flush=True)
        print("waited", time.monotonic() - begin < 12, flush=True)
finally:
    os.kill(pid, signal.SIGCONT)
"""


@pytest.mark.parametrize(
    ("moment", "made", "where"),
    [
        pytest.param(0, 0, "in phase serial, step 1", marks=pytest.mark.slow),
        pytest.param(  # the picture is there by then
            2, 1, "while idle after phase serial, step 2", marks=pytest.mark.slow
        ),
    ],
)
def test_a_launched_rank_that_is_frozen_is_given_up(
    tmp_path: Path, moment: int, made: int, where: str
) -> None:
    done = torchrun(FROZEN.replace("MOMENT", str(moment)), tmp_path)
    says = (
        "said rank 1, which a launcher started, gave no sign of life for 2 s and was given up "
        f"{where}, and cannot be started from here; its own output says why. Start the script again"
    )
    assert done.stdout.count("made a picture") == made, done.stderr[-3000:]
    assert done.stdout.count(says) == 2 - made
    assert done.stdout.count("waited True") == 2


@pytest.mark.slow
def test_a_rank_that_never_comes_is_an_error(tmp_path: Path) -> None:
    text = """
import os, sys, time
import hybridiff_compile
from tests import pipelines
if os.environ["RANK"] == "1":
    sys.exit(0)
begin = time.monotonic()
try:
    hybridiff_compile.optimize(pipelines.load("small-sd3"), deadline=0.5)
finally:
    print("waited", 9 < time.monotonic() - begin < 30)
"""
    done = torchrun(text, tmp_path)
    assert done.returncode != 0
    assert "rank 1, which a launcher started, did not get to optimize() in time" in done.stderr
    assert "waited True" in done.stdout


@pytest.mark.slow
def test_a_driver_that_never_comes_is_an_error(tmp_path: Path) -> None:
    text = """
import os, sys, time
import hybridiff_compile
from tests import pipelines
if os.environ["RANK"] == "0":
    sys.exit(0)
hybridiff_compile.optimize(pipelines.load("small-sd3"), deadline=0.5)
"""
    done = torchrun(text, tmp_path)
    assert done.returncode != 0
    assert "rank 0 could not be reached within 10 s" in done.stderr
