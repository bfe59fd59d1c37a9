from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache


@pytest.fixture
def compiler_cache(tmp_path) -> Iterator[Path]:
    """An empty cache of Inductor's of its own, and counters that begin at zero."""
    folder = tmp_path / "inductor"
    folder.mkdir()
    counters.clear()
    with fresh_cache(dir=str(folder)):
        yield folder
