"""Rank 0: feeds the worker what changed, runs its own variant, and keeps both in one phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace

import torch

from hybridiff_compile import links, ops
from hybridiff_compile.config import Lowering
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.ir import Leaf, Phase, RankProgram, Variant
from hybridiff_compile.layout import Kept, Layout, is_kept, writes
from hybridiff_compile.runtime import messages, numerics, transfer
from hybridiff_compile.runtime.fleet import Fleet
from hybridiff_compile.runtime.rank import Rank
from hybridiff_compile.runtime.report import Traffic


@contextmanager
def threads(device: torch.device, count: int) -> Iterator[None]:
    """Within this a device that is a CPU has so many threads; the caller's count is put back."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread(device: torch.device) -> AbstractContextManager[None]:
    """A device on a CPU machine is one thread."""
    return threads(device, 1)


class Driver:
    """Runs steps on both ranks.

    Attributes:
        fleet: the worker.
        late: whether a step may return before the worker's values are there.
    """

    def __init__(self, fleet: Fleet, device: torch.device) -> None:
        self.fleet = fleet
        self.late = links.are_late(fleet.groups)
        self._device = device
        self._sent_before = ops.sent_bytes()
        self._rank = Rank(device)
        self._peer: dict[tuple[int, Phase], RankProgram] = {}
        self._sent: dict[int, dict[str, Kept]] = {}
        self._last_phase: dict[int, Phase] = {}
        self._numerics: numerics.Numerics = {}
        self.agree()

    def agree(self) -> None:
        """Let the worker compute as this process does (TF32, deterministic algorithms, ...)."""
        now = numerics.current()
        if now != self._numerics:
            with suppress(WorkerError):  # one that died idle: the next step starts another
                self.fleet.send(messages.Agree(now))
            self._numerics = now

    def load(
        self,
        key: int,
        owner: int,
        peer: Sequence[RankProgram],
        names: Mapping[int, str],
        how: Lowering,
        begin: Callable[[], Callable[[], list[Variant]]],
    ) -> None:
        """Let both ranks lower their programs at the same time, each its share of the parts first.

        Args:
            key: of the captured signature.
            owner: of the published weights.
            peer: rank 1's programs, one a phase.
            names: of the published weights, by id.
            how: what the worker makes of its programs.
            begin: lowers rank 0's share; what it returns does the rest.

        Raises:
            WorkerError: the worker failed.
        """
        programs = transfer.dump(list(peer), names)
        self._peer.update({(key, p.phase): p for p in peer})
        self._sent[key] = {}
        try:
            self.fleet.send(messages.Load(key, owner, programs, how))
            with torch.no_grad(), one_thread(self._device):
                finish = begin()
                self.fleet.answer(compiles=True)
                self.fleet.send(messages.Finish(key))
                self._rank.load(key, finish())
            self.fleet.answer(compiles=True)
        except BaseException:
            self.fleet.close()  # it may owe an answer that nobody will read
            raise

    def unload(self, keys: Sequence[int], owners: Sequence[int] = ()) -> None:
        """Forget captured signatures on both ranks, and the worker weights of these owners."""
        for key in keys:
            self._rank.unload(key)
            self._sent.pop(key, None)
            self._last_phase.pop(key, None)
            for phase in Phase:
                self._peer.pop((key, phase), None)
        self.fleet.send(messages.Unload(tuple(keys), tuple(owners)))

    def traffic(self) -> Traffic:
        """What both ranks have sent since the start, and their steps since this was last asked."""
        status = self.fleet.ask(messages.Ask())
        self.fleet.watch.let_go()
        own = ops.sent_bytes() - self._sent_before + self.fleet.sent_bytes
        steps = (self._rank.take_steps(), status.steps)
        return Traffic(own + status.sent_bytes, status.rss_mb, steps)

    def told(self) -> str:
        """What leaves of both ranks have met in the last step that was not foreseen; "" if nothing.

        Waits for the worker's host.

        Raises:
            WorkerError: it died or failed.
        """
        own, Leaf.told[:] = tuple(Leaf.told), []
        return next(iter((*own, *self.fleet.ask(messages.Ask(of_leaves=True)).told)), "")

    def release(self) -> None:
        """Give the worker up: end it, or leave it to the other models that share it."""
        if self.fleet.is_open:
            with suppress(WorkerError):  # one that is gone has forgotten already
                self.unload(list(self._sent))
        self.fleet.release()

    def step(
        self, key: int, phase: Phase, step: int, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Run one step on both ranks.

        Args:
            key: the captured signature.
            phase: of this step, one with a program; PIPELINED needs a step of the same key before.
            step: counted from 0.
            values: the program's inputs by name, on the driver's device.

        Returns:
            The prediction of both branches, [2B, ...]; guided, the late one of one, [B, ...].

        Raises:
            WorkerError: the worker died, failed or gave no sign of life during the step.
            PhaseMismatchError: the ranks were out of step.
        """
        try:
            with self.fleet.watch.waiting():
                prediction = self._step(key, phase, step, values)
            self.fleet.rest()
            if self.late:  # whoever reads the prediction waits for the worker
                self.fleet.watch.keep()
            return prediction
        except BaseException as e:
            # The ranks are out of step now, whatever happened: this fleet is not used again.
            lost = self.fleet.lost(e)
            ops.abandon()
            self.fleet.close()
            if lost is not None:
                raise lost from e
            raise

    def _step(
        self, key: int, phase: Phase, step: int, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        peer = self._peer[key, phase]
        fed = self._changed(key, values, peer.contract.inputs)
        begins = self._last_phase.get(key) is not Phase.PIPELINED
        if phase in (Phase.PIPELINED, Phase.DRAINED) and begins:
            # The cut of the last serial step fills the pipeline, so filling costs no compute.
            fed.update(self._rank.kept(key, peer.contract.state))
        self._last_phase[key] = phase
        ops.activate(self.fleet.groups)
        with torch.no_grad(), one_thread(self._device):
            token = self._announce(messages.Step(key, phase, step, tuple(fed)), peer, fed)
            own = self._rank.variant(key, phase).contract.inputs
            mine = {name: values[name] for name in own if name in values}
            returned = self._rank.step(key, phase, step, mine)
            if token is not None:
                ops.wait(token)
        (result,) = self._rank.variant(key, phase).contract.results
        return returned[result]

    def _announce(
        self, message: messages.Step, peer: RankProgram, fed: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """Tell the worker to run a step and send its inputs; return a token to wait for, if any."""
        packed = None
        if fed:
            packed = Layout.of([peer.specs[name] for name in fed]).pack(list(fed.values()))
            if self._device.type == "cpu":
                message = replace(message, packed=packed.numpy().tobytes())
        self.fleet.send(message)
        if packed is None or message.packed is not None:
            return None
        return ops.send(packed, 1, messages.FEED_TAG, messages.FEED_GROUP)

    def _changed(
        self, key: int, values: Mapping[str, torch.Tensor], wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """The wanted values that are not those the worker already has."""
        sent = self._sent[key]
        fed = {n: values[n] for n in wanted if n in values and not is_kept(sent.get(n), values[n])}
        sent.update({n: (v, writes(v)) for n, v in fed.items()})
        return fed
