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
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import suite_hub
from suite_report import read_known, read_lines, results, summarize, text
from suite_run import WITHOUT_US, Suite, Way, find_files, with_us

KNOWN = Path(__file__).with_name("suite_known.toml")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
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
    left = run_all(suite, files, ways, asked.jobs)
    tests = {
        way.name: {f: results(read_lines(suite.part(f, way))) for f in files}
        for way in (WITHOUT_US, ours)
    }
    if earlier is not None:
        tests[WITHOUT_US.name] = {f: earlier["without"].get(f, {}) for f in files}
    summary = summarize(tests["without"], tests[ours.name], known) | {"left_behind": left}
    versions = {k: v for f in files for w in ways for k, v in end_of(suite, f, w).items()}
    out.write_text(
        json.dumps({**summary, "of": versions, "way": ours.name, "tests": tests}, indent=1)
    )
    print(text(summary))
    return int(asked.ways != "without" and any(not bad["known"] for bad in summary["only_with_us"]))


def run_all(suite: Suite, files: list[str], ways: list[Way], jobs: int) -> list[str]:
    """Run the files, some at a time; returns what they left behind."""
    left, lock = [], threading.Lock()

    def one(task: tuple[str, Way]) -> None:
        found = suite.run(*task)
        with lock:
            left.extend(found)
            outcomes = [r["outcome"] for r in results(read_lines(suite.part(*task))).values()]
            counts = {kind: outcomes.count(kind) for kind in sorted(set(outcomes))}
            print(f"{task[0]} {task[1].name}: {counts}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [(file, way) for file in files for way in ways]))
    return left


def end_of(suite: Suite, file: str, way: Way) -> dict[str, Any]:
    """The versions that a run has noted at its end."""
    last = next((x for x in read_lines(suite.part(file, way)) if x.get("event") == "end"), {})
    return {k: v for k, v in last.items() if k != "event"}


if __name__ == "__main__":
    sys.exit(main())
