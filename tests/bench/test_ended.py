"""A command that is ended in the midst of its work leaves nothing behind."""

import getpass
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from hybridiff_compile.bench import command
from hybridiff_compile.bench.command import Telling, about, counted, ended_cleanly

#: What libraries make there for all of a user's processes, at import.
OF_LIBRARIES = (f"torchinductor_{getpass.getuser()}", ".ses")
#: Ctrl-C is ignored where a shell starts the tests by `&`, and so by all that they start.
CODE = """import signal, sys; from hybridiff_compile.cli import app
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(app())"""


def alive(mark: str) -> list[int]:
    """Processes that a command started, itself among them: all of them bear its mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def ended_while(
    tmp_path: Path, arguments: list[str], begun: str, number: int, after: float = 0.0
) -> int:
    """End a command, Ctrl-C as a terminal does, once it has said something; what is left fails."""
    mark, temporary, out = f"MARK={tmp_path}", tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    env = {**os.environ, "MARK": str(tmp_path), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments, "--out", str(out)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        lines = []
        for said in process.stdout:
            lines.append(said)
            if begun in said:
                break
        else:
            raise AssertionError(f"it ended too early: {lines}")
        time.sleep(after)
        assert out.is_dir(), said
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        code = process.wait(60)
        deadline = time.monotonic() + 10  # of a worker, which ends on its own
        while alive(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(mark) == []
        assert [p.name for p in temporary.iterdir() if p.name not in OF_LIBRARIES] == []
        assert not out.exists()
    finally:
        process.stdout.close()
        for pid in alive(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return code


@pytest.mark.parametrize(
    ("number", "begun", "after", "code"),
    [
        (signal.SIGTERM, "about ", 4, 143),  # while ranks start
        pytest.param(signal.SIGINT, "warming up", 1, 130, marks=pytest.mark.slow),
    ],
)
def test_a_demo_that_is_ended_leaves_nothing(tmp_path, number, begun, after, code):
    asked = ["demo", "--model", "tiny-sd3", "--steps", "2000", "--prompts", "1"]
    assert ended_while(tmp_path, asked, begun, number, after) == code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", [6, 14, 22, 34])
def test_a_bench_that_is_ended_while_it_compiles_leaves_nothing(tmp_path, number, after):
    asked = ["bench", "--compile", "--model", "tiny-sd3", "--quick"]
    assert ended_while(tmp_path, asked, "one device, eager", number, after) in (130, 143)


def test_sigterm_closes_what_the_block_opened(capsys):
    before, closed = signal.getsignal(signal.SIGTERM), []

    def block() -> None:
        with ended_cleanly():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break the closing
                closed.append(True)

    with pytest.raises(SystemExit) as ending:
        block()
    assert (ending.value.code, closed) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.startswith("ended; ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "about 10 s"), (44, "about 40 s"), (89, "about 90 s"), (100, "about 2 min")],
)
def test_a_length_of_time_is_told_in_round_words(seconds, words):
    assert about(seconds) == words


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (None, "Ctrl-C ends it and leaves nothing behind"),
        (Path("f.json"), "Ctrl-C ends it; rows that are known stay in f.json"),
    ],
)
def test_beforehand_it_is_told_what_ending_it_leaves(file, says, capsys):
    command.announce(Console(width=40), 44, "2 rows", file)
    assert capsys.readouterr().out == f"about 40 s on this machine: 2 rows; {says}\n"


def test_one_thing_is_not_told_as_several():
    assert (counted(1, "model"), counted(2, "model")) == ("1 model", "2 models")


def test_without_a_terminal_what_begins_is_a_line_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(now))
    with Telling(Console(width=80), total=3) as tell:
        for what in ("one", "two", "three"):
            tell(what)
        tell.row("a row")
    assert capsys.readouterr().out.splitlines() == ["two (2 of 3)", "a row"]


def test_on_a_terminal_it_is_one_bar(capsys):
    with Telling(Console(force_terminal=True, width=100), total=2) as tell:
        tell("one")
        tell("two")
    assert "two" not in (said := capsys.readouterr().out.splitlines()[-2])
    assert "done" in said
    assert "2/2" in said
