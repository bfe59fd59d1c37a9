"""What a command's rows become: lines, tables and files, also when it is ended."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from hybridiff_compile.bench import figures, tables
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.report import Asked, reporting
from hybridiff_compile.bench.tables import Layout
from hybridiff_compile.errors import ConfigError

LAYOUT = Layout((tables.MODE, tables.PICTURE), "What they mean.")
EXACT, PAPER = (Row(command="x", model="a", mode=m, seconds=2.0) for m in ("exact", "paper"))


def report(asked: Asked, console: Console):
    return reporting(asked, lambda rows: LAYOUT, console)


def test_one_row_is_a_line_now_and_several_are_a_table_now(tmp_path, capsys):
    with report(Asked(out=tmp_path), Console(width=300)) as made:
        made.add(EXACT)
        line = capsys.readouterr().out
        made.add(EXACT, PAPER)
        table = capsys.readouterr().out.splitlines()
    end = capsys.readouterr().out.splitlines()
    assert line == "a, exact: picture s 2.00\n"
    assert [row.split()[0] for row in table if "2.00" in row] == ["exact", "paper"]
    # In the end what was a line is in a table too, and nothing twice.
    assert [row.split()[0] for row in end if "2.00" in row] == ["exact"]
    assert "What they mean." in end
    text = (tmp_path / "table.md").read_text()
    assert text.count("| 2.00 |") == 3
    assert made.rows == [EXACT, EXACT, PAPER]


def test_files_are_in_the_folder_once_all_of_them_are_there(tmp_path, capsys):
    out, file = tmp_path / "new" / "out", tmp_path / "f.json"
    with report(Asked(out=out, json=file), Console(width=300)) as made:
        made.add(EXACT)
        (made.folder / "plot.png").write_text("all")
        assert not (out / "plot.png").exists()
        assert figures.read(file).rows == (EXACT,)
    assert sorted(p.name for p in out.iterdir()) == ["plot.png", "table.md"]
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"wrote {out / 'plot.png'}",
        f"wrote {out / 'table.md'}",
        f"wrote {file}",
    ]


def test_a_row_that_is_printed_is_in_the_file_already(tmp_path):
    file, seen = tmp_path / "f.json", []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            if "exact" in text:
                seen.append(figures.read(file).rows)
            return super().write(text)

    asked = Asked(out=tmp_path / "out", json=file)
    with report(asked, Console(width=300, file=Terminal())) as made:
        made.add(EXACT)
    assert seen[0] == (EXACT,)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
def test_a_folder_that_was_there_holds_what_it_held(tmp_path, error):
    (tmp_path / "table.md").write_text("of before")

    def block() -> None:
        with report(Asked(out=tmp_path), Console(quiet=True)) as made:
            (made.folder / "table.md").write_text("half")
            raise error

    with pytest.raises(error):
        block()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("table.md", "of before")]


def test_figures_of_rows_that_are_known_stay(tmp_path: Path) -> None:
    file = tmp_path / "new" / "f.json"

    def block() -> None:
        with report(Asked(out=tmp_path / "out", json=file), Console(quiet=True)) as made:
            made.add(EXACT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "f.json"]
    assert figures.read(file).rows == (EXACT,)
