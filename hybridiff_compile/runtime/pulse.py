"""Signs of life: a driver that waits for another rank asks whether it is there.

A deadline is about silence, not about work. A rank that compiles or computes for minutes answers,
from a thread of its own; one that is stopped, swapped out or wedged does not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

#: Seconds of silence after which a rank is given up, unless the user says otherwise.
DEADLINE = 30.0
#: How many deadlines a rank may work at one message though it goes on giving signs of life.
WORK_DEADLINES = 20
#: The same while it compiles.
COMPILE_DEADLINES = 120

# Questions in a deadline.
_QUESTIONS = 20


class Watch:
    """Watches a rank while the driver waits for it, from a thread, and gives it up in time.

    The thread costs a step nothing: it sleeps, and looks now and then at what is waited for.

    Attributes:
        deadline: seconds of silence after which the rank is given up.
        verdict: why it was given up, such as "gave no sign of life for 30 s"; else None.
    """

    def __init__(
        self, pulse: Connection, pid: int | None, deadline: float, give_up: Callable[[], None]
    ) -> None:
        """Begin.

        Args:
            pulse: to the rank, for questions and answers only; closed by `stop`.
            pid: of the rank's process if it runs here, else None. The processor's time that it has
                used is a sign of life too: it cannot answer while it starts, or while a library
                keeps Python's lock.
            deadline: in seconds.
            give_up: called from the thread, once; it has to make the driver's wait end.
        """
        self.deadline = deadline
        self.verdict: str | None = None
        self._pulse, self._pid, self._give_up = pulse, pid, give_up
        self._limit: tuple[float] | None = None  # a tuple of its own for each wait
        self._asked, self._used = False, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hybridiff-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self, deadlines: float = WORK_DEADLINES) -> Iterator[None]:
        """Within this, the driver waits for the rank; waits may lie in each other.

        Args:
            deadlines: how many deadlines it may take, however alive the rank is.
        """
        before, self._limit = self._limit, (deadlines * self.deadline,)
        try:
            yield
        finally:
            self._limit = before

    def keep(self) -> None:
        """From now on until `let_go`, between waits too: the driver waits, but not in our code."""
        self._limit = (float("inf"),)

    def let_go(self) -> None:
        """Nothing is waited for."""
        self._limit = None

    def stop(self) -> None:
        """End the thread and close the pulse; does nothing the second time."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._pulse.close()

    def disown(self) -> None:
        """In a forked child, which has no such thread: close the copy of the pulse, say nothing."""
        self._pulse.close()

    def _run(self) -> None:
        tick = self.deadline / _QUESTIONS
        limit, last, waited, silent = None, time.monotonic(), 0.0, 0.0
        while not self._stopped.wait(tick):
            now = time.monotonic()
            # No longer than two ticks: where this process itself was stopped, no time has passed.
            passed, last = min(now - last, 2 * tick), now
            if self._limit is not limit:  # another wait: what was said before it does not count
                limit, waited, silent = self._limit, 0.0, 0.0
                self._is_alive()
            if limit is None:
                continue
            waited += passed
            silent = 0.0 if self._is_alive() else silent + passed
            if silent + tick > self.deadline:  # the wait began up to a tick before it was seen
                self.verdict = f"gave no sign of life for {self.deadline:g} s"
            elif waited + tick > limit[0]:
                self.verdict = f"was busy for {limit[0]:g} s without an end"
            if self.verdict is not None:
                self._give_up()
                return

    def _is_alive(self) -> bool:
        """Whether the rank has given a sign of life since this was last asked."""
        used = _processor_time(self._pid)
        alive, self._used = used != self._used, used
        with suppress(OSError, EOFError):  # it is gone, and so says nothing
            if self._asked and self._pulse.poll(0):
                self._pulse.recv_bytes()
                alive, self._asked = True, False
            if not self._asked:  # one question at a time: a pipe that fills would stop this thread
                self._pulse.send_bytes(b"?")
                self._asked = True
        return alive


def _processor_time(pid: int | None) -> int:
    """What a process of this machine has used of the processor, in ticks; 0 if it is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def answer(pulse: Connection, ended: Callable[[], None] = lambda: None) -> None:
    """On the other rank: give signs of life, from a daemon thread, as long as the driver lives.

    Args:
        pulse: to the driver's `Watch`.
        ended: called from the thread when the driver is gone.
    """

    def run() -> None:
        with suppress(OSError, EOFError):
            while True:
                pulse.send_bytes(pulse.recv_bytes())
        ended()

    threading.Thread(target=run, name="hybridiff-pulse", daemon=True).start()


def end_soon(seconds: float, tidy: Callable[[], None]) -> None:
    """End this process, whatever its main thread is doing, unless it has ended by then."""
    time.sleep(seconds)
    tidy()
    os._exit(1)
