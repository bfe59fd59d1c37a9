"""What the measuring commands do alike: say how long they take and what they are at, end clean."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hybridiff_compile.bench import figures
from hybridiff_compile.errors import ConfigError

#: Without a terminal, what a command is at is a line of its own, and no more often than this.
_SECONDS_A_LINE = 10.0


def check_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a count that is too small."""
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}.")


def about(seconds: float) -> str:
    """A length of time in round words: "about 40 s", "about 6 min"."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} s"
    return f"about {round(seconds / 60)} min"


def counted(count: int, thing: str) -> str:
    """A count of things: "1 model", "2 models"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def announce(console: Console, seconds: float, what: str, file: Path | None = None) -> None:
    """Say beforehand how long a command will take, for what, and what ending it leaves behind.

    Args:
        console: to say it on.
        seconds: about.
        what: it does.
        file: that holds each row from when it is known; None if there is none.
    """
    left = f"; rows that are known stay in {file}" if file else " and leaves nothing behind"
    said = f"{about(seconds)} on this machine: {what}; Ctrl-C ends it{left}"
    console.print(said, highlight=False, soft_wrap=True)


class Telling(Progress):
    """What a command is at: one bar on a terminal, and elsewhere a line now and then.

    Args:
        console: that it is told on.
        total: how often something will begin; None if that is not known yet.
    """

    def __init__(self, console: Console, total: int | None = None) -> None:
        columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn())
        # Without a terminal the bar would be drawn once, at the end.
        hidden = not console.is_terminal
        super().__init__(*columns, TimeElapsedColumn(), console=console, disable=hidden)
        self._bar, self._begun = self.add_task("starting", total=total), 0
        self._last = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Take the bar away, full unless there was an error."""
        if kind is None:
            self.update(self._bar, completed=self._begun, description="done")
        self.stop()

    def expect(self, total: int) -> None:
        """Say how often something will begin."""
        self.update(self._bar, total=total)

    def __call__(self, what: str) -> None:
        """Say what begins now."""
        self.update(self._bar, completed=self._begun, description=what)
        self._begun += 1
        if self.disable and time.monotonic() - self._last > _SECONDS_A_LINE:
            self._last = time.monotonic()
            total = self.tasks[self._bar].total or "?"
            self.row(f"[dim]{what} ({self._begun} of {total})[/]")

    def row(self, text: str) -> None:
        """Print a row that is known now."""
        self.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that all that it opened is closed; say so."""

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not end the closing
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        Console(stderr=True).print("ended; all processes and unfinished files are gone")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def folders(out: Path, file: Path | None = None) -> Iterator[None]:
    """Make an output folder, and that of a file that is wanted too; an error leaves neither empty.

    Raises:
        ConfigError: one of them cannot be made, or the file cannot be written.
    """
    if file is not None and file.is_dir():
        raise ConfigError(f"cannot write to {file}: it is a folder; name a file in it.")
    with ExitStack() as made:
        try:
            for folder in (out, *([file.parent] if file else [])):
                for each in (*reversed(folder.parents), folder):
                    if not each.exists():
                        each.mkdir()
                        made.callback(_remove_if_empty, each)
                folder.mkdir(exist_ok=True)  # it may be a file
            # A folder may take no files: that is known before the work, not after it.
            for wanted in (*([file] if file else []), out / ".figures"):
                part = figures.part_of(wanted)
                part.touch()
                part.unlink()
        except OSError as e:
            raise ConfigError(f"cannot write to {e.filename}: {e.strerror}; choose another.") from e
        yield
        made.pop_all()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
