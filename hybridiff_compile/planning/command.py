"""`hybridiff plan` and `hybridiff profile`: told beforehand, printed, and written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridiff_compile.arguments import check_choice
from hybridiff_compile.bench import command, figures, models
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import architectures, devices, profile_report, report
from hybridiff_compile.planning.planner import plan
from hybridiff_compile.planning.profile import check, make, profile
from hybridiff_compile.planning.subject import first_call

#: Planned for where nothing was asked for: the paper's two.
DEFAULT = ("sdxl", "sd3-medium")
#: Seconds of a plan on two CPU cores, most of it for the export of the graph.
_PLAN = 15
#: Steps of the picture that is made to say how long the others take.
_SHORT = 4


def plan_models(
    names: Sequence[str],
    pipe: Path | None,
    config: Path | None,
    settings: Mapping[str, Any],
    json: Path | None,
    console: Console,
) -> None:
    """Plan, print each plan as it is known, and write the figures.

    Args:
        names: of architectures or embedded pipelines.
        pipe: folder of a pipeline.
        config: file of a denoiser's config.
        settings: keywords of `plan`.
        json: file for the figures; None writes none.
        console: to print on.

    Raises:
        ConfigError: more than one kind of subject was asked for, or something is not known.
    """
    if sum(map(bool, (names, pipe, config))) > 1:
        raise ConfigError(
            f"model={list(names)}, pipe={pipe}, config={config}: give one kind of --model NAME, "
            "--pipe FOLDER and --config FILE."
        )
    for name in names:  # all of them before the work of the first
        check_choice("model", name, (*architectures.NAMES, *models.NAMES))
    subjects: list[Any] = [config] if config else list(names or DEFAULT)
    if pipe is not None:
        subjects = [models.load_folder(pipe)]
    is_here = settings.get("device") == devices.HERE
    run = "each rank's programs run alone" if is_here else "nothing is run"
    count, telling = len(subjects), list[command.Telling]()
    with _written(json, console) as rows, ExitStack() as stack:

        def begins(what: str) -> None:
            if not telling:  # what was asked for has been checked
                traced = f"{command.counted(count, 'model')} traced and cut, {run}"
                command.announce(console, _PLAN * count, traced)
                telling.append(stack.enter_context(command.Telling(console, (2 + is_here) * count)))
            telling[0](what)

        for subject in subjects:
            made = plan(subject, tell=begins, **settings)
            report.show(made, console)
            rows += made.rows


def profile_pipeline(
    model: str | None,
    pipe: Path | None,
    settings: Mapping[str, Any],
    json: Path | None,
    console: Console,
    thinned: str = "",
) -> None:
    """Measure a pipeline on this machine, print, and write the figures.

    Args:
        model: name of an embedded pipeline.
        pipe: folder of a pipeline.
        settings: keywords of `profile`; those that are None are left out.
        json: file for the figures; None writes none.
        console: to print on.
        thinned: what is left out to be quick, in words.

    Raises:
        ConfigError: not one pipeline was asked for, or something cannot be measured.
    """
    if (model is None) == (pipe is None):
        raise ConfigError(
            f"model={model}, pipe={pipe}: give one of --model NAME and --pipe FOLDER."
        )
    models.check_names([model] if model else [])
    command.check_least("images", settings["num_images_per_prompt"], 1)
    command.check_least("runs", settings["rounds"], 1)
    check(settings["link"], settings["num_inference_steps"], settings["rounds"])
    with _written(json, console) as rows:
        loaded, call = models.opened(model or str(pipe))
        call |= {key: value for key, value in settings.items() if value is not None}
        steps, rounds = call["num_inference_steps"], call["rounds"]
        asked = {key: value for key, value in call.items() if key not in ("link", "rounds")}
        first_call(loaded, asked)  # what the pipeline refuses is told before the work
        begin = time.perf_counter()
        make(loaded, {**asked, "num_inference_steps": _SHORT})
        step = (time.perf_counter() - begin) / _SHORT
        # Pictures of one device and of two ranks, each rank alone beside them, and the starts.
        made = command.counted(rounds, "picture")
        what = f"{made} of {steps} steps on one device and on two ranks, and each rank alone"
        command.announce(console, 30 + 2.5 * (1 + rounds) * steps * step, what)
        with command.Telling(console, 5 + 2 * rounds) as tell:
            found = profile(loaded, name=model or (pipe and pipe.name), tell=tell, **call)
        profile_report.show(found, console, thinned)
        rows += profile_report.rows(found)


@contextmanager
def _written(json: Path | None, console: Console) -> Iterator[list[Row]]:
    """Rows that are written once all of them are there; that they can be is known before."""
    rows: list[Row] = []
    with command.folders(json.parent, json) if json else nullcontext():
        yield rows
        if json:
            figures.write(json, rows, figures.environment(threads_per_rank=1))
            console.print(f"wrote {json}", style="dim", soft_wrap=True, highlight=False)
