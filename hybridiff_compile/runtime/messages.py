"""What the driver and a worker say to each other on the control pipe; tensors travel on links."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hybridiff_compile import ops
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.numerics import Numerics
from hybridiff_compile.runtime.report import RankStep
from hybridiff_compile.runtime.weights import Manifest

#: The link that carries fed inputs has a tag above those of the programs' own links.
FEED_TAG = 1 << 15
FEED_GROUP = ops.group_name(0, 1)


@dataclass(frozen=True, slots=True)
class Weights:
    """Map these weights, in place of any earlier ones of their names; loaded programs have them.

    Attributes:
        owner: of the names.
        gone: names of weights that are needed no more.
    """

    owner: int
    path: Path
    manifest: Manifest
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agree:
    """Compute as the driver does from now on; there is no answer."""

    numerics: Numerics


@dataclass(frozen=True, slots=True)
class Warm:
    """Get the compiler ready while the driver captures; there is no answer."""

    how: Lowering


@dataclass(frozen=True, slots=True)
class Load:
    """Take the programs of a captured signature, and compile this rank's share of their parts.

    `programs` is `transfer.dump` of a list of RankProgram, whose weights are those of `owner`.
    """

    key: int
    owner: int
    programs: bytes
    how: Lowering


@dataclass(frozen=True, slots=True)
class Finish:
    """Every rank has compiled its share: take the others' parts, and be ready for steps."""

    key: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Forget captured signatures, and all weights of some owners."""

    keys: tuple[int, ...]
    owners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """Run a step with new inputs, packed in the order of `fed`.

    On the CPU they travel in the message: a link would need a handshake between gloo's threads,
    which then wait for a core behind the computing ones (milliseconds a step on a busy machine).
    On a GPU `packed` is None and they follow on the feed's link.
    """

    key: int
    phase: Phase
    step: int
    fed: tuple[str, ...]
    packed: bytes | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer with a Status that has the last steps, or what leaves have told."""

    of_leaves: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A worker's answer: it is there, what it has used since it started, and its last steps.

    Attributes:
        steps: those that it ran since it was last asked; () in an answer to another message.
        told: what its leaves have met that was not foreseen, since it was last asked.
    """

    sent_bytes: int
    rss_mb: float
    unwaited: int
    compilations: int = 0
    steps: tuple[RankStep, ...] = ()
    told: tuple[str, ...] = ()


Message = Weights | Agree | Warm | Load | Finish | Unload | Step | Ask | Status


def doing(message: Message) -> str | None:
    """What a worker does that was sent this message, after "it failed"; None if that is little."""
    match message:
        case Step(_, phase, step):
            return f"in phase {phase.name.lower()}, step {step}"
        case Load() | Finish():
            return "while it made its programs ready"
        case Weights():
            return "while it took over the weights"
    return None


def send(connection: Connection, message: Message) -> int:
    """Send a message; return its size in bytes."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    connection.send_bytes(data)
    return len(data)


def receive(connection: Connection) -> Message:
    """Wait for a message.

    Raises:
        EOFError: the other side is gone.
    """
    return pickle.loads(connection.recv_bytes())
