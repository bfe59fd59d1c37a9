"""A package whose files are not as written, though their hashes match, is refused whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from hybridiff_compile.package import schema
from hybridiff_compile.package.manifest import MANIFEST, WEIGHTS
from tests.package.mutations import args, at, edit, mutations

FILES = (MANIFEST, "rank0.json", "rank1.json")
FLOAT = "float32"
Rewrite = Callable[[str, bytes], None]


@pytest.mark.parametrize(
    ("name", "every"),
    [
        (MANIFEST, 1),
        ("rank0.json", 5),
        pytest.param("rank0.json", 1, marks=pytest.mark.slow),
        pytest.param("rank1.json", 1, marks=pytest.mark.slow),
    ],
)
def test_every_field_that_is_changed_is_refused(
    name: str, every: int, copy: Path, rewrite: Rewrite, refused: Callable[[], str]
) -> None:
    data, count, wrong = json.loads((copy / name).read_text()), 0, []
    for place, changed in islice(mutations(data, seed=0), 0, None, every):
        rewrite(name, json.dumps(changed).encode())
        count += 1
        try:
            refused()
        except BaseException as e:
            wrong.append(f"{'.'.join(map(str, place))}: {type(e).__name__} {str(e)[:200]}")
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong])
    assert count * every > 100


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "text"),
        (b"{", "text"),
        (b"no json", "text"),
        (b"\xff\xfe\x00", "text"),
        (b"[" * 200_000, "recursion"),
        (b'{"a":' * 200_000, "recursion"),
        (b"NaN", ""),
        (b"9" * 100_000, ""),
        (b"null", ""),
        (b'"' + b"x" * 100_000 + b'"', ""),
    ],
    ids=lambda value: ascii(value[:6]) if isinstance(value, bytes) else "",
)
def test_file_that_holds_something_else_is_refused(
    name: str, text: bytes, says: str, copy: Path, rewrite: Rewrite, refused: Callable[[], str]
) -> None:
    rewrite(name, text)
    message = refused()
    assert str(copy / name) in message
    assert says in message
    assert "export" in message  # what to do


def test_too_large_a_file_is_refused_unread(
    rewrite: Rewrite, refused: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MOST_BYTES", 100_000)
    rewrite("rank0.json", b" " * 100_001)
    assert re.search(r"rank0.json: it has 100001 bytes, at most 100000", refused())


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        # What is executed.
        ("rank0.json", edit("cat", op="call_method", target="__reduce__"), "no kind of node"),
        ("rank0.json", edit("cat", op="get_attr", target="stage0"), "no kind of node"),
        ("rank0.json", edit("cat", op="call_function", target="eval"), "no kind of node"),
        ("rank0.json", edit("cat", kwargs={"dim": 0}), "Extra inputs"),
        ("rank0.json", edit("stamp", target="a=print(1)"), "pattern"),
        ("rank0.json", edit("stamp", target="b"), "its target is b"),
        ("rank0.json", edit("cut", target="forward"), "no child of this graph"),
        ("rank0.json", at("0.SERIAL.children.forward", {"kind": "stage"}), "Field required"),
        ("rank0.json", edit("cat", name="print"), "no earlier node"),
        # Where a file lies.
        ("rank0.json", at("0.SERIAL.children.stage0.file", "../0-stage0.pt2"), "pattern"),
        ("rank0.json", at("0.SERIAL.children.stage0.file", "7-stage0.pt2"), "no file of the pack"),
        ("rank0.json", at("0.SERIAL.children.stage0.weights", ["a"]), f"{WEIGHTS} has no a"),
        # Shapes.
        (
            "rank0.json",
            edit("stamp", value={"tensor": [[2**31 - 1] * 3, [1] * 3, "int64"]}),
            "stamp",
        ),
        (
            "rank0.json",
            edit("stamp", value={"tensor": [[2**20] * 2, [2**20, 1], "int64"]}),
            "more than",
        ),
        ("rank0.json", edit("stamp", value={"tensor": [[-2], [1], "int64"]}), "greater than or eq"),
        ("rank0.json", edit("stamp", value={"tensor": [[2**50], [1], "int64"]}), "less than"),
        ("rank0.json", edit("stamp", value={"tensor": [[2], [1, 1], "int64"]}), "1 dimensions but"),
        ("rank0.json", edit("stamp", value={"tensor": [[2], [1], "qint8"]}), "no plain tensors"),
        ("rank0.json", edit("stamp", value={"tensor": [[2], [1], "load"]}), "no dtype of torch"),
        ("rank0.json", edit("stamp", value={"tensor": [[3], [1], "int64"]}), "int64[3], not int"),
        ("rank0.json", at("0.SERIAL.children.pack.nbytes", 36928), "do not lie as they are packed"),
        ("rank0.json", at("0.SERIAL.children.pack.slots.0.stride.1", 2**30), "do not lie as they"),
        (MANIFEST, at("calls.0.leaves.0.shape.2", 24), "hidden_states_u"),
        (
            "rank0.json",
            edit("timestep_u", value={"tensor": [[1], [1], "int32"]}),
            "timestep_u is int32[1], not float32[1]",
        ),
        (
            "rank0.json",
            edit("encoder_hidden_states_u", value={"tensor": [[1, 32, 128], [0, 1, 32], FLOAT]}),
            "has strides",
        ),
        (MANIFEST, at("calls.0.leaves.0.shape", [2**30] * 2 + [16] * 2), "more than"),
        (MANIFEST, at("calls.0.rows.hidden_states", 9), "no dimension 9 that can be halved"),
        (MANIFEST, at("calls.0.answer_leaves.0.0", 5), "prediction is"),
        (MANIFEST, at("strides.pos_embed", [1, 2]), "it has no pos_embed"),
        (MANIFEST, at("strides", {}), "the manifest has no "),
        (MANIFEST, at("constants", ["nothing"]), "it has no nothing"),
        # What ranks and phases hand each other.
        ("rank0.json", edit("recv_eps_c", name="stamp"), "another node has its name"),
        (
            "rank1.json",
            edit("send_eps_c", args=args({"node": "stage1_c"}, 1, 0, "data1to0")),
            "itself",
        ),
        (
            "rank1.json",
            edit("send_stamp0", args=args({"node": "stamp"}, 0, 3, "stamp1to0")),
            "V2",
        ),
        (
            "rank1.json",
            edit("send_stamp0", args=args({"node": "stamp"}, 0, 65536, "data1to0")),
            "V2",
        ),
        (
            "rank1.json",
            edit("guard0", args=args({"node": "stamp"}, {"node": "wait_stamp0"}, 1, 0)),
            "it guards phase 1, not 0",
        ),
        ("rank0.json", at("0.SERIAL.contract.new_state", []), "differs in cut"),
        ("rank0.json", at("0.SERIAL.contract.results", []), "differs in prediction"),
        ("rank0.json", at("0.PIPELINED.contract.inputs", ["stamp"]), "V1"),
        # The tree of an answer: torch's own reader would import what a context names.
        (MANIFEST, at("calls.0.answer", "[" * 200_000), "String should have at most"),
        (MANIFEST, at("calls.0.answer", "[" * 60_000), "no tree of tuples"),
        (MANIFEST, at("calls.0.answer", '[2, {"type": null}]'), "no tree of tuples"),
        (
            MANIFEST,
            at(
                "calls.0.answer",
                json.dumps(
                    [
                        1,
                        {
                            "type": "builtins.dict",
                            "context": '[{"__enum__": true, "fqn": "antigravity:x", "name": "a"}]',
                            "children_spec": [{"type": None, "context": None, "children_spec": []}],
                        },
                    ]
                ),
            ),
            "its keys, or null",
        ),
        (
            MANIFEST,
            at(
                "calls.0.answer",
                json.dumps(
                    [1, {"type": "collections.deque", "context": "null", "children_spec": []}]
                ),
            ),
            "no tuple, list or dict",
        ),
        (MANIFEST, at("mode", "exact"), "tau1=2 is for mode"),
        (MANIFEST, at("mode", "guided"), "mode guided runs"),
        (MANIFEST, at("switching.m", 2), "m=2 is for mode"),
        (MANIFEST, at("ranks", 3), "Input should be 2"),
        (MANIFEST, at("format", "zip"), "Input should be 'aot' or 'onnx'"),
    ],
)
def test_what_no_writer_writes_is_refused_with_its_reason(
    name: str,
    change: Callable[[Any], None],
    says: str,
    copy: Path,
    rewrite: Rewrite,
    refused: Callable[[], str],
) -> None:
    data = json.loads((copy / name).read_text())
    change(data)
    rewrite(name, json.dumps(data).encode())
    assert says in refused()


def test_call_that_is_there_twice_is_refused(
    copy: Path, rewrite: Rewrite, refused: Callable[[], str]
) -> None:
    for name in ("rank0.json", "rank1.json"):
        rewrite(name, json.dumps(json.loads((copy / name).read_text()) * 2).encode())
    assert "programs for 2 calls" in refused()
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["calls"] *= 2
    rewrite(MANIFEST, json.dumps(manifest).encode())
    assert "calls.1 is there twice" in refused()
