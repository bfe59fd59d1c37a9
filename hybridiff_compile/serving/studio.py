"""One thread that makes the pictures of a bounded queue of requests, one request at a time."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from hybridiff_compile.errors import WorkerError
from hybridiff_compile.model import Model
from hybridiff_compile.serving import steps
from hybridiff_compile.serving.job import Failed, Finished, Job, LeftError, Step
from hybridiff_compile.serving.metrics import Metrics
from hybridiff_compile.serving.wanted import parameters, preview_steps

logger = logging.getLogger(__name__)

#: A worker that died takes its pictures with it. They are begun again once, and no more often:
#: what ends two workers may end each one.
_TRIES = 2
#: Nginx's status for a client that closed its connection; for the metrics.
_LEFT = Failed(499, "the client has left")


class FullError(Exception):
    """There is no place in the queue."""


class Studio:
    """Makes pictures with a model.

    Args:
        model: as `optimize` returns it; restored by its owner, after `close`.
        places: requests that may wait while another one is served.
        metrics: that are kept up to date.
    """

    def __init__(self, model: Model, places: int, metrics: Metrics) -> None:
        self._model, self._metrics = model, metrics
        self._takes = parameters(model.pipe)
        self._places = threading.Semaphore(places + 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def submit(self, job: Job) -> None:
        """Put a job into the queue; it tells its client what becomes of it.

        Raises:
            FullError: there is no place.
        """
        if not self._places.acquire(blocking=False):
            raise FullError
        self._metrics.waiting.inc()
        job.place = self._thread.submit(self._serve, job)
        job.place.add_done_callback(self._left_queue)

    def close(self) -> None:
        """Wait until all jobs are done; takes none any more."""
        self._thread.shutdown(wait=True)

    def _left_queue(self, done: Future[None]) -> None:
        self._places.release()
        if done.cancelled():
            self._metrics.waiting.dec()
            self._metrics.count(_LEFT)
        else:
            done.result()  # a defect of ours is not lost

    def _serve(self, job: Job) -> None:
        self._metrics.waiting.dec()
        with self._metrics.busy.track_inprogress():
            for tries_left in reversed(range(_TRIES)):
                outcome = self._try(job, tries_left)
                if outcome is not None:
                    self._metrics.count(outcome)
                    job.send(outcome)
                    return

    def _try(self, job: Job, tries_left: int) -> Finished | Failed | None:
        """The outcome; None if it is worth another try."""
        begun = False

        def told(index: int, latents: torch.Tensor | None) -> None:
            nonlocal begun
            begun = True
            self._step(job, index, latents)

        try:
            return self._make(job, told)
        except LeftError:
            return _LEFT
        except WorkerError as e:
            logger.warning("a worker is gone, %d tries left: %s", tries_left, e)
            self._metrics.deaths.inc()
            return None if tries_left else Failed(503, "a worker ended twice; try again later.")
        except ValueError as e:  # the pipeline checks what it is called with before its first step
            return self._fault(e) if begun else Failed(400, str(e))
        except Exception as e:
            return self._fault(e)

    def _fault(self, error: Exception) -> Failed:
        logger.error("no picture was made", exc_info=error)
        return Failed(500, f"no picture was made: {type(error).__name__}: {error}")

    def _make(self, job: Job, told: steps.Told) -> Finished:
        if job.has_left:
            raise LeftError
        begin = time.perf_counter()
        made = self._model(**job.call, **steps.keywords(self._takes, told), output_type="pil")
        seconds = time.perf_counter() - begin
        report = self._model.report
        self._metrics.made(len(made.images), seconds, report.steps_by_phase)
        pictures = tuple(map(steps.png, made.images))
        return Finished(pictures, seconds, str(report))

    def _step(self, job: Job, index: int, latents: torch.Tensor | None) -> None:
        if job.has_left:
            raise LeftError
        progress = self._model.progress
        assert progress is not None  # within the call
        picture = None
        if index in preview_steps(progress.steps, job.previews):
            picture = steps.preview(self._model.pipe, latents)
        job.send(Step(index, progress.steps, progress.phase, picture))
