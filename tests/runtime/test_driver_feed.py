"""What the driver sends to a worker: only what changed. The worker is a thread here."""

import gc
import weakref
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hybridiff_compile import links as joins
from hybridiff_compile import lower, ops
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase, RankProgram
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime import messages, weights
from hybridiff_compile.runtime.driver import Driver, one_thread
from hybridiff_compile.runtime.fleet import Fleet
from hybridiff_compile.runtime.pulse import Watch
from hybridiff_compile.worker import Worker
from tests import toy
from tests.loopback import Pair, pair

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
KEY = 3


class Recorder:
    """A fleet that remembers what it was told to send."""

    def __init__(self, connection: Connection, groups: joins.Groups) -> None:
        self.groups, self.sent_bytes, self.messages = groups, 0, []
        self._connection = connection
        self.watch = Watch(Pipe()[0], None, 60, connection.close)

    def send(self, message: messages.Message) -> None:
        self.messages.append(message)
        messages.send(self._connection, message)

    def ask(self, message: messages.Message) -> messages.Message:
        self.send(message)
        return self.answer()

    def answer(self, *, compiles: bool = False) -> messages.Message:
        return messages.receive(self._connection)

    def rest(self) -> None:
        pass

    def lost(self, error: BaseException) -> None:
        pass

    def close(self) -> None:
        self.watch.stop()
        self._connection.close()

    @property
    def fed(self) -> list[tuple[str, ...]]:
        return [m.fed for m in self.messages if isinstance(m, messages.Step)]


class Served:
    """A driver in one thread, its worker in the other."""

    def __init__(self, ranks: Pair, file: Path, device: torch.device = CPU) -> None:
        ours, theirs = Pipe()
        self._ranks = ranks
        self.fleet = Recorder(cast(Connection, ours), ranks.groups[0])
        self.driver = Driver(cast(Fleet, self.fleet), device)
        with torch.no_grad():
            self.working = ranks.start(
                1, Worker(cast(Connection, theirs), CPU, ranks.groups[1]).serve
            )
        captured = toy.captured()
        held = weights.weights_of(captured.program.graphs[0])
        manifest, _ = weights.publish(held, file)
        self.fleet.ask(messages.Weights(0, file, manifest))
        names = {id(tensor): name for name, tensor in held.items()}
        programs = build_programs(captured.program, "paper").values()
        own, peer = ([RankProgram.of(p, rank) for p in programs] for rank in (0, 1))
        how = Lowering()
        self.driver.load(KEY, 0, peer, names, how, lambda: lower.begin(own, how, CPU))

    def step(self, phase: Phase, step: int, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._ranks.start(0, self.driver.step, KEY, phase, step, values).result(60)


# Inputs travel in the message, or, as between two ranks on one card, on a link that is staged.
@pytest.fixture(params=[CPU, CUDA], ids=["message", "link"])
def served(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    monkeypatch.setattr(joins, "_card", lambda device: "the only card")
    with pair({}, request.param) as ranks:
        served = Served(ranks, tmp_path / "weights", request.param)
        yield served
        served.fleet.close()
        served.working.result(60)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return Branches.of_batch(toy.call_of(), toy.captured().rows).inputs()


RANK_1 = ("timestep", "sample_c", "encoder_hidden_states_c", "added_text_embeds_c")


def test_first_step_feeds_the_inputs_of_rank_1_and_no_other(served, inputs):
    out = served.step(Phase.SERIAL, 0, inputs)
    assert served.fleet.fed == [RANK_1]
    call, denoiser = toy.call_of(), toy.seeded(toy.Toy)
    assert torch.equal(out, torch.cat([toy.run(denoiser, call.branch(b)) for b in range(2)]))


def test_inputs_that_did_not_change_are_not_sent_again(served, inputs):
    first = served.step(Phase.SERIAL, 0, inputs)
    second = served.step(Phase.SERIAL, 1, {**inputs, "timestep": torch.tensor(9.0)})
    third = served.step(Phase.SERIAL, 2, inputs)
    assert served.fleet.fed == [RANK_1, ("timestep",), ("timestep",)]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_new_view_of_the_same_memory_counts_as_unchanged(served, inputs):
    served.step(Phase.SERIAL, 0, inputs)
    served.step(Phase.SERIAL, 1, {n: t.view(t.shape) for n, t in inputs.items()})
    assert served.fleet.fed[1] == ()


def test_tensor_written_in_place_is_sent_again(served, inputs):
    served.step(Phase.SERIAL, 0, inputs)
    inputs["sample_c"].mul_(0.5)
    out = served.step(Phase.SERIAL, 1, inputs)
    assert served.fleet.fed[1] == ("sample_c",)
    assert torch.equal(out, _fresh(served, {n: t.clone() for n, t in inputs.items()}))


def test_equal_values_elsewhere_in_memory_are_sent(served, inputs):
    served.step(Phase.SERIAL, 0, inputs)
    served.step(Phase.SERIAL, 1, {**inputs, "sample_c": inputs["sample_c"].clone()})
    assert served.fleet.fed[1] == ("sample_c",)


def test_inference_tensors_are_always_sent(served, inputs):
    with torch.inference_mode():
        value = inputs["sample_c"].clone()
    for step in range(2):
        served.step(Phase.SERIAL, step, {**inputs, "sample_c": value})
    assert ["sample_c" in fed for fed in served.fleet.fed] == [True, True]


def test_first_pipelined_step_feeds_the_cut_of_the_last_serial_one(served, inputs):
    serial, pipelined, drained = Phase.SERIAL, Phase.PIPELINED, Phase.DRAINED
    phases = (serial, pipelined, pipelined, drained, serial, pipelined, serial, drained)
    for step, phase in enumerate(phases):
        value = {**inputs, "sample_c": torch.full((1, 4, 8, 8), step / 4)}
        served.step(phase, step, value)
    # A pipelined rank 1 reads no sample; it needs the newest one again when serial.
    again = [("sample_c",), ("cut",)]
    assert served.fleet.fed == [RANK_1, ("cut",), (), (), *again, *again]


def test_picture_that_changed_while_pipelined_reaches_rank_1_when_serial_again(served, inputs):
    served.step(Phase.SERIAL, 0, inputs)
    served.step(Phase.PIPELINED, 1, {**inputs, "sample_c": inputs["sample_c"] * 2})
    third = {**inputs, "sample_c": inputs["sample_c"] * 3}
    assert torch.equal(served.step(Phase.SERIAL, 2, third), _fresh(served, third))


def _fresh(served: Served, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """The two branches of these values, by the module itself."""
    denoiser = toy.captured().program.graphs[0].get_submodule("denoiser")
    names = ("sample", "timestep", "encoder_hidden_states", "added_text_embeds")
    with torch.no_grad():
        halves = [[values.get(n, values.get(f"{n}_{b}")) for n in names] for b in "uc"]
        return torch.cat([cast(Any, denoiser)(*half) for half in halves])


def test_thread_count_is_put_back(served, inputs):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread(CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), one_thread(CPU):
            raise KeyError
        assert torch.get_num_threads() == 3
        with one_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_failed_step_gives_the_fleet_up(served, inputs):
    del inputs["sample_c"], served.driver._sent[KEY]
    with pytest.raises(KeyError):
        served.step(Phase.SERIAL, 0, inputs)
    with pytest.raises(OSError, match="closed"):
        served.fleet.send(messages.Ask())


def test_unloaded_signature_is_forgotten_on_both_ranks(served, inputs):
    served.step(Phase.SERIAL, 0, inputs)
    programs = [weakref.ref(p) for p in served.driver._peer.values()]
    served.driver.unload([KEY])
    gc.collect()
    assert [p() for p in programs] == [None] * 3
    assert served.fleet.messages[-1] == messages.Unload((KEY,))
    with pytest.raises(KeyError):
        served.step(Phase.SERIAL, 1, inputs)


def test_worker_that_fails_lets_go_of_its_transfers_and_of_its_peer() -> None:
    ours, theirs = Pipe()
    with pair({}) as ranks:
        worker: Any = Worker(cast(Connection, theirs), CPU, ranks.groups[1])

        def fail(*_: object) -> None:
            ops.recv([2], torch.float32, CPU, 0, 1, "data0to1")
            raise KeyError("a defect")

        worker._rank.step = fail
        messages.send(cast(Connection, ours), messages.Step(KEY, Phase.SERIAL, 0, ()))
        working = ranks.start(1, worker.serve)
        waiting = ranks.start(
            0, lambda: ops.wait(ops.recv([2], torch.float32, CPU, 1, 2, "data1to0"))
        )
        with pytest.raises(KeyError, match="a defect"):
            working.result(20)
        assert ranks.start(1, ops.unwaited).result(20) == 0
        with pytest.raises(RuntimeError):
            waiting.result(20)
