"""What the measuring commands do alike: say how long they take and what they are at, end clean."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
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


def announce(console: Console, seconds: float, what: str) -> None:
    """Say beforehand how long a command will take, and for what."""
    said = f"{about(seconds)} on this machine: {what}; Ctrl-C ends it and leaves nothing behind"
    console.print(said, highlight=False, soft_wrap=True)


class Telling:
    """What a command is at: one bar on a terminal, and elsewhere a line now and then.

    Args:
        console: that it is told on.
        total: how often something will begin.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._begun = console, total, 0
        self._last = time.monotonic()
        columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn())
        # Elsewhere the bar would be drawn once, at the end.
        self._bar = Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Telling:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._bar.update(self._task, completed=self._total, description="done")
        self._bar.stop()

    def __call__(self, what: str) -> None:
        """Say what begins now."""
        self._bar.update(self._task, completed=self._begun, description=what)
        self._begun += 1
        if not self._console.is_terminal and time.monotonic() - self._last > _SECONDS_A_LINE:
            self._last = time.monotonic()
            said = f"{what} ({self._begun} of {self._total})"
            self._console.print(said, style="dim", highlight=False, soft_wrap=True)

    def row(self, text: str) -> None:
        """Print a row that is known now."""
        self._console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that all that it opened is closed."""

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not end the closing
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
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


@contextmanager
def output(out: Path, file: Path | None, console: Console) -> Iterator[Path]:
    """A folder to write in, whose files are in `out` once all of them are there.

    Args:
        out: folder for the files; ended early, it holds what it held.
        file: for the figures, which the command writes whole after each row; it stays.
        console: told at the end what was written.

    Raises:
        ConfigError: see `folders`.
    """
    with folders(out, file), tempfile.TemporaryDirectory(prefix=".part-", dir=out) as part:
        yield Path(part)
        names = sorted(made.name for made in Path(part).iterdir())
        for name in names:
            (Path(part) / name).replace(out / name)
    for path in (*(out / name for name in names), *([file] if file else [])):
        console.print(f"wrote {path}", style="dim", soft_wrap=True, highlight=False)
