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
pipe, plain = pipelines.load("tiny-sd3"), pipelines.load("tiny-sd3")
model = hybridiff_compile.optimize(pipe)
made = pipelines.latents(model, "tiny-sd3", num_inference_steps=4)
model.restore()
again = hybridiff_compile.optimize(pipe, mode="paper", tau1=1, k=2)
pipelines.latents(again, "tiny-sd3", num_inference_steps=4)
print("phases", again.report.steps_by_phase, flush=True)
with branches_apart(plain.transformer):
    wanted = pipelines.latents(plain, "tiny-sd3", num_inference_steps=4)
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


@pytest.mark.parametrize("init", ["", "dist.init_process_group('gloo')"])
def test_ranks_cooperate_and_exit_cleanly(tmp_path: Path, init: str) -> None:
    done = torchrun(SCRIPT.format(init=init), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same bits True") == 1  # only rank 0 got as far
    assert done.stdout.count("phases {'serial': 2, 'pipelined': 2, 'forecast': 0}") == 1


def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    text = """
import hybridiff_compile
from tests import pipelines
hybridiff_compile.optimize(pipelines.load("tiny-sd3"), gpus=1)
"""
    done = torchrun(text, tmp_path)
    assert done.returncode != 0
    assert "gpus=1, but the launcher started 2 ranks" in done.stderr
