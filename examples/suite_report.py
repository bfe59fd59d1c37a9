"""What a run of `diffusers_suite.py` has found: pure functions from its lines to its report."""

from __future__ import annotations

import fnmatch
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: What became of each test of a file, by its id.
Results = dict[str, dict[str, Any]]

OUTCOMES = ("passed", "failed", "skipped")


def read_lines(part: Path) -> list[dict[str, Any]]:
    """The lines of a part; a last line that was cut off is left out, for its test is run again."""
    if not part.exists():
        return []
    text = part.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def has_ended(lines: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all tests of the part were run."""
    return any(line.get("event") == "end" for line in lines)


def unfinished(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """The test that was started and has no outcome; None if there is none."""
    open_test = None
    for line in lines:
        if line.get("event") == "start":
            open_test = line["test"]
        elif line.get("test") == open_test:
            open_test = None
    return open_test


def results(lines: Iterable[Mapping[str, Any]]) -> Results:
    """The outcomes by test."""
    return {line["test"]: dict(line) for line in lines if "outcome" in line}


def read_known(path: Path) -> dict[str, str]:
    """The known exceptions: why, by a pattern of test ids.

    Raises:
        ValueError: one has no reason.
    """
    known = {}
    for entry in tomllib.loads(path.read_text()).get("known", []):
        if not entry.get("reason", "").strip():
            raise ValueError(f"{path.name}: {entry['test']} has no reason; say why it may fail.")
        known[entry["test"]] = " ".join(entry["reason"].split())
    return known


def reason(test: str, known: Mapping[str, str]) -> str | None:
    """Why this test may fail with us; None if it must not. `*` stands for anything, `[` for itself.

    >>> reason("tests/a.py::A::test_x[1]", {"*::A::test_x[[]1]": "it reads forward"})
    'it reads forward'
    """
    return next((why for p, why in known.items() if fnmatch.fnmatchcase(test, p)), None)


def summarize(
    plain: Mapping[str, Results], ours: Mapping[str, Results], known: Mapping[str, str]
) -> dict[str, Any]:
    """Compare the runs without us and with us.

    Args:
        plain, ours: results by file.
        known: exceptions.

    Returns:
        `files` (counts of both, tests that ran on several ranks), `only_with_us` (what passes
        without us and does not pass with us), `not_run` (no result with us), `settled` (known
        exceptions that pass), `not_restored`, `refused` (reasons, counted).
    """
    files, bad, lost, not_restored = {}, [], [], []
    settled: set[str] = set()
    refused: Counter[str] = Counter()
    for file, before in plain.items():
        after = ours.get(file, {})
        files[file] = {
            "without": count(before),
            "with": count(after),
            "several_ranks": sum(
                any(r and r > 1 for _, r in t.get("calls", ())) for t in after.values()
            ),
        }
        lost += [test for test in before if test not in after]
        for test, record in after.items():
            was = before.get(test, {}).get("outcome")
            why = reason(test, known)
            if record["outcome"] == "passed" and why:
                settled.add(test)
            if (
                was in ("passed", None)
                and record["outcome"] != "passed"
                and not (was is None and record["outcome"] == "skipped")
            ):
                bad.append(
                    {"test": test, "error": record.get("error", record["outcome"]), "known": why}
                )
            not_restored += [f"{test}: {p}" for p in record.get("not_restored", ())]
            refused.update(record.get("refused", ()))
    return {
        "files": files,
        "only_with_us": bad,
        "not_run": lost,
        "settled": sorted(settled),
        "not_restored": not_restored,
        "refused": dict(refused.most_common()),
    }


def count(records: Results) -> dict[str, int]:
    """How many tests had each outcome."""
    counts = Counter(r["outcome"] for r in records.values())
    return {kind: counts[kind] for kind in OUTCOMES}


def text(summary: Mapping[str, Any]) -> str:
    """The report that is printed: a row a file, then what only fails with us."""
    rows = [
        (
            "file",
            "without us: passed",
            "failed",
            "skipped",
            "with us: passed",
            "failed",
            "skipped",
            "on several ranks",
        )
    ]
    total = [0] * 7
    for file, found in summary["files"].items():
        figures = [*found["without"].values(), *found["with"].values(), found["several_ranks"]]
        total = [a + b for a, b in zip(total, figures, strict=True)]
        rows.append((file.removeprefix("tests/"), *map(str, figures)))
    rows.append(("all", *map(str, total)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells))
    bad = [b for b in summary["only_with_us"] if not b["known"]]
    allowed = [b for b in summary["only_with_us"] if b["known"]]
    lines += listed(
        "pass without us and not with us",
        [f"{b['test']}\n    {last_words(b['error'])}" for b in bad],
    )
    lines += listed("known exceptions", [f"{b['test']}\n    {b['known']}" for b in allowed])
    for title, key in (
        ("known exceptions that pass; take them off the list", "settled"),
        ("run without us and not with us", "not_run"),
        ("not restored", "not_restored"),
        ("left behind", "left_behind"),
    ):
        lines += listed(title, summary.get(key, [])) if summary.get(key) else []
    lines += listed(
        "refused by optimize(), and run as it is",
        [f"{n} x {why}" for why, n in summary["refused"].items()],
    )
    return "\n".join(lines)


def listed(title: str, entries: Iterable[str]) -> list[str]:
    """A heading with its number, and the entries."""
    entries = list(entries)
    return ["", f"{title}: {len(entries)}", *(f"  {e}" for e in entries)]


def last_words(error: str) -> str:
    """An error in one line: its first, which names it, and its last, if that is another."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["no message"]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
