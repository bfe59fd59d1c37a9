"""`hybridiff plan`: plans of some models, printed and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridiff_compile.bench import asked as asking
from hybridiff_compile.bench import figures, models
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import architectures, report
from hybridiff_compile.planning.planner import plan
from hybridiff_compile.planning.predict import Plan

#: Planned for where nothing was asked for: the paper's two.
DEFAULT = ("sdxl", "sd3-medium")


@dataclass(frozen=True)
class Asked:
    """What to plan for.

    Attributes:
        models: names of architectures or embedded pipelines.
        pipe: folder of a pipeline.
        config: file of a denoiser's config.
        device, link: names; "here" measures this machine and its link.
        settings: further keywords of `plan`.
        json: file for the figures; None writes none.
    """

    models: tuple[str, ...]
    pipe: Path | None
    config: Path | None
    device: str
    link: str
    settings: Mapping[str, Any]
    json: Path | None

    def __post_init__(self) -> None:
        """Raise ConfigError unless one kind of subject was asked for."""
        if sum(map(bool, (self.models, self.pipe, self.config))) > 1:
            raise ConfigError(
                f"model={list(self.models)}, pipe={self.pipe}, config={self.config}: give one kind "
                "of --model NAME, --pipe FOLDER and --config FILE."
            )
        for name in self.models:  # all of them before the work of the first
            if name not in (*architectures.NAMES, *models.NAMES):
                known = ", ".join((*architectures.NAMES, *models.NAMES))
                raise ConfigError(f"model={name!r} is not known; choose one of {known}.")


def run(asked: Asked, console: Console) -> list[Plan]:
    """Plan, print, and write the figures."""
    if asked.json is not None:
        asking.make_folders(asked.json.parent, asked.json)
    made = []
    for subject in _subjects(asked):
        made.append(_planned(subject, asked))
        report.show(made[-1], console)
    if asked.json is not None:
        rows = [row for each in made for row in report.rows(each)]
        figures.write(asked.json, rows, figures.environment(threads_per_rank=1))
        console.print(f"wrote {asked.json}", style="dim", soft_wrap=True, highlight=False)
    return made


def _subjects(asked: Asked) -> Iterator[Any]:
    if asked.pipe is not None:
        yield models.load_folder(asked.pipe)
    elif asked.config is not None:
        yield asked.config
    else:
        yield from asked.models or DEFAULT


def _planned(subject: Any, asked: Asked) -> Plan:
    return plan(subject, device=asked.device, link=asked.link, **asked.settings)
