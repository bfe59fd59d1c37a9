"""Write a stage as an ONNX model whose weights stay in a safetensors file beside it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import fx

from hybridiff_compile.errors import BackendError
from hybridiff_compile.ir import output_node
from hybridiff_compile.lower.flat import Flat, flatten

_PACKAGES = ("onnx", "onnx_ir", "onnxscript")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight's bytes lie.

    Attributes:
        file: name of the file, in the folder of the models that read it.
        offset: of the first byte, from the beginning of the file.
        nbytes: how many there are.
    """

    file: str
    offset: int
    nbytes: int


def check() -> None:
    """Refuse before anything is captured.

    Raises:
        BackendError: a package is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"writing ONNX models needs the package {missing[0]}, which is not installed; "
            "`pip install hybridiff-compile[onnx]`."
        )


def places(file: Path) -> dict[str, Place]:
    """Find every tensor of a safetensors file by its header; the tensors are not read.

    Args:
        file: whose first 8 bytes are the length of the header, little endian; then the header,
            JSON, with offsets counted from its end; then the tensors.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = Place(file.name, 8 + length + begin, end - begin)
    return found


def export_part(
    part: fx.GraphModule, path: Path, weights: Mapping[str, Place], *, result: str
) -> None:
    """Write one graph as one ONNX model of static shapes.

    Its inputs have the names of the graph's placeholders, those of a tuple `<name>_0`, `<name>_1`,
    ...; its outputs likewise, by `result`. So a stage0 with `result="cut"` returns what stage1
    takes.

    Args:
        part: a stage or the whole denoiser; placeholders carry a tensor, or a tuple of tensors, in
            `meta["val"]`.
        path: of the model.
        weights: where the part's weights lie, by name, in files of the folder of `path`; a tied one
            by each of its names. A tensor that is not among them (a constant of the code, say) is
            written into the model.
        result: name of what the part returns, unless it returns a dict, which names it itself.

    Raises:
        BackendError: a package is missing, or an operator has no ONNX form.
        ValueError: a weight and its place differ in size.
        onnx.checker.ValidationError: a file of weights is not there.
    """
    check()
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    flat = flatten(part)
    model = _translate(flat, path, _names(flat, result)).model
    graph = model.graph
    taken = {v.name for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    for name, value in list(graph.initializers.items()):
        if name in taken:  # by an input or an operator: a model knows a value by its name only
            value.name = f"weights.{name}"
        if name in weights:
            held = value.const_value
            place = _checked(name, held.nbytes, weights[name])
            value.const_value = onnx_ir.ExternalTensor(
                place.file,
                place.offset,
                place.nbytes,
                held.dtype,
                shape=held.shape,
                name=value.name,
                base_dir=path.parent,
            )
    ClearMetadataAndDocStringPass()(model)  # stack traces, with the paths of this machine
    onnx_ir.save(model, path)
    onnx.checker.check_model(path)  # by its path, so that the weights' places are checked too


def _names(flat: Flat, result: str) -> list[str]:
    if flat.keys is None:
        returned: Any = output_node(flat.module.graph).args[0]
        return [f"{result}_{i}" for i in range(len(returned))]
    return [result] if isinstance(flat.keys, str) else list(flat.keys)


def _translate(flat: Flat, path: Path, names: list[str]) -> Any:
    device = next((s.device for s in flat.specs if s.device.type != "cpu"), torch.device("cpu"))
    examples = flat.examples(device)[len(flat.values) :]
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(_apart(flat.attached()), tuple(examples), strict=False)
            # Unoptimized: the optimizer folds weights into new ones, which are in no file.
            return torch.onnx.export(program, output_names=names, optimize=False, verbose=False)
    except Exception as e:
        raise BackendError(
            f"{path.stem} has no ONNX form: {_reason(e)} - change the model's code there, or use "
            "backend='inductor' for this pipeline."
        ) from e


def _apart(module: fx.GraphModule) -> fx.GraphModule:
    """Copy what is handed through, for a model's input and its output are two names."""
    output = output_node(module.graph)
    with module.graph.inserting_before(output):
        output.args = fx.map_arg(
            output.args,
            lambda n: (
                module.graph.call_function(torch.ops.aten.clone.default, (n,))
                if n.op == "placeholder"
                else n
            ),
        )
    module.recompile()
    return module


def _reason(error: BaseException) -> str:
    """What an exporter's error began with: its own text is an account of its steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:400]}"


def _checked(name: str, nbytes: int, place: Place) -> Place:
    if place.nbytes != nbytes:
        raise ValueError(
            f"{name} takes {nbytes} bytes, its place in {place.file} has {place.nbytes}; save the "
            "weights that the graph was captured with."
        )
    return place


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says at every use: torchvision is not there, a name is old."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
