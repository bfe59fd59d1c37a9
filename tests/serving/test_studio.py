"""The queue and what becomes of its jobs, with a model that does what a test tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from PIL import Image

from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime.report import Progress
from hybridiff_compile.serving.job import Event, Failed, Finished, Job, Step
from hybridiff_compile.serving.metrics import Metrics
from hybridiff_compile.serving.studio import FullError, Studio

STEPS = 3


class Report:
    """As much of a report as is looked at."""

    steps_by_phase: ClassVar = {"serial": STEPS}

    def __str__(self) -> str:
        return "3 steps on 2 ranks"


class Pipe:
    """As much of a pipeline as is looked at."""

    def __call__(self, callback_on_step_end: Any = None) -> Any:
        raise NotImplementedError


@dataclass
class Model:
    """Makes black pictures in three steps, unless `before` does something else at a step."""

    before: Callable[[int], None] = lambda step: None
    calls: int = 0
    progress: Progress | None = None
    pipe: Pipe = field(default_factory=Pipe)
    report: Any = field(default_factory=Report)

    def __call__(self, *, callback_on_step_end: Any, **call: Any) -> Any:
        self.calls += 1
        for step in range(STEPS):
            self.before(step)
            self.progress = Progress(step, STEPS, "serial")
            callback_on_step_end(self.pipe, step, 0, {})
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))])


@dataclass
class Client:
    """What one client was told."""

    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def job(self) -> Job:
        return Job({}, self.told)

    def told(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended.set()

    @property
    def outcome(self) -> Event:
        assert self.ended.wait(20)
        return self.events[-1]


def studio_of(model: Any, places: int = 2) -> Studio:
    return Studio(model, places, Metrics())


@pytest.fixture
def held() -> Iterator[tuple[Model, threading.Event, threading.Event]]:
    """A model that stops before its first step until it is let go, and says that it is there."""
    there, go = threading.Event(), threading.Event()

    def before(step: int) -> None:
        there.set()
        assert go.wait(20)

    yield Model(before), there, go
    go.set()


def test_a_job_is_told_of_its_steps_and_its_pictures() -> None:
    studio, client = studio_of(Model()), Client()
    studio.submit(client.job())
    assert isinstance(client.outcome, Finished)
    assert client.events[:-1] == [Step(i, STEPS, "serial") for i in range(STEPS)]
    assert client.outcome.pictures[0].startswith(b"\x89PNG")
    assert client.outcome.report == "3 steps on 2 ranks"


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(held: Any) -> None:
    model, there, go = held
    studio, clients = studio_of(model, places=2), [Client() for _ in range(4)]
    studio.submit(clients[0].job())
    assert there.wait(20)  # it has left the queue
    for client in clients[1:3]:
        studio.submit(client.job())
    with pytest.raises(FullError):
        studio.submit(clients[3].job())
    go.set()
    assert all(isinstance(client.outcome, Finished) for client in clients[:3])
    studio.close()
    assert model.calls == 3


def test_one_that_leaves_the_queue_gives_up_its_place(held: Any) -> None:
    model, there, go = held
    studio, clients = studio_of(model, places=1), [Client() for _ in range(3)]
    studio.submit(clients[0].job())
    assert there.wait(20)
    left = clients[1].job()
    studio.submit(left)
    left.leave()
    studio.submit(clients[2].job())
    go.set()
    assert isinstance(clients[2].outcome, Finished)
    assert model.calls == 2


def _submit_soon(studio: Studio, client: Client) -> None:
    """A place is free a moment after its client was told."""
    for _ in range(100):
        with suppress(FullError):
            studio.submit(client.job())
            return
        time.sleep(0.05)
    raise AssertionError("no place was made")


def test_room_is_made_by_each_kind_of_end() -> None:
    fails = iter((ValueError("wrong"), OSError("broken"), None))

    def before(step: int) -> None:
        if step == 1 and (error := next(fails, None)):
            raise error

    studio = studio_of(Model(before), places=0)
    clients = [Client() for _ in range(3)]
    for client in clients:
        _submit_soon(studio, client)
        assert client.ended.wait(20)
    statuses = [c.outcome.status if isinstance(c.outcome, Failed) else 200 for c in clients]
    assert statuses == [500, 500, 200]


def test_one_that_left_is_not_made(held: Any) -> None:
    model, there, go = held
    studio, first, second = studio_of(model), Client(), Client()
    studio.submit(first.job())
    assert there.wait(20)
    left = second.job()
    studio.submit(left)
    left.leave()
    go.set()
    studio.close()
    assert isinstance(first.outcome, Finished)
    assert model.calls == 1
    assert second.events == []


def test_one_that_leaves_ends_at_its_next_step(held: Any) -> None:
    model, there, go = held
    studio, client = studio_of(model), Client()
    job = client.job()
    studio.submit(job)
    assert there.wait(20)
    job.leave()
    go.set()
    studio.close()
    assert model.progress is not None
    assert model.progress.step == 0


@pytest.mark.parametrize(("deaths", "status"), [(1, 200), (2, 503)])
def test_a_dead_worker_is_tried_again_once(deaths: int, status: int) -> None:
    left = iter(range(deaths))

    def before(step: int) -> None:
        if step == 1 and next(left, None) is not None:
            raise WorkerError("rank 1 was killed")

    model, client = Model(before), Client()
    studio = studio_of(model)
    studio.submit(client.job())
    outcome = client.outcome
    assert (outcome.status if isinstance(outcome, Failed) else 200) == status
    assert model.calls == 2
    assert [e.index for e in client.events if isinstance(e, Step)][:2] == [0, 0]


@pytest.mark.parametrize(
    ("error", "step", "status"),
    [
        (ValueError("`height` has to be divisible by 8"), 0, 400),
        (ValueError("a defect"), 1, 500),
        (RuntimeError("out of memory"), 0, 500),
    ],
)
def test_only_what_is_refused_before_a_step_is_the_client_s_fault(
    error: Exception, step: int, status: int
) -> None:
    def before(at: int) -> None:
        if at == step:
            raise error

    client = Client()
    studio_of(Model(before)).submit(client.job())
    assert isinstance(client.outcome, Failed)
    assert client.outcome.status == status
    assert str(error) in client.outcome.reason
