"""diffusers' own pipeline tests, run without us and with every pipeline optimized.

    python examples/diffusers_suite.py CHECKOUT --files flux wan/test_wan.py --out suite.json

CHECKOUT is a checkout of diffusers; only its tests are used, with the diffusers that is installed.
Nothing is downloaded: tokenizers and encoders that the tests take from the hub are replaced by
tiny ones, made beside the report (`suite_hub.py`). Tests that need something else from the hub
fail both without us and with us, and do not count.

A run that was stopped goes on where it was when it is started again with the same --out. A report
of an earlier run may stand in for the runs without us (--without-us).

A test that passes without us must pass with us. Exceptions are in `suite_known.toml`, each with
its reason. The exit status is 1 if another test does not pass.

Some tests need packages that this project does not: peft, sentencepiece, ftfy, parameterized,
requests-mock, torchsde.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import suite_hub
from suite_report import count, read_known, read_lines, results, summarize, text
from suite_run import WITHOUT_US, Suite, Way, find_files, with_us

KNOWN = Path(__file__).with_name("suite_known.toml")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkout", type=Path, help="of diffusers, of the version that is installed"
    )
    parser.add_argument("--files", nargs="+", default=[], help="files or folders; default: all")
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument(
        "--attach",
        default="to",
        choices=("to", "call"),
        help="optimize after pipe.to(...), or only at a pipeline's first call",
    )
    parser.add_argument("--jobs", type=int, default=1, help="files at a time")
    parser.add_argument("--seconds", type=float, default=100, help="of one test")
    parser.add_argument("--ways", default="both", choices=("both", "without", "with"))
    parser.add_argument("--without-us", type=Path, help="report to take the runs without us from")
    parser.add_argument("--known", type=Path, default=KNOWN)
    parser.add_argument("--out", type=Path, required=True, help="report; parts go beside it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and report; returns the exit status."""
    asked = parse(arguments)
    try:
        files = find_files(asked.checkout, asked.files)
        known = read_known(asked.known)
        earlier = json.loads(asked.without_us.read_text())["tests"] if asked.without_us else None
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return 2
    out = asked.out.resolve()
    suite = Suite(
        asked.checkout.resolve(), out.with_suffix(".parts"), out.with_suffix(".hub"), asked.seconds
    )
    suite_hub.build(suite.hub)
    ours = with_us(asked.mode, asked.gpus, asked.attach)
    ways = {"both": [WITHOUT_US, ours], "without": [WITHOUT_US], "with": [ours]}[asked.ways]
    if earlier is not None:
        ways = [w for w in ways if w is not WITHOUT_US]
    try:
        run_all(suite, files, ways, asked.jobs)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    lines = {w.name: {f: read_lines(suite.part(f, w)) for f in files} for w in (WITHOUT_US, ours)}
    tests = {way: {f: results(found) for f, found in by.items()} for way, by in lines.items()}
    if earlier is not None:
        tests[WITHOUT_US.name] = {f: earlier[WITHOUT_US.name].get(f, {}) for f in files}
    summary = summarize(tests[WITHOUT_US.name], tests[ours.name], known)
    every = [line for by in lines.values() for found in by.values() for line in found]
    summary["left_behind"] = [x["what"] for x in every if x.get("event") == "left"]
    versions = [x for x in every if x.get("event") == "end"][-1:]
    out.write_text(json.dumps({"of": versions, **summary, "tests": tests}, indent=1))
    print(text(summary))
    return int(any(not bad["known"] for bad in summary["only_with_us"]))


def run_all(suite: Suite, files: list[str], ways: list[Way], jobs: int) -> None:
    """Run the files, some at a time; says what each came to.

    Raises:
        KeyboardInterrupt: it was stopped, by Ctrl-C or SIGTERM; nothing runs any more.
    """

    def one(task: tuple[str, Way]) -> None:
        suite.run(*task)
        counts = count(results(read_lines(suite.part(*task))))
        print(f"{task[0]} {task[1].name}: {counts}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(one, [(file, way) for file in files for way in ways]))
        except BaseException:
            suite.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    sys.exit(main())
