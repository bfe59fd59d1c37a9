"""Write a package: compiled stages, the ranks' programs, the weights once, and the manifest."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import fx, nn
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import Signature
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import PackageError
from hybridiff_compile.ir import Phase
from hybridiff_compile.layout import dense_stride
from hybridiff_compile.lower.flat import Flat, flatten
from hybridiff_compile.package import codec, manifest, swap
from hybridiff_compile.package.load import entries as read_back
from hybridiff_compile.session import Session

#: Writes one stage: (the stage, the same flat, its file, the package's file of weights).
Write = Callable[[fx.GraphModule, Flat, Path, Path], None]

_SUFFIXES = {"aot": "pt2", "onnx": "onnx"}


@dataclass
class Stages:
    """The distinct stages of a package: each is one file, however many programs call it.

    All lie beside the weights: an ONNX model may name no file of another folder.
    """

    suffix: str
    flats: dict[fx.GraphModule, Flat] = field(default_factory=dict)

    def add(self, stage: fx.GraphModule) -> Flat:
        """Give a stage its place, unless it has one."""
        if stage not in self.flats:
            self.flats[stage] = flatten(stage)
        return self.flats[stage]

    def describe(self, stage: fx.GraphModule) -> codec.Json:
        """What a program says of a stage that it calls."""
        flat = self.add(stage)
        return {"file": self.file(stage), "weights": list(flat.weights), "keys": flat.keys}

    def file(self, stage: fx.GraphModule) -> str:
        """Its file, relative to the package's folder."""
        number = list(self.flats).index(stage)
        return f"{number}-{type(stage).__name__.lower()}.{self.suffix}"

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of all stages, by name."""
        pairs = (zip(f.weights, f.values, strict=True) for f in self.flats.values())
        return {name: tensor for some in pairs for name, tensor in some}


def export(session: Session, folder: Path, kind: Literal["aot", "onnx"]) -> None:
    """Write a package to a folder that does not exist yet; it is there whole or not at all.

    Args:
        session: with captured calls.
        folder: new.
        kind: how the stages are written.

    Raises:
        PackageError: the folder exists, or cannot be written.
        UnsupportedPipelineError: the denoiser's weights are quantized.
        BackendError: a package that writing needs is missing.
    """
    entries, config, device = session.denoiser.ways.entries, session.config, session.ranks.device
    own = swap.tensors_of(session.denoiser.route.denoiser)
    write = _writer(kind, device)
    with _new(folder) as partial:
        stages = Stages(_SUFFIXES[kind])
        ranks: list[list[codec.Json]] = [[] for _ in range(manifest.RANKS)]
        for entry in entries.values():
            for rank, programs in enumerate(ranks):
                programs.append(
                    {
                        phase.name: codec.encode(p.graphs[rank], p.contracts[rank], stages.describe)
                        for phase, p in entry.programs.items()
                    }
                )
        for rank, programs in enumerate(ranks):
            (partial / f"rank{rank}.json").write_text(json.dumps(programs), encoding="utf-8")
        tensors = stages.tensors()
        save_file(_plain(tensors), partial / manifest.WEIGHTS)
        (partial / manifest.WEIGHTS).chmod(0o644)
        if kind == "onnx":  # for runtimes that keep a whole branch on one device
            for entry in entries.values():
                stages.add(branch(entry))
        for number, (stage, flat) in enumerate(stages.flats.items()):
            session.ranks.tell(f"writing stage {number + 1} of {len(stages.flats)}")
            write(stage, flat, partial / stages.file(stage), partial / manifest.WEIGHTS)
        given = {**dict.fromkeys(manifest.Switching.model_fields), **config.given()}
        made = manifest.Manifest(
            version=manifest.VERSION,
            format=kind,
            torch=torch.__version__,
            device=manifest.device_kind(device),
            denoiser=type(session.denoiser.route.denoiser).__name__,
            mode=config.mode,
            switching=manifest.Switching(**given),
            ranks=manifest.RANKS,
            calls=tuple(_call(signature, entry) for signature, entry in entries.items()),
            strides={name: dense_stride(tensor) for name, tensor in tensors.items()},
            constants=tuple(name for name in tensors if name not in own),
            files=manifest.digests(partial),
        )
        text = made.model_dump_json(indent=1)
        (partial / manifest.MANIFEST).write_text(text, encoding="utf-8")
        read_back(partial, made, tensors, lambda stage: nn.Identity())  # what is written is read


def branch(entry: Entry) -> fx.GraphModule:
    """The whole denoiser at branch batch, `(sample, e...) -> eps`, put together of its stages."""
    module = entry.programs[Phase.SERIAL].graphs[0]
    stages = {name: m for name, m in module.named_children() if isinstance(m, fx.GraphModule)}
    if len(stages) == 1:
        return next(iter(stages.values()))
    calls = [n for n in module.graph.nodes if n.op == "call_module" and n.target in stages]
    needed = {source for call in calls for source in call.all_input_nodes}
    graph, env = fx.Graph(), {}
    for node in module.graph.nodes:
        if node.op == "placeholder" and node in needed:
            name = node.name.removesuffix("_u")
            env[node] = graph.placeholder(name if name in entry.rows else node.name)
            env[node].meta = dict(node.meta)
        elif node in calls:
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(env[calls[-1]])
    return fx.GraphModule(module, graph, class_name="Branch")


def _writer(kind: str, device: torch.device) -> Write:
    if kind == "onnx":
        from hybridiff_compile.lower import onnx

        onnx.check()
        return _write_onnx
    from hybridiff_compile.lower import aot

    return lambda stage, flat, path, weights: aot.compile_to(flat, path, device)


def _write_onnx(stage: fx.GraphModule, flat: Flat, path: Path, weights: Path) -> None:
    from hybridiff_compile.lower import onnx

    result = "cut" if flat.keys is None else "eps"  # stage1 takes what stage0 calls so
    onnx.export_part(stage, path, onnx.places(weights), result=result)


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies where needed; tensors of one memory are written as they are, twice."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous()
        plain[name] = data.clone() if data.data_ptr() in seen else data
        seen.add(data.data_ptr())
    return plain


def _call(signature: Signature, entry: Entry) -> manifest.Call:
    names, leaves, arguments = signature

    def leaf(value: Any) -> manifest.TensorLeaf | manifest.ConstantLeaf:
        if isinstance(value, str):
            return manifest.ConstantLeaf(constant=value)
        shape, stride, dtype, device = value
        name = codec.dtype_name(dtype)
        return manifest.TensorLeaf(shape=shape, stride=stride, dtype=name, device=str(device))

    return manifest.Call(
        names=names,
        leaves=tuple(leaf(value) for value in leaves),
        arguments=arguments,
        answer=pytree.treespec_dumps(entry.form.spec),
        answer_leaves=entry.form.leaves,
        rows=dict(entry.rows),
    )


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A folder to write to beside the final one, which takes its name at the end."""
    if folder.exists():
        raise PackageError(f"{folder} exists; name a new folder, or remove it first.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    except OSError as e:
        raise PackageError(f"cannot write to {folder.parent}: {e.strerror}; name another.") from e
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
