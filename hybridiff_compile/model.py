"""The model that `optimize` and `load` return: a pipeline whose denoiser runs on several ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from hybridiff_compile import verification
from hybridiff_compile.arguments import check_flag, with_prompt
from hybridiff_compile.blocks import without_bars
from hybridiff_compile.errors import ClosedError, HybridiffError
from hybridiff_compile.ir import Phase, StepProgram
from hybridiff_compile.runtime.done import last_kind
from hybridiff_compile.runtime.report import Progress, RunReport
from hybridiff_compile.runtime.sampler import num_steps
from hybridiff_compile.session import Session


class Model:
    """An optimized pipeline: call it as the pipeline is called.

    Use it in a `with` block, or `restore()` the pipeline at the end; the worker ends with it, and
    at the latest with this process.
    """

    def __init__(self, pipe: Any, session: Session) -> None:
        self.pipe = pipe
        self._session: Session | None = session
        self._last_report: RunReport | None = None

    def __repr__(self) -> str:
        """What it is of, and how it runs."""
        config = self._session.config if self._session else None
        how = f"{config.mode}, gpus={config.gpus}" if config else "restored"
        return f"<{type(self).__name__} of {type(self.pipe).__name__}: {how}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make pictures: the same as `pipe(...)`."""
        self.session()
        return self.pipe(*args, **kwargs)

    def compile(self, *, progress: bool = True, **call: Any) -> None:
        """Prepare the programs of a call without making a picture.

        Args:
            progress: show on a terminal what is being done.
            call: keywords of the later calls that shape the denoiser's inputs, such as `height`,
                `width`, `num_images_per_prompt`, `guidance_scale`; a prompt is not needed. In
                mode="paper" also `num_inference_steps`, which its schedule is checked against.

        Raises:
            ConfigError: `progress` is no bool, or an argument gives no picture.
            Others: the pipeline's own, of its arguments; and what capturing and compiling raise.
        """
        session = self.session()
        call = with_prompt(self.pipe, call, "")
        with without_bars(self.pipe), session.here.dry(), shown(session, progress):
            self.pipe(**call)
            self.pipe(**call)  # one of a single step has only shown how it guides

    @property
    def report(self) -> RunReport:
        """What the last call did, step by step; a restored model tells of its last one too.

        Raises:
            HybridiffError: there was none, or it failed.
        """
        session = self._session  # another thread may restore it meanwhile
        report = session.report if session else self._last_report
        if report is None:
            raise HybridiffError(
                "there is no report: no call was made yet, or the last one failed; make a picture "
                "first."
            )
        return report

    @property
    def progress(self) -> Progress | None:
        """How far the call under way is; None if there is none.

        Callbacks may ask, and other threads. It does not wait for the device.
        """
        run = self.session().under_way
        if run is None or not run.index:
            return None
        return Progress(run.index - 1, num_steps(self.pipe), last_kind(run.done, run.index))

    def verify(
        self, prompt: Any = None, *, seeds: Sequence[int] = (0,), **call: Any
    ) -> verification.Verification:
        """Compare this model's pictures with those of one device, made here by the same weights.

        Args:
            prompt: as the pipeline takes it; None where `call` has prompt_embeds.
            seeds: one call each, of the model and of one device that runs the two branches one
                after the other.
            call: further keywords of the pipeline's call. `output_type="latent"` compares latents
                only; any other is made "np", for rounding would hide what is compared.

        Returns:
            The figures; printed, they are a short table.

        Raises:
            ConfigError: no seeds, a keyword that this function sets itself, or a call that guides
                at no step.
            UnsupportedPipelineError: the pipeline does not show its latents after each step.
        """
        session = self.session()
        verification.check(self.pipe, prompt, seeds, call)
        if session.config.gpus > 1:  # so that the seconds are those of a later call
            self.compile(prompt=prompt, **call)
        return verification.verify(self.pipe, session, prompt, seeds, call)

    def programs(self) -> list[dict[Phase, StepProgram]]:
        """The programs by phase, of every shape of call so far; each prints as text."""
        return [entry.programs for entry in self.session().entries]

    def graphs(self) -> str:
        """Every rank's program for every phase, as text.

        Raises:
            HybridiffError: there are none; they are made by `compile()` or a first picture.
        """
        programs = self.programs()
        if not programs:
            raise HybridiffError(f"there are no graphs: {self.session().lacks}")
        return "\n\n".join(str(p) for by_phase in programs for p in by_phase.values())

    def restore(self) -> Any:
        """Give the pipeline back as it was, end the worker, and close this model.

        A call that is under way in another thread is waited for. Again, it does nothing.

        Raises:
            ClosedError: something was attached on top since.
        """
        if (session := self._session) is not None:
            with session.at_rest():
                if self._session is not None:  # another thread may have restored it meanwhile
                    session.detach()
                    session.close()
                    self._session, self._last_report = None, session.report
        return self.pipe

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model, by `copy` or `pickle`, is its plain pipeline: ranks are not copied."""
        return _plain, (self.pipe,)

    def close(self) -> None:
        """Restore the pipeline, if that has not been done yet."""
        self.restore()

    def __enter__(self) -> Self:
        self.session()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def session(self) -> Session:
        """What answers the pipeline's denoiser calls.

        Raises:
            ClosedError: the model was restored.
        """
        if self._session is None:
            raise ClosedError("this model was restored; call optimize(pipe) again.")
        return self._session


def _plain(pipe: Any) -> Any:
    return pipe


@contextmanager
def shown(session: Session, wanted: bool) -> Iterator[None]:
    """Show on a terminal what the session is doing, and for how long.

    Raises:
        ConfigError: `wanted` is neither True nor False.
    """
    check_flag("progress", wanted)
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    before = session.ranks.tell
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("preparing", total=None)
        session.ranks.tell = lambda text: bar.update(task, description=text)
        try:
            yield
        finally:
            session.ranks.tell = before
