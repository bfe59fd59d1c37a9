"""A compiler that fails, or makes wrong code: the picture is right, and a message says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import lower
from tests.test_forms_of_calls import Guides, Rest, plain

HOW: dict[str, Any] = {"mode": "exact", "backend": "inductor", "scope": "stage"}


@pytest.mark.parametrize("together", [False, True])
def test_wrong_code_makes_no_picture(together, monkeypatch, caplog):
    def wrong(flat: Any, *_: Any) -> Any:
        return lambda *args: [1.1 * result for result in flat.module(*args)]

    monkeypatch.setattr(lower, "_compile", wrong)
    with hybridiff_compile.optimize(Guides(Rest), **HOW) as model:
        assert torch.equal(model(together=together), plain(Rest, together=together))
        assert model.report.ranks == 1
    assert "or its compiled code is wrong" in caplog.text


def test_a_part_that_cannot_be_compiled_runs_eagerly(monkeypatch, caplog):
    def fails(*_: Any) -> Any:
        raise NotImplementedError("no such code\nand more")

    monkeypatch.setattr(lower, "_compile", fails)
    with hybridiff_compile.optimize(Guides(Rest), **HOW) as model:
        assert torch.allclose(model(), plain(Rest), atol=1e-5)
        assert model.report.ranks == 2
    assert "cannot be compiled and runs eagerly: NotImplementedError: no such code" in caplog.text
    assert "and more" not in caplog.text
