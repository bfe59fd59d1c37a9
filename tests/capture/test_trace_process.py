"""What capturing leaves behind in the process: nothing."""

import importlib
import logging
import sys
import threading
from queue import SimpleQueue

import torch
from torch import fx, nn
from torch._subclasses import FakeTensor

from tests import toy


def test_what_a_denoiser_says_while_it_is_exported_is_heard(capsys):
    class Talks(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            if not isinstance(sample, FakeTensor):
                return sample + 1
            print("traced", file=sys.stderr)
            return sample + 1

    toy.capture_simple(Talks())
    assert capsys.readouterr().err == "traced\n" * 2  # at a larger batch, and for the export


def test_what_belongs_to_the_process_is_left_alone_while_exporting(caplog):
    from torch.export import _trace

    torch_logger, heard = logging.getLogger("torch"), SimpleQueue()
    talker = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    process = (sys.stderr, torch_logger.level)

    class Looks(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            if isinstance(sample, FakeTensor):
                heard.put((sys.stderr, torch_logger.level))
                talker.warning("of this export")
                other = threading.Thread(target=talker.warning, args=("of another thread",))
                other.start()
                other.join()
                if sample.sum() > 0:
                    return sample
            return sample + 1

    talker.addHandler(caplog.handler)
    assert toy.capture_simple(Looks()).not_exported
    talker.removeHandler(caplog.handler)
    assert [heard.get_nowait(), heard.get_nowait()] == [
        process
    ] * 2  # at a larger batch, and for the export
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert set(warned) == {"of another thread"}
    assert not talker.filters
    assert "print" not in vars(_trace)


def test_a_torch_without_that_inner_module_is_exported_as_well(monkeypatch):
    own = importlib.import_module

    def without(name: str) -> object:
        if name == "torch.export._trace":
            raise ImportError(name)
        return own(name)

    monkeypatch.setattr(importlib, "import_module", without)
    toy.capture_simple(nn.Linear(4, 4))


def test_torch_keeps_nothing_of_the_export():
    """Its table would hold the exported graph, tens of megabytes for a UNet, until the next one."""
    from torch.fx import graph_module
    from torch.fx.experimental import proxy_tensor

    others = fx.symbolic_trace(nn.Linear(4, 4))
    before = set(graph_module._loader.eval_cache)
    captured = toy.capture_simple(nn.Linear(4, 4))
    assert not proxy_tensor._FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT
    assert before <= set(graph_module._loader.eval_cache)  # of other graphs, such as `others`
    assert others.code
    kept = set(graph_module._loader.eval_cache) - before
    assert len(kept) == len([*captured.program.graphs, toy.denoiser_of(captured)])


def test_no_stack_traces_are_noted_while_exporting_and_the_setting_is_put_back():
    from torch.fx import config

    seen = SimpleQueue()  # of a list, what a trial leaves there is taken out

    class Looks(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            if isinstance(sample, FakeTensor):
                seen.put(config.do_not_emit_stack_traces)
            return sample + 1

    toy.capture_simple(Looks())
    assert [seen.get_nowait(), seen.get_nowait()] == [
        False,
        True,
    ]  # at a larger batch, and for the export
    assert config.do_not_emit_stack_traces is False
