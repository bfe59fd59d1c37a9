"""Export a denoiser to a plain graph, and leave nothing of the export in the process."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import config as fx_config
from torch.fx import graph_module
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from hybridiff_compile.adapters import as_tensors, tensors
from hybridiff_compile.capture.alike import check_ops
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.inlining import copy_nodes
from hybridiff_compile.capture.prediction import packed
from hybridiff_compile.errors import CaptureError, ExportError
from hybridiff_compile.ir import Parent, output_node

logger = logging.getLogger(__name__)

# Who warns of a failed export, besides the error that it raises.
_TALKERS = (
    "torch.export._trace",
    "torch.fx.experimental.symbolic_shapes",
    "torch._subclasses.fake_tensor",
)

_DATA = torch.Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]

# The memory of a value that has none of its own.
_NOBODYS = -1

# What later passes read: a node's value, and the module that it came from.
_KEPT_META = ("val", "nn_module_stack")


def export(denoiser: nn.Module, call: DenoiserCall) -> tuple[fx.GraphModule, Any]:
    """Export to a plain graph module `(tensor arguments that are read) -> prediction`.

    Returns:
        It, and the exported answer: FakeTensors.

    Raises:
        ExportError: torch.export does not follow it, or not to static shapes.
        CaptureError: its graph would not do on another rank what it does here.
    """
    positional, keyword = call.arguments
    before = set(_sources())
    try:
        with (
            torch.no_grad(),
            _without_gradients(denoiser),
            _without_stack_traces(),
            _Data(),
            as_tensors(denoiser),
        ):
            exported = torch.export.export(
                denoiser, tuple(positional.values()), keyword, strict=False
            )
    except Exception as e:
        raise _explained(denoiser, e) from e
    finally:
        _forget_export(before)
    check_ops(exported.graph_module, type(denoiser).__name__)
    returned = _returned(exported, type(denoiser).__name__)
    values = [n.meta["val"] if isinstance(n, fx.Node) else n for n in returned]
    assert exported.call_spec.out_spec is not None
    answer = pytree.tree_unflatten(values, exported.call_spec.out_spec)
    try:
        scales = {id(tensor): name for name, tensor in tensors(denoiser).items()}
        graph = _unlift(exported, call, returned, scales)
        if any(not _is_static(node) for node in graph.graph.nodes):
            raise ExportError(
                "the size of a value in it depends on values that it is given, of a mask, say"
            )
    except ExportError as e:
        raise ExportError(f"{type(denoiser).__name__} cannot be exported: {e}") from e
    return graph, answer


class _Data(TorchFunctionMode):
    """Reads `tensor.data` as `tensor.detach()`, the same memory: a tracer does not see the former.

    CogVideoX fills a table of positions so, at every other size than its config's.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _is_static(node: fx.Node) -> bool:
    """Whether the shapes of what a node makes are known; passes and compilers count on that."""
    values = pytree.tree_leaves(node.meta.get("val"))
    sizes = [size for v in values if isinstance(v, torch.Tensor) for size in v.shape]
    return all(type(size) is int for size in sizes)


def _returned(exported: torch.export.ExportedProgram, name: str) -> list[Any]:
    """What an exported graph returns to its caller: nodes, and constants.

    Raises:
        CaptureError: it also writes into a buffer or an argument, which ranks would not share.
    """
    specs = exported.graph_signature.output_specs
    written = [str(s.target or s.arg) for s in specs if s.kind is not OutputKind.USER_OUTPUT]
    if written := [*written, *_written(exported)]:
        raise CaptureError(
            f"{name} writes into {', '.join(written[:3])} when it is called, which one "
            "call's program cannot follow"
        )
    (values,) = output_node(exported.graph).args
    return list(values) if isinstance(values, tuple | list) else [values]


def _written(exported: torch.export.ExportedProgram) -> list[str]:
    """Weights and arguments whose memory a node writes into, through a view of it or not."""
    specs, graph = exported.graph_signature.input_specs, exported.graph
    constants = {s.arg.name for s in specs if s.kind is InputKind.CONSTANT_TENSOR}

    def memory(node: Any) -> int | None:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, torch.Tensor):
            return None
        try:
            return value.untyped_storage()._cdata
        except NotImplementedError:  # of torch.vmap
            return _NOBODYS

    placeholders = [n for n in graph.nodes if n.op == "placeholder" and n.name not in constants]
    inputs = {memory(n): n.name for n in placeholders if memory(n) is not None}
    inputs[_NOBODYS] = "a value of torch.vmap, whose memory is not known"
    found = []
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for given, argument in zip(node.args, schema.arguments if schema else (), strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                found += [inputs[m] for m in [memory(given)] if m in inputs]
    return found


def _unlift(
    exported: torch.export.ExportedProgram,
    call: DenoiserCall,
    returned: list[Any],
    scales: Mapping[int, str],
) -> fx.GraphModule:
    """The exported graph with its weights as attributes again; `scales` are names by id.

    `exported.module()` takes a second more for a large one, which goes into code that nobody runs.
    """
    held = {**exported.state_dict, **exported.constants}
    lifted = {s.arg.name: s.target for s in exported.graph_signature.input_specs if s.target}
    given = zip(call.names, call.leaves, strict=True)
    graph, attributes = fx.Graph(), dict[str, Any]()
    env: dict[fx.Node, Any] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            tensor = held[lifted[node.name]]
            # The number of a lifted tensor is another one in the next export.
            name = scales.get(id(tensor), lifted[node.name])
            attributes[name] = tensor
            env[node] = graph.get_attr(name)
        elif node.op == "placeholder":
            name, leaf = next(given)
            env[node] = graph.placeholder(name if isinstance(leaf, torch.Tensor) else node.name)
        else:
            break
        env[node].meta = dict(node.meta)
    copy_nodes(exported.graph_module, graph, env, attributes)
    graph.output(packed(graph, [env[n] for n in returned if isinstance(n, fx.Node)]))
    for node in graph.nodes:  # the tracer's other notes take more memory than the graph
        node.meta = {k: v for k, v in node.meta.items() if k in _KEPT_META}
    _drop_idle(graph)
    return Parent(attributes, graph, class_name="Denoiser")


def _sources() -> dict[str, str]:
    """Where torch keeps the code of every graph module for good."""
    return getattr(getattr(graph_module, "_loader", None), "eval_cache", {})


def _forget_export(before: set[str]) -> None:
    """Drop what torch would keep of an export: its graph, and sources not there `before`."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    getattr(proxies, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
    for name in set(_sources()) - before:
        del _sources()[name]


@contextmanager
def _without_gradients(denoiser: nn.Module) -> Iterator[None]:
    """Parameters made in inference mode cannot be traced as ones that take a gradient."""
    changed = [p for p in denoiser.parameters() if p.is_inference() and p.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad_(False)
        yield
    finally:
        with torch.inference_mode():
            for parameter in changed:
                parameter.requires_grad_(True)


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Keep torch from noting the Python stack of every node, which takes time; nobody reads it."""
    config: Any = fx_config
    before = getattr(config, "do_not_emit_stack_traces", False)
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextmanager
def quietly() -> Iterator[None]:
    """Keep torch's account of a failed export, its whole graph, off stderr: our error follows.

    Only the one module that prints it gets a `print` of its own, and only what some loggers of
    torch say in this thread is dropped: stderr and levels belong to the whole process. Loggers that
    TORCH_LOGS sets have levels of their own, and are heard.
    """
    printer, exporter = None, threading.get_ident()
    with suppress(ImportError):  # an inner module of torch's, which another version may not have
        printer = importlib.import_module("torch.export._trace")
    talkers = [t for t in map(logging.getLogger, _TALKERS) if t.level == logging.NOTSET]

    def is_heard(record: logging.LogRecord) -> bool:
        return record.thread != exporter

    def note(*values: object, **_: object) -> None:
        logger.debug("the export said: %s", " ".join(map(str, values)))

    try:
        if printer is not None:
            vars(printer)["print"] = note
        for talker in talkers:
            talker.addFilter(is_heard)
        yield
    finally:
        for talker in talkers:
            talker.removeFilter(is_heard)
        if printer is not None:
            vars(printer).pop("print", None)


def _drop_idle(graph: fx.Graph) -> None:
    """Erase checks of the tracer's own, dropout in eval mode, and inputs that are not read."""
    for node in reversed(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.dropout.default and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op in ("placeholder", "get_attr") and not node.users:
            graph.erase_node(node)


def _explained(denoiser: nn.Module, error: Exception) -> CaptureError:
    """What to raise: it says which line of the model stopped the export, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in f.filename and "hybridiff_compile" not in f.filename
    ]
    where = f" at {frames[-1].name} ({frames[-1].line})" if frames else ""
    if "Couldn't swap" in str(error):
        return CaptureError(
            f"{type(denoiser).__name__} cannot be exported{where}: it moves or casts its weights "
            "as it runs, as offloading and layerwise casting do, and a program's weights stay "
            "where they are; switch that off for the denoiser"
        )
    said = f"{type(error).__name__}: {' '.join(lines[:2])[:400]}"
    decides = any(word in said.lower() for word in ("data-dependent", "datadependent", "unbacked"))
    advice = " - make that line free of decisions on tensor values" if decides else ""
    return ExportError(f"{type(denoiser).__name__} cannot be exported{where}: {said}{advice}")
