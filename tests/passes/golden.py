"""Golden texts: `<test module>.expected` beside a test module, compared exactly.

`HYBRIDIFF_ACCEPT=1 python -m pytest tests/passes` rewrites them; read the difference before you
keep it.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import fx

from hybridiff_compile.ir import StepProgram
from hybridiff_compile.passes import Pass, run_passes


def assert_golden(text: str, test_file: str) -> None:
    """Compare a text with the `.expected` file beside the test module."""
    path = Path(test_file).with_suffix(".expected")
    if os.environ.get("HYBRIDIFF_ACCEPT") == "1":
        path.write_text(f"{text}\n")
    assert path.exists(), f"{path.name} is missing; run with HYBRIDIFF_ACCEPT=1 to write it"
    assert f"{text}\n" == path.read_text(), f"{path.name} differs; HYBRIDIFF_ACCEPT=1 rewrites it"


def assert_leaves_input(program: StepProgram, step: Pass) -> None:
    """A pass edits neither the step graphs that it is given nor their children."""
    before = _everything(program)
    run_passes(program, (step,))
    assert _everything(program) == before


def _everything(program: StepProgram) -> list[str]:
    modules = [m for g in program.graphs for m in g.modules() if isinstance(m, fx.GraphModule)]
    return [str(program), str(program.contracts), *(f"{m.graph}{m.code}" for m in modules)]
