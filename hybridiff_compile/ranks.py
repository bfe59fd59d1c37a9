"""The ranks of one pipeline: a worker, the weights that it maps, and the programs on both sides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from hybridiff_compile import lower
from hybridiff_compile.config import Lowering
from hybridiff_compile.entry import Entry, one_compiler
from hybridiff_compile.ir import RankProgram
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.runtime import messages
from hybridiff_compile.runtime.driver import Driver
from hybridiff_compile.runtime.fleet import Start, forked
from hybridiff_compile.runtime.published import Published, Stamp
from hybridiff_compile.runtime.route import Route


class Ranks:
    """Starts the worker, and another one when it is gone; loads programs on both sides.

    Attributes:
        route: to the denoiser whose weights they share.
        device: of that denoiser.
        driver: of the worker that was started last; None before the first, and after `close`.
        tell: is told what takes long.
        moved: is told that the denoiser's weights now lie in the file that the worker maps.
    """

    def __init__(self, route: Route, start: Start, how: Lowering) -> None:
        self.route = route
        self.device = device_of(route.denoiser)
        self.driver: Driver | None = None
        self.tell: Callable[[str], None] = lambda text: None
        self.moved: Callable[[], object] = lambda: None
        self._start, self._how, self._pid = start, how, os.getpid()
        self._have: dict[str, Stamp] = {}  # of the weights, by name
        self._loaded: set[int] = set()  # keys of entries
        self._be_ready: Callable[[], None] = lambda: None

    @property
    def are_forked(self) -> bool:
        """Whether this process is a fork of the one whose worker it is."""
        return self.driver is not None and os.getpid() != self._pid

    def check_fork(self) -> None:
        """Raise a ClosedError in a fork of the process that the worker serves."""
        if self.are_forked:
            raise forked(self._pid)

    def connect(self, entries: Iterable[Entry]) -> Driver:
        """The driver of a worker that is there.

        Args:
            entries: that a new worker is given, if the last one is gone.

        Raises:
            ClosedError: this process is a fork of the one that the worker serves.
            WorkerError: it did not start, or failed.
        """
        self.check_fork()
        if self.driver is not None and self.driver.fleet.is_open:
            return self.driver
        entries = list(entries)
        self._have.clear()
        self._loaded.clear()

        def get_ready() -> None:  # while the worker starts
            self._be_ready = lower.get_ready(self._how, self.device)
            # Tracing is slower on weights in one mapping: not before it is needed.
            if entries and self.route.published().refresh({}):
                self.moved()

        self.driver = Driver(self._start(get_ready), self.device)
        if self._how.backend == "inductor":
            self.driver.fleet.send(messages.Warm(self._how))
        for entry in entries:
            self._load(self.driver, entry)
        return self.driver

    def add(self, entry: Entry, known: Iterable[Entry]) -> None:
        """Load one more entry on both sides; a new worker is given the known ones as well."""
        self._load(self.connect(known), entry)

    def refresh(self, entries: Iterable[Entry]) -> None:
        """Let a worker that is there have the weights as they are now, and these entries."""
        if self.driver is None or not self.driver.fleet.is_open:
            return
        self._send_weights(self.driver)
        for entry in entries:
            if entry.key not in self._loaded:
                self._load(self.driver, entry)

    def _send_weights(self, driver: Driver) -> Published:
        shared = self.route.published()
        if shared.refresh(self._have):
            self.moved()
        for path, manifest, gone in shared.offer(self._have):
            driver.fleet.ask(messages.Weights(shared.owner, path, manifest, gone))
        shared.mapped()
        return shared

    def _load(self, driver: Driver, entry: Entry) -> None:
        shared = self._send_weights(driver)
        how, count = self._how, len(entry.programs)
        both = [RankProgram.of(p, r) for r in range(2) for p in entry.programs.values()]
        with one_compiler:
            prepared = lower.prepare(both, how)
            own, peer = prepared[:count], prepared[count:]

            def begin() -> lower.Finish:
                self._be_ready()  # as late as can be: what it waits for takes seconds
                return lower.begin(own, how, self.device, tell=self.tell)

            driver.load(entry.key, shared.owner, peer, shared.names, how, begin)
        self._loaded.add(entry.key)

    def forget(self, entries: Iterable[Entry]) -> None:
        """No rank keeps these programs."""
        keys = [entry.key for entry in entries]
        if self.driver is not None and self.driver.fleet.is_open:
            self.driver.unload(keys)
        self._loaded.difference_update(keys)

    def forget_weights(self) -> None:
        """The worker needs no weights of this denoiser any more."""
        if self.driver is not None and self.driver.fleet.is_open:
            self.driver.unload((), (self.route.published().owner,))
        self._have.clear()

    def close(self) -> None:
        """End the worker; the next use would start another."""
        if self.driver is not None:
            self.driver.release()
            self.driver = None
