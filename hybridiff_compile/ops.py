"""The communication ops of a step program; no other file names one.

torch's own functional isend and irecv leave unwaited work behind, so send and recv are ours: the
work is registered on the tensor that the op returns, and one `wait` completes it. Each direction
between two ranks has a group of its own, because NCCL matches point-to-point calls by their order.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, library
from torch._C._distributed_c10d import (
    _get_work_registry_size,  # pyright: ignore[reportAttributeAccessIssue]
    _register_work,
)

from hybridiff_compile.errors import PhaseMismatchError

# Long enough for a slow step, short enough that a dead network is noticed; a rank that dies closes
# its sockets, which ends a wait at once.
STEP_TIMEOUT = timedelta(minutes=10)

# A peer that dies while the ranks connect is noticed by this alone.
CONNECT_TIMEOUT = timedelta(seconds=20)

# No link has this tag, so nothing ever arrives with it.
_NO_TAG = 1 << 30

#: Process groups of one set of ranks, by name; see `group_name`.
Groups = dict[str, Any]

_STAMP = "stamp"
_active = threading.local()  # models of several threads each talk to their own worker
_sent_bytes = 0


def group_name(src: int, dst: int, *, stamp: bool = False) -> str:
    """Name of the group that carries data, or phase stamps, from `src` to `dst`."""
    return f"{_STAMP if stamp else 'data'}{src}to{dst}"


def connect(
    store: dist.Store, rank: int, size: int, device: torch.device, loopback: bool
) -> Groups:
    """Join the groups of every direction; a collective call of all `size` ranks.

    Args:
        store: rendezvous that all ranks share.
        rank, size: this rank and the number of ranks.
        device: where this rank computes; gloo carries CPU tensors, NCCL carries CUDA tensors. Ranks
            on one card, which is for checks, send theirs through host memory.
        loopback: bind gloo to the loopback interface (all ranks on one host).
    """
    gloo = _gloo(dist.PrefixStore("gloo", store), rank, size, loopback)
    cards = _cards(store, rank, size, device) if device.type == "cuda" else []
    groups: Groups = {}
    for src, dst in itertools.permutations(range(size), 2):
        groups[group_name(src, dst, stamp=True)] = gloo
        name = group_name(src, dst)
        if len(set(cards)) < len(cards):  # known to all ranks alike, so they agree on the links
            groups[name] = _Staged(gloo)
        elif cards:
            nccl = dist.PrefixStore(name, store)
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = STEP_TIMEOUT
            groups[name] = dist.ProcessGroupNCCL(nccl, rank, size, options)
        else:
            groups[name] = gloo
    return groups


def activate(groups: Groups) -> None:
    """Begin a step: the ops that run from now on in this thread use these groups."""
    _active.groups = groups
    _active.started = []
    _active.last_sent = None


def last_sent() -> float | None:
    """When the last value of this thread's step left, on the monotonic clock; None if none did."""
    return getattr(_active, "last_sent", None)


def abandon() -> None:
    """After a failed step: break this thread's links, and let go of what was started on them.

    A transfer is registered until it is waited for; torch warns of those that are left at the end
    of the process. Broken links make every wait end at once, and the peer's too.
    """
    links = {id(g): g for g in getattr(_active, "groups", {}).values()}
    for link in links.values():
        if isinstance(link, dist.ProcessGroupGloo):
            _break(link)
        else:
            link.abort()
    for tensor in getattr(_active, "started", []):
        with suppress(RuntimeError):
            wait(tensor)
    _active.started = []


def _break(gloo: Any) -> None:
    """Close a group's connections: gloo does so when a wait times out (its `abort` does not)."""
    other = (gloo.rank() + 1) % gloo.size()
    with suppress(RuntimeError):
        gloo.recv([torch.empty(1)], other, _NO_TAG).wait(timedelta(milliseconds=1))


def _gloo(store: dist.Store, rank: int, size: int, loopback: bool) -> Any:
    options = dist.ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    options._timeout = CONNECT_TIMEOUT
    gloo = dist.ProcessGroupGloo
    here = gloo.create_device(hostname="127.0.0.1") if loopback else gloo.create_default_device()
    options._devices = [here]
    options._threads = 1
    group = gloo(store, rank, size, options)
    group._set_default_timeout(STEP_TIMEOUT)
    return group


def _cards(store: dist.Store, rank: int, size: int, device: torch.device) -> list[bytes]:
    """Which card each rank computes on, in the order of the ranks; a collective call."""
    store.set(f"card{rank}", _card(device))
    return [store.get(f"card{r}") for r in range(size)]


def _card(device: torch.device) -> str:
    # Not the index: a rank may see other cards than the driver, or the same in another order.
    return str(torch.cuda.get_device_properties(device).uuid)


class _Staged:
    """A link between two ranks on one card: gloo carries a copy in host memory.

    NCCL refuses two ranks on one card, and gloo has no point-to-point calls for CUDA tensors.
    """

    def __init__(self, gloo: Any) -> None:
        self._gloo = gloo

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int) -> dist.Work:
        return self._gloo.send([t.cpu() for t in tensors], dst, tag)

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int) -> dist.Work:
        staged = [torch.empty(t.shape, dtype=t.dtype) for t in tensors]
        return _Arrival(self._gloo.recv(staged, src, tag), staged, tensors)

    def abort(self) -> None:
        _break(self._gloo)


class _Arrival(dist.Work):
    """A receive into host memory; to wait for it also copies what arrived to the card."""

    def __init__(self, work: dist.Work, staged: list[torch.Tensor], out: list[torch.Tensor]):
        super().__init__()
        self._work, self._staged, self._out = work, staged, out

    def wait(self, timeout: timedelta | None = None) -> bool:  # always the group's own timeout
        self._work.wait()
        for out, staged in zip(self._out, self._staged, strict=True):
            out.copy_(staged)
        return True


def sent_bytes() -> int:
    """Bytes of the tensors that this process has sent since it started."""
    return _sent_bytes


def unwaited() -> int:
    """Number of sends and receives that nothing has waited for."""
    return _get_work_registry_size()


def _group(name: str) -> Any:
    groups: Groups = getattr(_active, "groups", {})
    if name not in groups:
        raise RuntimeError(f"link group {name!r} is not connected; it has {sorted(groups)}")
    return groups[name]


def send(x: torch.Tensor, dst: int, tag: int, group: str) -> torch.Tensor:
    """Start to send `x`; wait for the returned token before `x` is written again."""
    global _sent_bytes
    if not group.startswith(_STAMP):
        _active.last_sent = time.monotonic()
    token = torch.empty(0, dtype=torch.uint8)
    _register_work(token, _group(group).send([x.contiguous()], dst, tag))
    _active.started.append(token)
    _sent_bytes += x.numel() * x.element_size()
    return token


def recv(
    size: list[int], dtype: torch.dtype, device: torch.device, src: int, tag: int, group: str
) -> torch.Tensor:
    """Start to receive a contiguous tensor; wait for it before it is read."""
    out = torch.empty(size, dtype=dtype, device=device)
    _register_work(out, _group(group).recv([out], src, tag))
    _active.started.append(out)
    return out


def wait(x: torch.Tensor) -> torch.Tensor:
    """Wait for the send or receive registered on `x`, and return `x`."""
    return torch.ops._c10d_functional.wait_tensor(x)


def guard(own: torch.Tensor, peer: torch.Tensor, phase: int, src: int) -> torch.Tensor:
    """Refuse to go on unless this program's phase, this rank's stamp and the peer's stamp agree.

    Args:
        own, peer: int64[2] on the CPU, (phase, step) of this rank and of rank `src`.
        phase: the phase that the program was built for.
        src: the peer's rank, for the message.

    Raises:
        PhaseMismatchError: they differ; values of another phase or step would be mixed.
    """
    if own[0] != phase or not torch.equal(own, peer):
        raise PhaseMismatchError(
            f"this rank is at (phase, step) {tuple(own.tolist())} in a program of phase {phase}, "
            f"rank {src} is at {tuple(peer.tolist())}; the run is stopped, start it again."
        )
    return own.clone()


# Defined by the plain library interface: `custom_op` would import the whole compiler into every
# worker at the first call, about 70 MB.
_library = library.Library("hybridiff", "DEF")
for _schema, _kernel, _fake in (
    (
        "send(Tensor x, int dst, int tag, str group) -> Tensor",
        send,
        lambda x, dst, tag, group: torch.empty(0, dtype=torch.uint8),
    ),
    (
        "recv(int[] size, ScalarType dtype, Device device, int src, int tag, str group) -> Tensor",
        recv,
        lambda size, dtype, device, src, tag, group: torch.empty(size, dtype=dtype, device=device),
    ),
    (
        "guard(Tensor own, Tensor peer, int phase, int src) -> Tensor",
        guard,
        lambda own, peer, phase, src: torch.empty_like(own),
    ),
):
    _name = _library.define(_schema)
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    library.register_fake(f"hybridiff::{_name}", _fake, lib=_library)

SEND = torch.ops.hybridiff.send.default
RECV = torch.ops.hybridiff.recv.default
WAIT = torch.ops._c10d_functional.wait_tensor.default
GUARD = torch.ops.hybridiff.guard.default


def is_send(node: fx.Node) -> bool:
    """Whether the node starts a send."""
    return node.target is SEND


def is_recv(node: fx.Node) -> bool:
    """Whether the node starts a receive."""
    return node.target is RECV


def is_wait(node: fx.Node) -> bool:
    """Whether the node waits for a send or a receive."""
    return node.target is WAIT


def is_guard(node: fx.Node) -> bool:
    """Whether the node is a phase guard."""
    return node.target is GUARD
