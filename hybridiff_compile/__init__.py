"""One classifier-free-guided diffusion picture on several GPUs, on an unmodified pipeline.

Public names are imported when they are first used, so that a worker, which needs neither diffusers
nor the tracer, starts fast and stays small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridiff_compile.api import export as export
    from hybridiff_compile.api import load as load
    from hybridiff_compile.api import optimize as optimize
    from hybridiff_compile.errors import HybridiffError as HybridiffError
    from hybridiff_compile.ir import Phase as Phase
    from hybridiff_compile.model import Model as Model
    from hybridiff_compile.planning.planner import plan as plan
    from hybridiff_compile.planning.report import Plan as Plan
    from hybridiff_compile.runtime.report import RunReport as RunReport
    from hybridiff_compile.verification import Verification as Verification

__version__ = "0.1.0"

_HOMES = {
    "Model": "model",
    "export": "api",
    "load": "api",
    "optimize": "api",
    "plan": "planning.planner",
    "HybridiffError": "errors",
    "Phase": "ir",
    "Plan": "planning.report",
    "RunReport": "runtime.report",
    "Verification": "verification",
}

__all__ = [
    "HybridiffError",
    "Model",
    "Phase",
    "Plan",
    "RunReport",
    "Verification",
    "__version__",
    "export",
    "load",
    "optimize",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
