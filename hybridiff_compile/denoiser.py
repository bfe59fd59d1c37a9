"""One denoiser of a pipeline: how its calls are answered, and what computes the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hybridiff_compile import adapters
from hybridiff_compile.capture import listed
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.capture.pattern import StepCalls
from hybridiff_compile.changes import Changes
from hybridiff_compile.config import Config
from hybridiff_compile.debug import call_name
from hybridiff_compile.entry import (
    Entry,
    capture_entry,
    capture_step_entry,
    not_packaged,
    one_compiler,
)
from hybridiff_compile.errors import CaptureError, PackageError
from hybridiff_compile.here import Here
from hybridiff_compile.ir import Leaf, Phase
from hybridiff_compile.loading import Loading
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.ranks import Ranks
from hybridiff_compile.runtime import memory
from hybridiff_compile.runtime.driver import one_thread
from hybridiff_compile.runtime.fleet import Start
from hybridiff_compile.runtime.route import Route
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.structures import Structures
from hybridiff_compile.way import Asked, OneDevice, Way
from hybridiff_compile.ways import Ways

logger = logging.getLogger(__name__)

_LEAF = "cannot be exported, and was called as it is by each rank, but"


class Denoiser:
    """What is known of a denoiser's calls.

    Attributes:
        route: of them.
        calls: of the run under way.
        ranks: that compute them.
        changes: of the denoiser.
        is_packaged: its programs were made elsewhere, and no others may be.
        has_captured: since that was last set back.
    """

    def __init__(
        self, route: Route, here: Here, config: Config, start: Start, is_packaged: bool
    ) -> None:
        self.route, self.is_packaged = route, is_packaged
        self.calls = StepCalls()
        self.ranks = Ranks(route, start, config.lowering)
        self.changes = Changes(route)
        self._structures = Structures(self._no_ways, self._drop, self._are_of_weights)
        self.ranks.tell, self.ranks.moved = logger.info, self.changes.look_again
        self.has_captured = False
        self._here, self._config, self._captures = here, config, 0
        self._loading = Loading(route, self.ranks, config.lowering.backend != "eager")
        self._is_doubled: dict[Signature, bool] = {}
        #: By the first call of a step: whether each step so far was that call alone; and the last
        #: one of this run.
        self._is_single: dict[Signature, bool] = {}
        self._is_single_now: dict[Signature, bool] = {}

    @property
    def ways(self) -> Ways:
        """How its calls are answered, as it is now."""
        return self._structures.ways

    def begin(self) -> StepCalls:
        """A run begins; returns its calls."""
        self.calls = StepCalls()
        self._is_single_now.clear()
        self.ways.begin()
        if self.ranks.driver is not None:
            self.ranks.driver.agree()
        return self.calls

    def rest(self) -> None:
        """A run is over, well or not; none of its tensors is held until the next one."""
        self.calls = StepCalls()

    def follow(self, denoiser: nn.Module) -> None:
        """Serve the one that the pipeline has now."""
        self.ranks.device = device_of(denoiser)
        if denoiser is not self.route.denoiser:
            self._structures.clear()
            self.ranks.forget_weights()
            self.changes.known, self._loading.refused = None, ""
            self.route.follow(denoiser)

    def close(self) -> None:
        """Leave the denoiser as it was, and end its worker."""
        self.route.leave()
        self.ranks.close()

    def is_whole(self, call: DenoiserCall) -> bool:
        """Whether a step is known to be one call like this, so that ranks may share its rows.

        The run's last step that began so tells. At a run's first step, a picture of equal parts is
        one of all branches, unless such a call was one of several before; any other is known from
        earlier runs. Waits for the device, once.
        """
        signature = call.signature()
        if self.calls.have_moved and call.parts == 1:
            return False
        if signature in self._is_single_now:
            return self._is_single_now[signature]
        if signature not in self._is_doubled:
            self._is_doubled[signature] = call.is_doubled() or listed.are_repeated(call)
        return self._is_single.get(signature, self._is_doubled[signature])

    def learn(self, step: Sequence[DenoiserCall]) -> None:
        """Take all calls of a step that is over, if there was one."""
        for first in step[:1]:
            signature, single = first.signature(), len(step) == 1
            if first.parts > 1 or self.calls.are_lone:
                self._is_single_now[signature] = single
                self._is_single[signature] = single and self._is_single.get(signature, True)

    def way(
        self, call: DenoiserCall, batched: Callable[[], Any], *, is_whole: bool
    ) -> tuple[Way, Any]:
        """How a call is answered, and its answer if finding that out gave one; see `Ways.of`."""
        strict, asked = self._here.is_dry or self._config.mode == "asyncdiff", self._asked
        if listed.has_several(call):
            return self.ways.of_list(asked, call, batched, strict=strict)
        if call.parts == 1 and is_whole and self._config.mode == "hybrid":
            asked = Asked.WHOLE  # nothing to split; steps can be skipped
        return self.ways.of(asked, call, batched, strict=strict)

    def way_of_step(self, step: Branches) -> Way:
        """How all calls of a step are answered, at the first of them."""
        return self.ways.of_step(self._asked, step, strict=self._here.is_dry)

    @property
    def _asked(self) -> Asked:
        config = self._config
        if self._here.is_apart or (config.gpus == 1 and config.mode == "exact"):
            return Asked.HALVES
        return Asked.WHOLE if config.gpus == 1 else Asked.RANKS

    def compute(
        self, run: Run, step: Branches, way: Entry | OneDevice, forward: Callable[..., Any]
    ) -> list[Any]:
        """The answers to all calls of a step, computed or extrapolated."""
        first, *others = step.calls
        inputs, run.branches = first.tensors(), len(step.calls) if others else first.parts
        if isinstance(way, Entry):
            self._decline(run, way)
            prediction = run.step(way.key, self._together(run, step, way), inputs)
            run.last_key, run.ranks = way.key, self._config.gpus
            form, rows = way.form, list(way.calls) or [len(prediction)]
        else:

            def here(phase: Phase) -> torch.Tensor:
                with one_thread(self.ranks.device):
                    prediction, *run.spec = way.compute(self.route.denoiser, step, forward)
                return prediction

            key = hash((id(self), step.signature()))
            prediction = run.step(key, here, inputs)
            run.last_key, (form, rows) = key, run.spec
        if run.settings is not None:  # the run looks at it later; a pipeline may write into it
            prediction = prediction.clone()
        return [form.unpack(part) for part in prediction.split(rows)]

    def _decline(self, run: Run, entry: Entry) -> None:
        """Some modes pipeline the two halves of one batch, and have no programs for others."""
        mode = self._config.mode
        if mode in ("paper", "guided") and len(entry.programs) == 1 and not run.declined:
            run.decline(
                f"mode={mode!r} pipelines a batch of two branches that are computed alike, and the "
                f"{run.branches} branches here are "
                + ("calls of their own" if entry.calls else "no such batch")
                + (f" ({entry.not_exported})" if entry.not_exported else "")
            )

    def _together(self, run: Run, step: Branches, entry: Entry) -> Callable[[Phase], torch.Tensor]:
        """All ranks: each its part of a phase."""
        inputs = entry.parts(step).inputs()

        def compute(phase: Phase) -> torch.Tensor:
            driver = self.ranks.connect(self.ways.entries.values())
            return driver.step(entry.key, phase, len(run.done), inputs)

        return compute

    def unforeseen(self, step: Branches, entry: Entry) -> str:
        """Why what a leaf made of a step may not be used; "" if it may. It is not asked again.

        Raises:
            CaptureError: the step cannot be computed as the pipeline asks either.
        """
        if not entry.not_exported or self.ranks.driver is None:
            return ""
        told = self.ranks.driver.told()
        if told:
            self._loading.refused = (
                f"{type(self.route.denoiser).__name__} {_LEAF} did not bear it: {told}"
            )
            self.ranks.forget([entry])
            self.ways.refuse(step, self._loading.refused)
        if told.endswith(Leaf.LOST):
            raise CaptureError(self._loading.refused)
        return told and self._loading.refused

    @contextmanager
    def _trying(self) -> Iterator[nn.Module]:
        """Within this, the denoiser has its own forward and may be run and traced."""
        with one_compiler, one_thread(self.ranks.device), self.route.bypassed():
            yield self.route.denoiser

    def _capture(self, step: Branches, answers: Sequence[Any]) -> Entry:
        (call, *others), config = step.calls, self._config
        if self.is_packaged:
            raise PackageError(not_packaged(call, list(self.ways.entries)))
        denoiser = type(self.route.denoiser).__name__
        self.ranks.tell(f"capturing {denoiser}")
        self._captures += 1
        name = call_name(self._captures, next(iter(call.tensors().values())))
        dump = config.dump and config.dump / name
        try:
            with memory.lightly_collected():
                with self._trying() as module:
                    entry = (
                        capture_step_entry(module, step, answers, config, dump)
                        if others
                        else capture_entry(module, call, answers[0], config, dump)
                    )
                self._loading.load(entry, step, answers, self.ways.entries.values())
        finally:
            self.changes.look_again()  # an export leaves copies of what modules hold
        self.has_captured = True
        logger.info("captured %s for %d ranks", denoiser, config.gpus)
        return entry

    def meet(self) -> None:
        """Serve the denoiser as it is now, at the begin of a run.

        Where weights alone have other data, the ranks get that. For another structure (an adapter,
        a processor) there are other programs.

        Raises:
            PackageError: its programs were made elsewhere, of the denoiser as it was.
        """
        before = self.changes.known
        if before is not None and before.holds():
            return
        now = self.changes.look_again()
        if before is None:
            return
        if self.is_packaged:
            raise PackageError(
                "the denoiser has changed since its package was loaded (weights, a LoRA, a "
                "device); call restore(), then load() it again, or export the changed pipeline."
            )
        self._structures.turn(before, now)
        self.ways.begin()
        self._loading.refused = ""
        adapters.tensors(self.route.denoiser)  # hold the numbers of now
        self.ranks.refresh(self.ways.entries.values())

    def _no_ways(self) -> Ways:
        return Ways(self.route, self.changes, self._trying, self._capture)

    def _drop(self, ways: Ways) -> None:
        self.ranks.forget(ways.entries.values())

    def _are_of_weights(self, ways: Ways) -> bool:
        """An engine holds the weights; a leaf has seen them, and takes a change for its own."""
        is_engine = self._config.lowering.backend == "tensorrt"
        return is_engine or any(entry.not_exported for entry in ways.entries.values())
