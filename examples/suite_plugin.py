"""pytest plugin of `diffusers_suite.py`: one line of JSON a test, every pipeline optimized.

Without `--suite-mode` it only writes the lines. With it, every pipeline that a test makes is
optimized as a user would do it, and restored when the test ends. What `optimize` refuses runs as
it is, and the line says so.
"""

# Methods of diffusers' classes are replaced, which their annotations do not foresee.
# pyright: reportAttributeAccessIssue=false, reportFunctionMemberAccess=false

from __future__ import annotations

import functools
import gc
import json
import logging
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import diffusers  # first, so that the installed one is tested and not the checkout's sources
import pytest
import torch
from diffusers import DiffusionPipeline

import hybridiff_compile
from hybridiff_compile.runtime import fleet


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("suite")
    group.addoption("--suite-log", type=Path, required=True, help="a line a test is added here")
    group.addoption("--suite-mode", help="optimize every pipeline in this mode")
    group.addoption("--suite-gpus", type=int, default=2)
    group.addoption("--suite-attach", default="to", choices=("to", "call"))


def pytest_configure(config: pytest.Config) -> None:
    """Set up what was asked for."""
    torch.set_num_threads(1)
    asked, optimizer = config.option, None
    if asked.suite_mode:
        optimizer = Optimizer(asked.suite_mode, asked.suite_gpus)
        optimizer.watch_pipelines()
        if asked.suite_attach == "to":
            optimizer.attach_after_to()
        share_one_worker()
    config.pluginmanager.register(Recorder(asked.suite_log, optimizer))


class Recorder:
    """Writes what becomes of each test; tests that have their line already are left out.

    Args:
        log: file of JSON lines; each is flushed, so that a dead process loses one test.
        optimizer: of every pipeline; None leaves them as they are.
    """

    def __init__(self, log: Path, optimizer: Optimizer | None) -> None:
        self._log, self._optimizer = log, optimizer
        self._reports: list[pytest.TestReport] = []
        self._is_collected = True

    def write(self, **record: Any) -> None:
        """Add a line."""
        with self._log.open("a") as out:
            out.write(json.dumps(record) + "\n")

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what has its line."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        done = {r["test"] for r in map(json.loads, lines) if "outcome" in r}
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in done])
        items[:] = [i for i in items if i.nodeid not in done]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported has failed."""
        if report.failed:
            self._is_collected = False
            error = last_line(report.longreprtext)
            self.write(test=report.nodeid, outcome="failed", error=f"not collected: {error}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Around a test: its first line and its last."""
        self.write(test=item.nodeid, event="start")
        self._reports = []
        if self._optimizer is not None:
            self._optimizer.begin()
        result = yield
        seen = self._optimizer.end() if self._optimizer is not None else {}
        self.write(test=item.nodeid, **outcome(self._reports), **seen)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test's setup, call and teardown came to."""
        self._reports.append(report)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Say that nothing is left to run, unless somebody interrupted it."""
        close_shared()
        if exitstatus != pytest.ExitCode.INTERRUPTED or not self._is_collected:
            self.write(
                event="end",
                diffusers=diffusers.__version__,
                package=str(Path(hybridiff_compile.__file__).parent),
            )


def outcome(reports: list[pytest.TestReport]) -> dict[str, Any]:
    """One outcome of a test's setup, call and teardown: the worst."""
    seconds = round(sum(r.duration for r in reports), 2)
    failed = next((r for r in reports if r.failed), None)
    if failed is not None:
        crash = getattr(failed.longrepr, "reprcrash", None)
        error = crash.message if crash is not None else last_line(failed.longreprtext)
        error, text = error[:2000], failed.longreprtext[-4000:]
        return {"outcome": "failed", "seconds": seconds, "error": error, "text": text}
    kind = "skipped" if any(r.skipped for r in reports) else "passed"
    return {"outcome": kind, "seconds": seconds}


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


class Optimizer:
    """Optimizes the pipelines of one test after another, and restores them.

    Args:
        mode, gpus: of `optimize`.
    """

    def __init__(self, mode: Any, gpus: int) -> None:
        self._mode, self._gpus = mode, gpus
        self._models: list[hybridiff_compile.Model] = []
        self._refused: list[tuple[Any, str]] = []  # holds the pipelines, so that no id is reused
        self._calls: list[tuple[str, int | None]] = []
        self._inside = 0
        self._said = Heard()
        logging.getLogger("hybridiff_compile").addHandler(self._said)

    def begin(self) -> None:
        """Before a test: forget the last one."""
        self._refused, self._calls = [], []
        self._said.texts = {}

    def watch_pipelines(self) -> None:
        """Watch the calls of every pipeline that is made from now on."""
        own = DiffusionPipeline.register_modules  # every pipeline calls it when it is made

        @functools.wraps(own)
        def register_modules(pipe: Any, **modules: Any) -> None:
            own(pipe, **modules)
            if self._model(pipe) is None:
                for kind in type(pipe).__mro__:
                    self._watch(kind)

        DiffusionPipeline.register_modules = register_modules

    def end(self) -> dict[str, Any]:
        """After a test: restore everything.

        Returns:
            What was seen: `refused`, `calls` (class and ranks), `said` (warnings), `not_restored`.
        """
        problems = []
        while self._models:
            model = self._models.pop()
            try:
                model.restore()
            except Exception as e:
                problems.append(f"{type(e).__name__}: {e}")
                model.session().close()
        seen = {"refused": [why for _, why in self._refused], "calls": self._calls}
        self._refused = []
        gc.collect()
        return {**seen, "said": list(self._said.texts), "not_restored": problems}

    def attach_after_to(self) -> None:
        """Optimize a pipeline as soon as it was moved, so that what a test does next comes on top.

        A pipeline that is never moved is optimized at its first call.
        """
        own = DiffusionPipeline.to

        @functools.wraps(own)
        def to(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            moved = own(pipe, *args, **kwargs)
            self._attach(pipe)
            return moved

        DiffusionPipeline.to = to

    def _model(self, pipe: Any) -> hybridiff_compile.Model | None:
        return next((m for m in self._models if m.pipe is pipe), None)

    def _attach(self, pipe: Any) -> bool:
        if self._model(pipe) or any(p is pipe for p, _ in self._refused):
            return False
        try:
            model = hybridiff_compile.optimize(pipe, gpus=self._gpus, mode=self._mode)
        except hybridiff_compile.HybridiffError as e:
            self._refused.append((pipe, f"{type(e).__name__}: {e}"))
            return False
        self._models.append(model)
        return True

    def _watch(self, kind: type) -> None:
        own = vars(kind).get("__call__")
        if own is None or kind is object or hasattr(own, "of_the_suite"):
            return

        @functools.wraps(own)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            # A pipeline within a pipeline's call is left as it is: nobody could optimize it there.
            if not self._inside and self._attach(pipe):
                return pipe(*args, **kwargs)  # its class is another one now
            self._inside += 1
            ranks = None
            try:
                return own(pipe, *args, **kwargs)
            finally:
                self._inside -= 1
                if (model := self._model(pipe)) is not None:
                    ranks = running_ranks(model)
                self._calls.append((type(pipe).__name__, ranks))

        call.of_the_suite = True
        kind.__call__ = call


class Heard(logging.Handler):
    """Keeps the warnings of the package, each once, in order."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts[record.getMessage()] = None


def running_ranks(model: hybridiff_compile.Model) -> int | None:
    """The ranks that have computed a step of the call under way."""
    run = model.session().under_way  # the report is made only after the pipeline's own call
    return None if run is None else run.ranks


_shared: list[fleet.Fleet] = []


def share_one_worker() -> None:
    """Let all models of this process use one worker, as they do under torchrun.

    A worker takes seconds to start, and a suite makes a thousand models.
    """
    start, release = fleet.start, fleet.Fleet.release

    def shared(device: Any, peer: Any, meanwhile: Callable[[], None], *, deadline: float) -> Any:
        while _shared and not _shared[0].is_open:
            release(_shared.pop())
        if _shared:
            meanwhile()
        else:
            _shared.append(start(device, peer, meanwhile, deadline))
        return _shared[0]

    fleet.start = shared
    fleet.Fleet.release = lambda self: None


def close_shared() -> None:
    """End the shared worker, if there is one."""
    while _shared:
        _shared.pop().close()
