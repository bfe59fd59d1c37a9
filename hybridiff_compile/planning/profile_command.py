"""`hybridiff profile`: a pipeline measured on this machine, printed and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridiff_compile.bench import asked as asking
from hybridiff_compile.bench import figures, models
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import profile_report
from hybridiff_compile.planning.profile import Profile, profile


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        model: name of an embedded pipeline.
        pipe: folder of a pipeline.
        link: "here", or the name of a stated one.
        steps: of a picture.
        runs: pictures of each kind.
        call: further keywords of the pipeline's call; None ones are left out.
        json: file for the figures; None writes none.
    """

    model: str | None
    pipe: Path | None
    link: str
    steps: int
    runs: int
    call: Mapping[str, Any]
    json: Path | None

    def __post_init__(self) -> None:
        """Raise ConfigError unless one pipeline that exists was asked for."""
        if (self.model is None) == (self.pipe is None):
            raise ConfigError(
                f"model={self.model}, pipe={self.pipe}: give one of --model NAME and --pipe FOLDER."
            )
        if self.model is not None:
            asking.check_names([self.model])
        asking.check_least("images", self.call["num_images_per_prompt"], 1)
        asking.check_least("runs", self.runs, 1)


def run(asked: Asked, console: Console) -> Profile:
    """Measure, print, and write the figures."""
    if asked.json is not None:
        asking.make_folders(asked.json.parent, asked.json)
    call = {key: value for key, value in asked.call.items() if value is not None}
    if asked.model is not None:
        pipe, name = models.load(asked.model), asked.model
        call = {**models.call_settings(asked.model), **call}
    else:
        assert asked.pipe is not None
        pipe, name = models.load_folder(asked.pipe), asked.pipe.name
    pipe.set_progress_bar_config(disable=True)
    found = profile(
        pipe,
        link=asked.link,
        num_inference_steps=asked.steps,
        rounds=asked.runs,
        name=name,
        **call,
    )
    profile_report.show(found, console)
    if asked.json is not None:
        rows, where = profile_report.rows(found), figures.environment(threads_per_rank=1)
        figures.write(asked.json, rows, where)
        console.print(f"wrote {asked.json}", style="dim", soft_wrap=True, highlight=False)
    return found
