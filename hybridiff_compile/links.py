"""The links between ranks: process groups, joined, broken, let go of.

Each direction between two ranks has a group of its own, because NCCL matches point-to-point calls
by their order.
"""

from __future__ import annotations

import ctypes
import itertools
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

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


def group_name(src: int, dst: int, *, stamp: bool = False) -> str:
    """Name of the group that carries data, or phase stamps, from `src` to `dst`."""
    return f"{_STAMP if stamp else 'data'}{src}to{dst}"


def is_stamp(name: str) -> bool:
    """Whether a group of that name carries phase stamps."""
    return name.startswith(_STAMP)


def connect(
    store: dist.Store,
    rank: int,
    size: int,
    device: torch.device,
    loopback: bool,
    patience: timedelta | None = None,
) -> Groups:
    """Join the groups of every direction; a collective call of all `size` ranks.

    Args:
        store: rendezvous that all ranks share.
        rank, size: this rank and the number of ranks.
        device: where this rank computes; gloo carries CPU tensors, NCCL carries CUDA tensors. Ranks
            on one card, which is for checks, send theirs through host memory.
        loopback: bind gloo to the loopback interface (all ranks on one host).
        patience: how long a transfer may take; None is STEP_TIMEOUT.
    """
    patience = patience or STEP_TIMEOUT
    gloo = _gloo(dist.PrefixStore("gloo", store), rank, size, loopback, patience)
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
            options._timeout = patience
            groups[name] = dist.ProcessGroupNCCL(nccl, rank, size, options)
        else:
            groups[name] = gloo
    return groups


def cut(groups: Groups) -> None:
    """Break links: every wait on them ends at once, in whatever thread, and the peer's too."""
    for link in {id(g): g for g in groups.values()}.values():
        if isinstance(link, dist.ProcessGroupGloo):
            _break(link)
        else:
            link.abort()


def disconnect(groups: Groups) -> None:
    """Break links and let go of them: sockets and threads end, whoever still holds `groups`."""
    cut(groups)
    groups.clear()


def disown(groups: Groups) -> None:
    """In a forked child: forget links without a word to their sockets, which are the parent's.

    What a group does when it is destroyed would reach the parent: the two share one epoll, from
    which it would take the parent's sockets. So the child keeps it for ever, out of reach.
    """
    for link in {id(g): g for g in groups.values()}.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(link))
    groups.clear()


def are_late(groups: Groups) -> bool:
    """Whether a step may return before what it received is there: NCCL only queues a transfer."""
    return not all(isinstance(g, dist.ProcessGroupGloo | _Staged) for g in groups.values())


def is_link_error(error: BaseException) -> bool:
    """Whether a transfer failed: torch raises gloo's own words, and NCCL's in a class of theirs."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _break(gloo: Any) -> None:
    """Close a group's connections: gloo does so when a wait times out (its `abort` does not)."""
    other = (gloo.rank() + 1) % gloo.size()
    with suppress(RuntimeError):
        gloo.recv([torch.empty(1)], other, _NO_TAG).wait(timedelta(milliseconds=1))


def _gloo(store: dist.Store, rank: int, size: int, loopback: bool, patience: timedelta) -> Any:
    options = dist.ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    options._timeout = CONNECT_TIMEOUT
    gloo = dist.ProcessGroupGloo
    here = gloo.create_device(hostname="127.0.0.1") if loopback else gloo.create_default_device()
    options._devices = [here]
    options._threads = 1
    group = gloo(store, rank, size, options)
    group._set_default_timeout(patience)
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
