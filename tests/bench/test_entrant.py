"""The process of a row, seen from the command: its errors, and its end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hybridiff_compile.bench.entrant import entered
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.errors import HybridiffError


def test_a_process_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    job = Job("tiny-sd3", "one-device", "eager", None, {"num_inference_steps": 2}, tmp_path / "c")
    with entered(job) as entrant:
        entrant._process.kill()
        with pytest.raises(HybridiffError, match="it ended with exit code -9"):
            entrant.make(0)


@pytest.mark.slow
def test_a_process_that_fails_is_one_clear_error(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "exact", "eager", None, {}, tmp_path / "cache")
    with pytest.raises(HybridiffError, match=r"mode exact, backend eager: .*(?s:.*)no model_index"):
        entered(job).__enter__()


@pytest.mark.slow
def test_a_process_ends_with_its_command_in_the_midst_of_a_picture(tmp_path: Path) -> None:
    call = {"num_inference_steps": 900, "height": 128, "width": 128}
    command = f"""
import sys
from pathlib import Path
from hybridiff_compile.bench.entrant import entered
from hybridiff_compile.bench.ready import Job
if __name__ == "__main__":
    job = Job("tiny-sd3", "one-device", "eager", None, {call!r}, Path({str(tmp_path / "c")!r}))
    with entered(job) as entrant:
        print(entrant._process.pid, flush=True)
        entrant.make(0)
"""
    script = tmp_path / "command.py"
    script.write_text(command)
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    time.sleep(1)
    driver.kill()
    driver.wait()  # for it alone: the process writes to the same pipe
    deadline = time.monotonic() + 10  # of a picture that takes more than a minute
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = Path(f"/proc/{pid}").exists()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    driver.stdout.close()
    assert not left
