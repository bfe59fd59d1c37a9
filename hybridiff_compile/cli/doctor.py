"""The command that looks at this machine: doctor."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text

from hybridiff_compile.cli.app import app, quiet


@app.command()
def doctor() -> None:
    """Tell what this machine has and what works on it, by trying; exit code 1 without two ranks."""
    quiet()
    from hybridiff_compile.cli import findings, trials

    console = Console(highlight=False)
    ranks = []
    for title, look in (
        ("versions", findings.versions),
        ("devices", findings.devices),
        ("links", trials.links),
        ("two ranks", trials.two_ranks),
        ("backends", trials.backends),
        ("extras", findings.extras),
    ):
        console.print(Text(title, style="bold"))
        found = look()
        for what, says, is_good in found:
            mark = Text("  + ", "green") if is_good else Text("  - ", "yellow")
            console.print(mark + Text(f"{what}: {says}"), soft_wrap=True)
        if look is trials.two_ranks:
            ranks = found
    if not any(finding.is_good for finding in ranks):
        console.print(Text("two ranks cannot work here", "red"))
        raise typer.Exit(1)
