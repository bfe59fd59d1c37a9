"""A process that forks after `optimize`, as a preloading server does: the parent sees nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.processes import read_until, script, wait_until_gone

ROOT = Path(__file__).resolve().parents[2]


def ended(script: str, *options: str, seconds: int = 120) -> tuple[str, str]:
    """What a script has written to its output and to its errors, which it ended without."""
    run = [sys.executable, *options, "-c", script]
    done = subprocess.run(
        run, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


SETUP = """
import importlib.util
find_spec = importlib.util.find_spec
# onnxruntime, which diffusers imports, hangs at the normal end of any forked child, without us too.
importlib.util.find_spec = lambda name, *a: None if name == "onnxruntime" else find_spec(name, *a)
import gc, multiprocessing, os, sys, time, traceback
import torch
import hybridiff_compile
from hybridiff_compile.errors import ClosedError
from tests import pipelines

torch.set_num_threads(1)  # else the child would wait for OpenMP's threads, which are not there

def make(pipe, **call):
    return pipelines.latents(pipe, "small-sd3", num_inference_steps=3, **call)

def child(act, end=os._exit):
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            end(code)
    assert os.waitpid(pid, 0)[1] == 0, act

def refused():
    for use in (lambda: make(model), lambda: model.compile(**pipelines.settings("small-sd3"))):
        begin = time.monotonic()
        try:
            use()
        except ClosedError as e:
            assert "is a fork of process" in str(e) and str(os.getppid()) in str(e), e
            assert time.monotonic() - begin < 1
        else:
            raise AssertionError("a child has used its parent's worker")

pipe = pipelines.load("small-sd3")
model = hybridiff_compile.optimize(pipe, mode="exact")
print("worker", model._session.ranks.driver.fleet._process.pid, flush=True)
"""

FORKS = """
worker = model._session.ranks.driver.fleet._process.pid

def forget():
    global model, pipe
    del model, pipe
    gc.collect()

def started_anew():
    model.restore()
    with hybridiff_compile.optimize(pipe, mode="exact") as own:
        assert own._session.ranks.driver.fleet._process.pid != worker
        assert torch.equal(make(own), picture)

child(refused)  # before the first load
picture = make(model)
for act, ends in zip((refused, forget, model.restore, lambda: None), ENDS):
    for end in ends:
        child(act, end)
    assert torch.equal(make(model), picture), act
child(started_anew, sys.exit)
assert torch.equal(make(model), picture)

context = multiprocessing.get_context("fork")
for act in (refused, forget):
    process = context.Process(target=act)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(make(model), picture), act

def fork_within(pipe, step, t, values):
    if step == 1:
        child(refused_in_the_middle)
        child(lambda: None, sys.exit)
    return values

def refused_in_the_middle():  # by the thread that a call of the parent's holds up, and another
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as other:
        other.submit(refused).result(10)
    refused()
    model.restore()

assert torch.equal(make(model, callback_on_step_end=fork_within), picture)
assert torch.equal(make(model), picture)
assert model._session.ranks.driver.fleet._process.pid == worker
model.restore()
print("the parent is as it was", flush=True)
"""


@pytest.mark.parametrize(
    "ends",
    [
        "[(os._exit,), (sys.exit,)] * 2",
        pytest.param("[(os._exit, sys.exit)] * 4", marks=pytest.mark.slow),
    ],
)
def test_forked_children_are_told_and_the_parent_sees_nothing(ends: str) -> None:
    script = f"{SETUP}\nENDS = {ends}\n{FORKS}"
    said, errors = ended(script, "-W", "error::ResourceWarning")
    assert "the parent is as it was" in said
    assert not re.search("terminate called|Enforce|while idle|unwaited", errors), errors


WRITES = """
from diffusers import StableDiffusion3Pipeline

def halve(of=pipe):  # as a LoRA that is fused, an average that is copied or a training step do
    with torch.no_grad():
        for weight in of.transformer.parameters():
            weight.mul_(0.5)

def restored():
    model.restore()
    halve()

def optimized_anew():
    model.restore()
    halve()
    halve(fresh := pipelines.load("small-sd3"))
    with hybridiff_compile.optimize(pipe, mode="exact") as own:
        halved = make(own)
    with hybridiff_compile.optimize(fresh, mode="exact") as own:
        assert torch.equal(make(own), halved)
    assert not torch.equal(halved, picture)

def child_of_a_child():
    child(restored)
    assert torch.equal(pipe.transformer.proj_out.weight, weight)

picture = make(model)
weight = pipe.transformer.proj_out.weight.detach().clone()
for act in (halve, restored, optimized_anew, child_of_a_child):
    child(act)
    assert torch.equal(pipe.transformer.proj_out.weight, weight), act
    assert torch.equal(make(model), picture), act

# The parent's are shared with its worker still, until the last of the pipelines is restored.
second = StableDiffusion3Pipeline(**pipe.components)
second.set_progress_bar_config(disable=True)
other = hybridiff_compile.optimize(second, mode="exact")
assert torch.equal(make(other), picture)
model.restore()
child(halve)
assert torch.equal(make(other), picture)
pipe.transformer.proj_out.weight.data.mul_(0)
assert make(other).ne(picture).any(), "the worker has other weights"
pipe.transformer.proj_out.weight.data.copy_(weight)
assert torch.equal(make(other), picture)
other.restore()

plain = make(pipe)
child(halve)
assert torch.equal(pipe.transformer.proj_out.weight, weight)
assert torch.equal(make(pipe), plain)
print("the parent is as it was", flush=True)
"""


@pytest.mark.slow
def test_what_a_forked_child_writes_to_its_weights_is_its_own() -> None:
    said, _ = ended(SETUP + WRITES, seconds=240)
    assert "the parent is as it was" in said


GOES_ON = """
def go_on(pipe, step, t, values):
    if os.getpid() == child_of[0]:
        print("step", step, flush=True)
    if step == 0 and os.fork() == 0:
        child_of.append(os.getpid())
    return values

child_of = [os.getpid()]
try:
    picture = make(model, callback_on_step_end=go_on)
except ClosedError as e:
    assert len(child_of) == 2, "the parent was refused"
    print("the child's next step:", e, flush=True)
    os._exit(0)
assert torch.equal(make(model), picture)
os.wait()
print("end of the script", flush=True)
"""


@pytest.mark.slow
def test_a_call_that_goes_on_in_the_child_is_refused_at_its_next_step() -> None:
    said, _ = ended(SETUP + GOES_ON)
    assert "the child's next step: this process" in said
    assert "end of the script" in said


OUTLIVES = """
make(model)
pid = os.fork()
if pid == 0:
    time.sleep(120)
    os._exit(0)
print("child", pid, flush=True)
time.sleep(120)
"""

STEPS = """
def told(pipe, step, t, values):
    print("step", step, flush=True)
    return values

pipelines.latents(model, "small-sd3", num_inference_steps=900, callback_on_step_end=told)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["idle", "in a step"])
def test_a_worker_ends_with_its_driver_though_a_forked_child_lives(moment: str) -> None:
    text = OUTLIVES
    if moment == "in a step":  # the child holds the links' sockets open, and the worker waits
        text = text.rpartition("time.sleep")[0] + STEPS
    with script(SETUP + text) as (process, worker):
        assert process.stdout is not None
        child = next(int(line.split()[1]) for line in process.stdout if line.startswith("child"))
        if moment == "in a step":
            read_until(process, "step 3")
        process.kill()
        try:
            assert wait_until_gone(worker)
            assert Path(f"/proc/{child}").exists()
        finally:
            subprocess.run(["kill", "-9", str(child)], check=True)
