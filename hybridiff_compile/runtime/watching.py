"""Around a call of a pipeline: what its scheduler is given, and what keeps a mode from its best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from hybridiff_compile.config import Controlled
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime import sampler
from hybridiff_compile.runtime.combination import WORST
from hybridiff_compile.runtime.run import Run


@contextmanager
def watched(run: Run, mode: str, pipe: Any, say: Callable[[str], None]) -> Iterator[None]:
    """Within this, a run is told of the scheduler's steps; at the end the user is told of the run.

    A late or an extrapolated prediction knows nothing of noise that a sampler has added since.
    Guided pipelining is then declined; hybrid sees the error by itself.

    Args:
        run: of the call that is under way.
        mode: as in `optimize`.
        pipe: whose call it is.
        say: tells the user something, once.
    """
    run.mode, run.say = mode, say
    scheduler = getattr(pipe, "scheduler", None)
    is_first, is_blind = True, mode in ("paper", "guided", "forecast", "asyncdiff")

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal is_first
        if is_first and is_blind and sampler.draws_noise(scheduler, args, kwargs):
            _tell_of_noise(run, type(scheduler).__name__)
        is_first = False
        run.note_scheduled(*sampler.inputs(scheduler, args, kwargs))

    is_watched = callable(getattr(scheduler, "step", None))
    with sampler.watched(scheduler, before) if is_watched else nullcontext():
        yield
    if isinstance(run.settings, Controlled) and not any(
        done.phase is Phase.FORECAST for done in run.done
    ):
        say(
            f"hybrid extrapolated none of this run's {len(run.done)} steps; "
            "model.report.steps has the reason of each"
        )
    if run.forecast is not None and run.weighing.are_unknown():
        say(
            "how this pipeline weighs the rows of its predictions cannot be read off what its "
            f"scheduler is given; errors are taken for those of guidance {WORST:g}"
        )


def _tell_of_noise(run: Run, scheduler: str) -> None:
    noise = f"{scheduler} draws noise of its own"
    if run.mode == "guided":
        run.decline(noise)
    else:
        run.say(
            f"{noise}, of which a step that is pipelined or extrapolated knows nothing: "
            "model.verify(prompt) tells what that does to a picture"
        )
