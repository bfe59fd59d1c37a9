"""Read a package: programs from JSON, weights from safetensors, stages as files for the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import Signature, parts_in
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import PackageError, VerifyError
from hybridiff_compile.ir import Level, Phase, StepProgram
from hybridiff_compile.layout import dense_stride
from hybridiff_compile.lower.aot import Packaged
from hybridiff_compile.package import answer, between, codec, manifest, schema, sound, swap
from hybridiff_compile.package import program as records
from hybridiff_compile.passes.verify import verify
from hybridiff_compile.runtime.fleet import new_key

_FIX = "copy the package again, or export it again."

#: Makes the module of a stage.
_Stage = Callable[[records.Stage], nn.Module]


def load(
    folder: Path, made: manifest.Manifest, denoiser: nn.Module
) -> tuple[dict[Signature, Entry], Callable[[], None]]:
    """Give a denoiser the package's weights, and return the package's programs around them.

    Args:
        folder: of a package that was checked.
        made: its manifest.
        denoiser: of the class and with the parameters that the package was made from.

    Returns:
        The programs by call, and what gives the denoiser its own weights back.

    Raises:
        PackageError: the denoiser is another one, or holds another package's weights, or a file
            does not hold what a writer writes; the denoiser is as it was.
        UnsupportedPipelineError: it has no plain weights.
    """
    if type(denoiser).__name__ != made.denoiser:
        raise PackageError(
            f"{folder} was exported from a {made.denoiser}, the pipeline has a "
            f"{type(denoiser).__name__}; load it into a pipeline of the same kind."
        )
    own = swap.tensors_of(denoiser)
    stored = _stored(folder / manifest.WEIGHTS, made)
    names = [name for name in stored if name not in made.constants]
    _check_weights(folder, {name: stored[name] for name in names}, own)
    weights = stored | {name: own[name] for name in names}

    def stage(record: records.Stage) -> nn.Module:
        named = {name: weights[name] for name in record.weights}
        return Packaged(folder / record.file, named, record.keys)

    found = entries(folder, made, stored.keys(), stage)
    # Last, so that a package that is refused changes nothing.
    return found, swap.exchange(folder, denoiser, {name: own[name] for name in names}, stored)


def entries(
    folder: Path, made: manifest.Manifest, weights: Iterable[str], stage: _Stage
) -> dict[Signature, Entry]:
    """Read and check the ranks' programs, then build them.

    Args:
        folder, made: the package and its manifest.
        weights: names of the weights that it holds.
        stage: makes the module of a stage.

    Raises:
        PackageError: they are not as a writer writes them. The message names the file and field.
    """
    files = [folder / f"rank{rank}.json" for rank in range(made.ranks)]
    ranks = [schema.read(file, records.RANK_FILE, _FIX) for file in files]
    for file, calls in zip(files, ranks, strict=True):
        if len(calls) != len(made.calls):
            raise PackageError(
                f"{file}: it has programs for {len(calls)} calls, {manifest.MANIFEST} has "
                f"{len(made.calls)}; {_FIX}"
            )
    found = {}
    for number, (call, *by_rank) in enumerate(zip(made.calls, *ranks, strict=True)):
        with _in(folder / manifest.MANIFEST, f"calls.{number}"):
            form = answer.form(call.answer, call.answer_leaves)
        with _in(folder, f"call {number}"):
            programs = _programs(files, made, call, by_rank, set(weights), stage)
        signature = _signature(call)
        if signature in found:
            raise PackageError(
                f"{folder / manifest.MANIFEST}: calls.{number} is there twice; {_FIX}"
            )
        found[signature] = Entry(new_key(), call.rows, form, programs)
    return found


def _programs(
    files: Sequence[Path],
    made: manifest.Manifest,
    call: manifest.Call,
    by_rank: Sequence[records.Programs],
    weights: set[str],
    stage: _Stage,
) -> dict[Phase, StepProgram]:
    """One call's programs, checked one by one and with each other before any is built."""
    sound.check_phases(made.mode, by_rank)
    ranks = [{Phase[name]: program for name, program in some.items()} for some in by_rank]
    inputs = Branches.of_batch(call.made(), call.rows).inputs()
    device = made.device.split()[0]
    for rank, programs in enumerate(ranks):
        for phase, program in programs.items():
            with _in(files[rank], phase.name):
                sound.check_program(program, phase, rank, inputs, device)
                _check_stages(program, made, weights)
    between.check_handed(ranks)
    between.check_stages(program for programs in ranks for program in programs.values())
    between.check_results(ranks, call.answer_leaves, parts_in(call.made(), call.rows))
    built = {}
    for phase in ranks[0]:
        parts = []
        for rank, programs in enumerate(ranks):
            with _in(files[rank], phase.name):
                parts.append(codec.decode(programs[phase], stage))
        graphs, contracts = zip(*parts, strict=True)
        built[phase] = StepProgram(phase, Level.GUARDED, graphs, contracts, frozenset())
        verify(built[phase])
    return built


def _check_stages(program: records.Program, made: manifest.Manifest, weights: set[str]) -> None:
    for name, child in program.children.items():
        if isinstance(child, records.Stage):
            if child.file not in made.files:
                raise ValueError(f"child {name}: {child.file} is no file of the package")
            missing = [weight for weight in child.weights if weight not in weights]
            if missing:
                raise ValueError(f"child {name}: {manifest.WEIGHTS} has no {missing[0]}")


@contextmanager
def _in(file: Path, field: str) -> Iterator[None]:
    """Within this, what is found wrong is said of a file and a field."""
    try:
        yield
    except (ValueError, VerifyError) as e:
        raise PackageError(f"{file}: {field}: {e}; {_FIX}") from e


def _signature(call: manifest.Call) -> Signature:
    def leaf(of: manifest.TensorLeaf | manifest.ConstantLeaf) -> Any:
        if isinstance(of, manifest.ConstantLeaf):
            return of.constant
        return of.shape, of.stride, getattr(torch, of.dtype), torch.device(of.device)

    return call.names, tuple(leaf(of) for of in call.leaves), call.arguments


def _stored(file: Path, made: manifest.Manifest) -> dict[str, torch.Tensor]:
    """The weights of a package, each with the strides that the stages read it by."""
    try:
        stored = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as e:
        raise PackageError(f"{file}: it holds no weights ({str(e)[:100]}); {_FIX}") from e
    for name in stored.keys() ^ made.strides.keys() | set(made.constants) - stored.keys():
        lacks = f"the manifest has no {name}" if name in stored else f"it has no {name}"
        raise PackageError(f"{file}: {lacks}; {_FIX}")
    for name, stride in made.strides.items():
        tensor = stored[name]
        if not _fills(tensor.shape, stride):
            raise PackageError(
                f"{file.with_name(manifest.MANIFEST)}: strides.{name} {stride}: a tensor of shape "
                f"{tuple(tensor.shape)} does not fill its memory so; {_FIX}"
            )
        if stride != tensor.stride():
            dense = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype)
            stored[name] = dense.copy_(tensor)
    return stored


def _fills(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor of those strides has no gaps and no overlap."""
    try:
        schema.check_layout(shape, stride)
    except ValueError:
        return False
    return dense_stride(torch.empty_strided(shape, stride, device="meta")) == stride


def _check_weights(
    folder: Path, stored: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Refuse weights that the denoiser does not have, or has in another shape or dtype."""
    for name, theirs in stored.items():
        if name not in own:
            raise PackageError(
                f"{folder}: the pipeline's denoiser has no weight {name}; load it into a pipeline "
                "of the same checkpoint, with the same adapters."
            )
        ours = own[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise PackageError(
                f"{folder}: weight {name} is {theirs.dtype}{list(theirs.shape)}, the pipeline's is "
                f"{ours.dtype}{list(ours.shape)}; load it into a pipeline of the same checkpoint."
            )
