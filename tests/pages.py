"""What is written on README and the pages of docs: blocks, links, headings, commands."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import typer

from hybridiff_compile.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_PROJECT = ROOT / "hybridiff_compile"
_FILE = re.compile(r"`([\w/]+\.py)`:\n\n$")


def blocks(page: Path, kind: str) -> list[tuple[str, str]]:
    """Blocks of a language: the file that the line above names, or "", and the text."""
    text = page.read_text()
    found = re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    named = ((_FILE.search(text[: block.start()]), block[1]) for block in found)
    return [(name[1] if name else "", block) for name, block in named]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[tuple[Path, str]]:
    """The file and the anchor ("" if none) of every link within the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    pairs = (t.partition("#") for t in targets if not t.startswith("http"))
    return [(page.parent / file if file else page, anchor) for file, _, anchor in pairs]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them: words in lower case, joined by hyphens."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(
            re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{name}-{again}" if again else name)
    return set(found)


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command: the lines of the blocks of bash, and commands within sentences."""
    lines = [line for _, block in blocks(page, "bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:make|hybridiff|python|pytest) [^`]+)`", prose(page))
    for line in lines:
        for part in line.split("  #")[0].split("&&"):
            words = [w for w in shlex.split(part) if not re.match(r"[A-Z_]+=", w)]
            if words:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def missing(words: list[str]) -> list[str]:
    """What a command names that is not there: a target, a command, an option, a file.

    Commands of other projects name nothing of this one, as far as this function knows.
    """
    program, *rest = words
    if program == "make":
        return [target for target in rest if target not in targets()]
    if program == "hybridiff":
        known = options().get(rest[0])
        return rest[:1] if known is None else [w for w in flags(rest[1:]) if w not in known]
    if program == "python" and not rest[0].startswith("-"):
        script = ROOT / rest[0]
        source = script.read_text() if script.exists() else ""
        return [w for w in flags(rest[1:]) if not _takes(source, w)] if source else rest[:1]
    if program in ("python", "pytest"):
        files = [w for w in rest if w.startswith("tests")]
        return [w for w in files if not (ROOT / w).exists() and not is_shown(w)]
    return []


def flags(words: list[str]) -> list[str]:
    """The options among the words of a command."""
    return [w.partition("=")[0] for w in words if w.startswith("--")]


def _takes(source: str, flag: str) -> bool:
    """Whether a script has an option: as a word, or as a parameter that typer makes one of."""
    parameter = flag.removeprefix("--").replace("-", "_")
    return (
        f'"{flag}"' in source or re.search(rf"^    {parameter}: ", source, re.MULTILINE) is not None
    )


def is_shown(file: str) -> bool:
    """Whether a page shows this file, so that a reader makes it."""
    return any(file == name for page in PAGES for name, _ in blocks(page, "python"))


@functools.cache
def targets() -> frozenset[str]:
    """Of the Makefile."""
    return frozenset(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def options() -> dict[str, set[str]]:
    """Of each command of `hybridiff`."""
    group = typer.main.get_command(app)
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        found[name] = {"--help", *(o for p in command.params for o in (*p.opts, *p.secondary_opts))}
    return found


def stations(page: Path) -> list[tuple[Path, str]]:
    """Each file of the package that a page names with a function or class in it."""
    found = re.findall(r"`([\w/]+\.py)`: `(\w+)`", page.read_text())
    return [(_PROJECT / file, name) for file, name in found]


def is_part_of(shown: str, printed: str) -> bool:
    """Whether a shortened program, with remarks, is one of those that were printed.

    Each of its lines is a line of one paragraph of what was printed, in the same order; `...`
    stands for what was left out, and a remark begins with two spaces and `#`.
    """
    left_out = (re.escape(line.split("  #")[0].rstrip()) for line in shown.strip().splitlines())
    pattern = r"\n(?:.*\n)*?".join(f"    {p.replace(re.escape('...'), '.*')}.*" for p in left_out)
    return any(re.search(f"^{pattern}$", part, re.MULTILINE) for part in printed.split("\n\n"))
