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
        plain, ours: results by file; a file without any was not run.
        known: exceptions.

    Returns:
        `files` (counts of both, tests with a call on several ranks), `only_with_us` (what passes
        without us and does not pass with us), `other_error` (fails both ways, by another kind of
        error with us), `not_run` (has a result without us only), `settled` (known exceptions that
        pass), `not_restored`, `refused` and `said` (texts, counted).
    """
    files = {}
    found: dict[str, list[Any]] = {"only_with_us": [], "other_error": [], "not_run": []}
    found |= {"settled": [], "not_restored": []}
    texts: dict[str, Counter[str]] = {"refused": Counter(), "said": Counter()}
    for file, before in plain.items():
        after = ours.get(file, {})
        several = sum(any(r and r > 1 for _, r in t.get("calls", ())) for t in after.values())
        files[file] = {"without": count(before), "with": count(after), "several_ranks": several}
        found["not_run"] += [test for test in before if after and test not in after]
        for test, record in after.items():
            why = reason(test, known)
            if before and is_worse(before.get(test), record):
                error = record.get("error", record["outcome"])
                found["only_with_us"].append({"test": test, "error": error, "known": why})
            elif why and record["outcome"] == "passed":
                found["settled"].append(test)
            elif fails_otherwise(before.get(test, {}), record):
                found["other_error"].append({"test": test, "error": record["error"]})
            found["not_restored"] += [f"{test}: {p}" for p in record.get("not_restored", ())]
            for key, counts in texts.items():
                counts.update(record.get(key, ()))
    return {"files": files, **found, **{k: dict(c.most_common()) for k, c in texts.items()}}


def is_worse(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Whether a test fails with us only, or passes without us only.

    Args:
        before, after: its results; None if there was no such test without us, such as the name of
            a file that can be imported only without us.
    """
    was = before["outcome"] if before else "none"
    now = after["outcome"]
    return (now == "failed" and was != "failed") or (was == "passed" and now != "passed")


def fails_otherwise(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a test fails both ways, by another kind of error with us."""
    kinds = [r["error"].split(":")[0] for r in (before, after) if r.get("outcome") == "failed"]
    return len(kinds) == 2 and kinds[0] != kinds[1]


def count(records: Results) -> dict[str, int]:
    """How many tests had each outcome."""
    counts = Counter(r["outcome"] for r in records.values())
    return {kind: counts[kind] for kind in OUTCOMES}


def text(summary: Mapping[str, Any]) -> str:
    """The report that is printed: a row a file, without us and with us; then what is worse."""
    rows = [["file", *(f"{kind} without" for kind in OUTCOMES), *OUTCOMES, "on several ranks"]]
    total = [0] * 7
    for file, found in summary["files"].items():
        figures = [*found["without"].values(), *found["with"].values(), found["several_ranks"]]
        total = [a + b for a, b in zip(total, figures, strict=True)]
        rows.append([file.removeprefix("tests/"), *map(str, figures)])
    rows.append(["all", *map(str, total)])
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
        "pass without us and not with us", [said(b, last_words(b["error"])) for b in bad]
    )
    other = [said(b, last_words(b["error"])) for b in summary["other_error"]]
    lines += listed("fail both ways, with us by another kind of error", other) if other else []
    lines += listed("known exceptions", [said(b, b["known"]) for b in allowed])
    for title, key in (
        ("known exceptions that pass; take them off the list", "settled"),
        ("run without us and not with us", "not_run"),
        ("not restored", "not_restored"),
        ("left behind", "left_behind"),
    ):
        lines += listed(title, summary[key]) if summary[key] else []
    for title, key in (
        ("refused by optimize(), so that the pipeline ran as it is", "refused"),
        ("said by the package in tests", "said"),
    ):
        lines += listed(title, [f"{n} x {words}" for words, n in summary[key].items()])
    return "\n".join(lines)


def said(entry: Mapping[str, Any], words: str) -> str:
    """A test, and what there is to say of it in a line of its own."""
    return f"{entry['test']}\n    {words}"


def listed(title: str, entries: Iterable[str]) -> list[str]:
    """A heading with its number, and the entries."""
    entries = list(entries)
    return ["", f"{title}: {len(entries)}", *(f"  {e}" for e in entries)]


def last_words(error: str) -> str:
    """An error in one line: its first, which names it, and its last, if that is another."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["no message"]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
