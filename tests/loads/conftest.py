from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hybridiff_compile.runtime import driver


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What the pipelines compute beside the denoiser has the same bits on both sides."""
    with driver.one_thread(torch.device("cpu")):
        yield
