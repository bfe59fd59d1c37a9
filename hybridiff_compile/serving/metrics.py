"""What Prometheus reads of a server."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hybridiff_compile.serving.job import Failed, Finished

#: Seconds: small pictures on one GPU take one, videos take minutes.
_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """Counters of one server, in a registry of its own.

    Attributes:
        waiting: requests in the queue.
        busy: requests whose pictures are being made, 0 or 1.
        deaths: workers that ended or failed.
    """

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.waiting = Gauge("hybridiff_requests_waiting", "Requests in the queue", registry=own)
        self.busy = Gauge("hybridiff_requests_running", "Requests being made", registry=own)
        self.deaths = Counter("hybridiff_worker_deaths", "Workers that ended", registry=own)
        self._requests = Counter(
            "hybridiff_requests", "Requests by HTTP status", ["status"], registry=own
        )
        self._pictures = Counter("hybridiff_pictures", "Pictures made", registry=own)
        self._steps = Counter("hybridiff_steps", "Steps by phase", ["phase"], registry=own)
        self._seconds = Histogram(
            "hybridiff_call_seconds", "Seconds of a call", buckets=_BUCKETS, registry=own
        )

    def count(self, outcome: Finished | Failed) -> None:
        """One more request has an outcome."""
        status = outcome.status if isinstance(outcome, Failed) else 200
        self._requests.labels(str(status)).inc()

    def refused(self, status: int) -> None:
        """One more request was refused before it was in the queue."""
        self._requests.labels(str(status)).inc()

    def made(self, pictures: int, seconds: float, steps_by_phase: Mapping[str, int]) -> None:
        """A call has made pictures."""
        self._pictures.inc(pictures)
        self._seconds.observe(seconds)
        for phase, count in steps_by_phase.items():
            self._steps.labels(phase).inc(count)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
