"""The communication ops of a step program; no other file names one.

torch's own functional isend and irecv leave unwaited work behind, so send and recv are ours: the
work is registered on the tensor that the op returns, and one `wait` completes it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import torch
from torch import fx, library
from torch._C._distributed_c10d import (
    _get_work_registry_size,  # pyright: ignore[reportAttributeAccessIssue]
    _register_work,
)

from hybridiff_compile.errors import PhaseMismatchError
from hybridiff_compile.links import Groups, cut, is_stamp
from hybridiff_compile.links import group_name as group_name

_active = threading.local()  # models of several threads each talk to their own worker
_sent_bytes = 0


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
    cut(getattr(_active, "groups", {}))
    for tensor in getattr(_active, "started", []):
        with suppress(RuntimeError):
            wait(tensor)
    _active.started = []


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
    if not is_stamp(group):
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
