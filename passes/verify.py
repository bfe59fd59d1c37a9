"""What holds of a step program at each level; the runner checks it after every pass.

V1  each graph is sound: FX lint, a value on every node, placeholders and results as contracted.
V2  what one rank reads from another is sent exactly once, with the same tag, shape and dtype, in an
    order that cannot deadlock.
V3  each send and receive has exactly one wait, and nothing reads a value before it.
V4  the ranks' children cover the denoiser's parameters.
V5  a guard reads the rank's own stamp and a received one, and stands before the first value that
    is sent or used.
V6  the links of one group start in the same order at both ends, since NCCL matches them by that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.errors import VerifyError
from hybridiff_compile.ir import Level, StepProgram, format_value, returned_values

#: A link as both of its ends name it: (source rank, destination rank, tag, group).
Link = tuple[int, int, int, str]


def verify(program: StepProgram) -> None:
    """Check a program against the rules of its level.

    Raises:
        VerifyError: names the rule, the rank and the node.
    """
    for rank, module in enumerate(program.graphs):
        _check_graph(program, rank, module.graph)
    _check_parameters(program)
    if program.level < Level.LINKED:
        _check_imports(program)
    else:
        for rank, module in enumerate(program.graphs):
            _check_waits(rank, module.graph)
        _check_links(program)
        _check_order(program)
        _check_same_order(program)
    if program.level >= Level.GUARDED:
        for rank, module in enumerate(program.graphs):
            _check_guards(rank, len(program.graphs), module.graph)


def _fail(rule: str, rank: int, node: object, reason: str) -> VerifyError:
    return VerifyError(f"{rule}, rank {rank}, node {node}: {reason}")


def _check_graph(program: StepProgram, rank: int, graph: fx.Graph) -> None:
    contract = program.contracts[rank]
    try:
        graph.lint()
    except (RuntimeError, ValueError) as e:
        raise _fail("V1", rank, "?", f"FX lint: {e}") from e
    for node in graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            raise _fail("V1", rank, node, "it has no value in meta['val']")
    found = tuple(n.name for n in graph.nodes if n.op == "placeholder")
    if found != contract.placeholders:
        raise _fail("V1", rank, found, f"the contract's placeholders are {contract.placeholders}")
    returned = {k for k, n in returned_values(graph).items() if not _is_token(n)}
    if returned != set(contract.returned):
        raise _fail("V1", rank, sorted(returned), f"the contract returns {contract.returned}")


def _is_token(node: fx.Node) -> bool:
    return ops.is_guard(node) or (ops.is_wait(node) and ops.is_send(node.all_input_nodes[0]))


def _check_imports(program: StepProgram) -> None:
    values = [{n.name: n for n in m.graph.nodes} for m in program.graphs]
    ends = Counter(
        (name, src, rank) for rank, c in enumerate(program.contracts) for name, src in c.imports
    )
    ends.subtract(
        (name, rank, dst) for rank, c in enumerate(program.contracts) for name, dst in c.exports
    )
    for (name, src, dst), count in ends.items():
        if count:
            lack = "made by no rank" if count > 0 else "read by no rank"
            raise _fail("V2", dst, name, f"the value from rank {src} to rank {dst} is {lack}")
        made = returned_values(program.graphs[src].graph)[name]
        _check_same(dst, name, made, values[dst][name])


def _check_same(rank: int, name: object, made: fx.Node, read: fx.Node) -> None:
    a, b = made.meta["val"], read.meta["val"]
    if a.shape != b.shape or a.dtype != b.dtype:
        raise _fail("V2", rank, name, f"sent as {format_value(a)}, received as {format_value(b)}")


def _link(rank: int, node: fx.Node) -> Link:
    peer, tag, group = node.args[-3:]
    src, dst = (rank, peer) if ops.is_send(node) else (peer, rank)
    return src, dst, tag, group  # pyright: ignore[reportReturnType]


def _check_links(program: StepProgram) -> None:
    sends: dict[Link, fx.Node] = {}
    recvs: dict[Link, fx.Node] = {}
    for rank, module in enumerate(program.graphs):
        for node in module.graph.nodes:
            if ops.is_send(node) or ops.is_recv(node):
                ends = sends if ops.is_send(node) else recvs
                if _link(rank, node) in ends:
                    raise _fail("V2", rank, node, f"link {_link(rank, node)} is used twice")
                ends[_link(rank, node)] = node
    for link in sends.keys() ^ recvs.keys():
        lack = "send" if link in recvs else "receive"
        rank = link[0] if link in sends else link[1]
        raise _fail("V2", rank, sends.get(link) or recvs[link], f"link {link} has no {lack}")
    for link, node in sends.items():
        (value, *_), recv = node.args, recvs[link]
        assert isinstance(value, fx.Node)
        _check_same(link[1], recv, value, recv)


def _check_waits(rank: int, graph: fx.Graph) -> None:
    for node in graph.nodes:
        if not (ops.is_send(node) or ops.is_recv(node)):
            continue
        waits = [u for u in node.users if ops.is_wait(u)]
        if len(waits) != 1:
            raise _fail("V3", rank, node, f"it has {len(waits)} waits, it needs exactly one")
        early = [u for u in node.users if not ops.is_wait(u)]
        if early:
            raise _fail("V3", rank, early[0], f"it reads {node} without waiting for it")
        if ops.is_send(node) and waits[0] not in returned_values(graph).values():
            raise _fail("V3", rank, waits[0], "the token is not returned, so it is dead code")


def _events(rank: int, graph: fx.Graph) -> Iterator[tuple[str, Link, fx.Node]]:
    """Communication in program order: (what is announced or awaited, link, node)."""
    for node in graph.nodes:
        if ops.is_send(node):
            yield "sent", _link(rank, node), node
        elif ops.is_recv(node):
            yield "posted", _link(rank, node), node
        elif ops.is_wait(node):
            started = node.args[0]
            assert isinstance(started, fx.Node)
            awaited = "await posted" if ops.is_send(started) else "await sent"
            yield awaited, _link(rank, started), node


def _check_order(program: StepProgram) -> None:
    """Run the ranks' communication to its end, each wait blocking until its other end started."""
    todo = [list(_events(r, m.graph)) for r, m in enumerate(program.graphs)]
    started: set[tuple[str, Link]] = set()
    moved = True
    while moved:
        moved = False
        for events in todo:
            while events:
                what, link, _ = events[0]
                if what.startswith("await ") and (what.removeprefix("await "), link) not in started:
                    break
                started.add((what, link))
                events.pop(0)
                moved = True
    for rank, events in enumerate(todo):
        if events:
            stuck = "; ".join(f"rank {r} at {e[0][2]}" for r, e in enumerate(todo) if e)
            raise _fail("V2", rank, events[0][2], f"the ranks wait for each other ({stuck})")


def _check_same_order(program: StepProgram) -> None:
    """Compare, for each group, the order of the sends with that of the receives."""
    sends, recvs = _started(program, ops.is_send), _started(program, ops.is_recv)
    for (src, dst, group), sent in sends.items():
        received = recvs[src, dst, group]
        for (tag, _), (expected, node) in zip(sent, received, strict=True):
            if tag != expected:
                tags = f"{[t for t, _ in sent]}, rank {dst} receives {[t for t, _ in received]}"
                raise _fail("V6", dst, node, f"on {group}, rank {src} sends the tags {tags}")


def _started(
    program: StepProgram, kind: Callable[[fx.Node], bool]
) -> dict[tuple[int, int, str], list[tuple[int, fx.Node]]]:
    """(tag, node) of every send, or of every receive, by (source, destination, group), in order."""
    found = defaultdict(list)
    for rank, module in enumerate(program.graphs):
        for node in filter(kind, module.graph.nodes):
            src, dst, tag, group = _link(rank, node)
            found[src, dst, group].append((tag, node))
    return found


def _check_parameters(program: StepProgram) -> None:
    used: set[str] = set()
    for module in program.graphs:
        for child in module.children():
            if isinstance(child, fx.GraphModule):
                used |= {str(n.target) for n in child.graph.nodes if n.op == "get_attr"}
    missing = program.parameters - used
    if missing:
        raise VerifyError(f"V4: no rank holds {sorted(missing)[:3]} ({len(missing)} parameters)")


def _check_guards(rank: int, size: int, graph: fx.Graph) -> None:
    nodes = list(graph.nodes)
    guards = [n for n in nodes if ops.is_guard(n)]
    peers = sorted(n.args[3] for n in guards)
    if peers != [r for r in range(size) if r != rank]:
        raise _fail("V5", rank, guards, f"guards check ranks {peers}, not every peer once")
    for guard in guards:
        own, peer = guard.args[:2]
        assert isinstance(own, fx.Node)
        assert isinstance(peer, fx.Node)
        received = ops.is_wait(peer) and ops.is_recv(peer.args[0])  # pyright: ignore[reportArgumentType]
        if own.op != "placeholder" or own.name != "stamp" or not received:
            raise _fail("V5", rank, guard, "it must read the input `stamp` and a received stamp")
        if own.meta["val"].dtype != torch.int64 or peer.meta["val"].shape != own.meta["val"].shape:
            raise _fail("V5", rank, guard, "stamps are int64[2]: (phase, step)")
    own_stamps, stamps = {g.args[0] for g in guards}, {g.args[1] for g in guards}
    last_guard = max(nodes.index(g) for g in guards)
    for node in nodes[:last_guard]:
        if ops.is_wait(node) and ops.is_recv(node.args[0]) and node not in stamps:
            raise _fail("V5", rank, node, "a received value is used before the guard")
        if ops.is_send(node) and node.args[0] not in own_stamps:
            raise _fail("V5", rank, node, "a value is sent before the guard")
