"""Every pipeline of diffusers' tests, tiny and with random weights, in each mode: a table.

    python examples/coverage.py CHECKOUT --out coverage.jsonl
    python examples/coverage.py --out coverage.jsonl --page docs/coverage.md

CHECKOUT is a checkout of diffusers; only its tests are used, with the diffusers that is installed:
their classes build the pipelines. Nothing is downloaded: tokenizers and encoders that they take
from the hub are replaced by tiny ones, made beside the report (`suite_hub.py`).

Each pipeline is run in a process of its own. Its denoisers' weights are random and none is zero,
guidance is on. What is found is added to --out as a line. The same command goes on where it was
stopped; what has its line is not run again. --page writes the table into a page.

Some tests need packages that this project does not: peft, sentencepiece, ftfy, parameterized,
requests-mock, torchsde.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import coverage_cases
import coverage_modes
import coverage_process
import suite_hub
from coverage_rows import MODES, Result, Row, add, page, put, read, short
from suite_run import cut_off, find_files

_COMPILED = "regional"  # compiles, which takes a minute a pipeline


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, nargs="?", help="of diffusers; none: only report")
    parser.add_argument("--files", nargs="+", default=[], help="files or folders; default: all")
    parser.add_argument(
        "--modes",
        nargs="*",
        default=[m for m in MODES if m != _COMPILED],
        choices=MODES,
        help="none: patterns only; regional is exact with compiled blocks",
    )
    parser.add_argument("--compiled", action="store_true", help="also the mode regional: slow")
    parser.add_argument("--jobs", type=int, default=1, help="pipelines at a time")
    parser.add_argument("--seconds", type=float, default=300, help="of one pipeline")
    parser.add_argument("--page", type=Path, help="page to write the table into")
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON a pipeline")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and report; returns the exit status."""
    asked = parse(arguments)
    out = asked.out.resolve()
    try:
        if asked.checkout is not None:
            chosen = {*asked.modes, *([_COMPILED] if asked.compiled else [])}
            work = Work(asked.checkout.resolve(), out, [m for m in MODES if m in chosen])
            work.run(asked.files, asked.jobs, asked.seconds)
        rows = read(out)
        if asked.page is not None:
            put(page(rows), asked.page)
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print("\n".join(short(rows.values())))
    bad = [r for r in rows.values() if r.has_failed]
    for row in bad:
        print(f"failed: {row.pipeline} ({row.case})")
    return int(bool(bad))


class Work:
    """What is to be run.

    Args:
        checkout: of diffusers.
        out: file of lines.
        modes: that are run.
    """

    def __init__(self, checkout: Path, out: Path, modes: Sequence[str]) -> None:
        self._checkout, self._out, self._modes = checkout, out, modes
        self._log = out.with_suffix(".log")
        self._done: dict[str, Row] = {}
        self._stop = threading.Event()

    def run(self, files: list[str], jobs: int, seconds: float) -> None:
        """Run every pipeline that has no line yet.

        Args:
            files: relative to the checkout or to its tests/pipelines; empty: all.
            jobs: pipelines at a time.
            seconds: that one may take.

        Raises:
            ValueError: a file is not there, or the checkout is none.
            KeyboardInterrupt: it was stopped, by Ctrl-C or SIGTERM; nothing runs any more.
        """
        wanted = find_files(self._checkout, files)
        hub = self._out.with_suffix(".hub")
        suite_hub.build(hub)
        cut_off(self._out)
        self._done = read(self._out)
        context = coverage_process.prepare(self._checkout, hub)

        def run(function: Callable[..., Iterable[Any]], *arguments: Any) -> tuple[list[Any], str]:
            where = (context, seconds, self._stop, self._log)
            return coverage_process.run(*where, function, self._checkout, *arguments)

        def of_file(file: str) -> None:
            if file in self._done:  # it cannot be imported
                return
            names, ended = run(coverage_cases.find, file)
            if ended:
                self._note(Row(case=file, not_built=ended))
            for name in names:
                case = f"{file}::{name}"
                modes = self._left(case)
                if modes or case not in self._done:
                    rows, ended = run(coverage_modes.check, case, modes)
                    self._note(last_of(case, rows, ended, modes))

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(of_file, wanted))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _left(self, case: str) -> list[str]:
        """The modes that a pipeline was not yet run in."""
        row = self._done.get(case, Row(case=case))
        return [] if row.not_built else [m for m in self._modes if m not in row.results]

    def _note(self, row: Row) -> None:
        add(self._out, row)
        words = row.not_built or ", ".join(f"{m} {r.outcome}" for m, r in row.results.items())
        print(f"{row.pipeline} {row.case}: {words}", file=sys.stderr, flush=True)


def last_of(case: str, rows: Sequence[Row], ended: str, modes: Sequence[str]) -> Row:
    """What is known of a pipeline.

    Args:
        case: that was run.
        rows: each with one mode more.
        ended: what ended it before all were there; "" if nothing did.
        modes: that were to be run.
    """
    row = rows[-1] if rows else Row(case=case)
    if ended and not row.patterns:
        row.not_built = ended
    elif ended:
        mode = next(m for m in modes if m not in row.results)
        row.results[mode] = Result(outcome="failed", reasons=(ended,))
    return row


if __name__ == "__main__":
    sys.exit(main())
