"""What the measuring commands do with their rows: tell each as it is known, and write all of them.

A command that is ended keeps the rows so far in the file of `--json`, and leaves nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import command, figures, tables
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.tables import Layout

LayoutOf = Callable[[Sequence[Row]], Layout]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Where a command writes, and what it leaves out.

    Attributes:
        out: folder for the tables and the images.
        json: file for the figures, written whenever rows are known; None writes none.
        thinned: what is left out to be quick, in words.
    """

    out: Path
    json: Path | None = None
    thinned: str = ""


class Report:
    """The rows of a command that runs.

    Attributes:
        rows: that are known.
        where: what they are measured on.
        folder: for images; its files go to the output folder in the end.
        tell: says what begins.
    """

    def __init__(self, asked: Asked, layout: LayoutOf, console: Console, folder: Path) -> None:
        self.rows, self.where = list[Row](), figures.environment(threads_per_rank=1)
        self._later = list[Row]()  # those that are in no table yet
        self.folder, self.tell = folder, command.Telling(console)
        self._asked, self._layout, self._console = asked, layout, console

    def begin(self, seconds: float, what: str, total: int) -> None:
        """Say how long it will take, for what, and how often something will begin."""
        command.announce(self._console, seconds, what, self._asked.json)
        self.tell.expect(total)

    def add(self, *rows: Row) -> None:
        """Take rows that are known now: write the file; print one as a line, several as tables."""
        self.rows += rows
        # First, so that a row that was seen is in the file, whenever the command is ended.
        if self._asked.json is not None:
            figures.write(self._asked.json, self.rows, self.where)
        if len(rows) == 1:
            self.tell.row(tables.line(rows[0], self._layout(self.rows)))
            self._later += rows
        else:
            self._show(rows)

    def close(self, name: str) -> None:
        """Print the tables, what they were measured on and what they mean; write all of it."""
        self._show(self._later)
        head, footnote = tables.header(self.where), self._layout(self.rows).footnote
        for text in (head, footnote):
            self._console.print(f"\n{text}", style="dim", highlight=False)
        texts = [head, *(tables.markdown(table) for table in self._tables(self.rows)), footnote]
        (self.folder / f"{name}.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")

    def _tables(self, rows: Sequence[Row]) -> list[Table]:
        return tables.tables(rows, self._layout(self.rows), self._asked.thinned)

    def _show(self, rows: Sequence[Row]) -> None:
        for table in self._tables(rows):
            tables.show(table, self._console)


@contextmanager
def reporting(
    asked: Asked, layout: LayoutOf, console: Console, name: str = "table"
) -> Iterator[Report]:
    """Collect a command's rows; at the end of the block they are shown and written.

    Args:
        asked: where.
        layout: how the rows of one run are shown.
        console: to print on.
        name: of the file of the tables.

    Raises:
        ConfigError: see `command.folders`.
    """
    out, file = asked.out, asked.json
    with command.folders(out, file), TemporaryDirectory(prefix=".part-", dir=out) as folder:
        report = Report(asked, layout, console, Path(folder))
        with report.tell:
            yield report
        report.close(name)
        # The folder holds what it held until all files are there.
        names = sorted(made.name for made in Path(folder).iterdir())
        for made in names:
            (Path(folder) / made).replace(out / made)
    for path in (*(out / made for made in names), *([file] if file else [])):
        console.print(f"wrote {path}", style="dim", soft_wrap=True, highlight=False)
