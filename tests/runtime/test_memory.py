import gc
import weakref
from collections.abc import Iterator

import pytest

from hybridiff_compile.runtime import memory


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    """The tests freeze what was imported for them."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    yield
    if frozen:
        gc.freeze()


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_a_capture_is_collected_within_it_and_nothing_older():
    old = Node()
    seen = weakref.ref(old)
    del old
    before = gc.get_threshold()
    with memory.lightly_collected():
        first = weakref.ref(Node())
        for _ in range(50_000):
            Node()
        assert first() is None
        assert seen() is not None
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
    gc.collect()
    assert seen() is None


def test_a_collector_that_somebody_else_has_set_is_left_alone():
    gc.freeze()
    try:
        # Frozen objects that nobody holds any more are freed meanwhile: a few of very many.
        frozen, before = pytest.approx(gc.get_freeze_count(), rel=0.001), gc.get_threshold()
        with memory.lightly_collected():
            assert (gc.get_freeze_count(), gc.get_threshold()) == (frozen, before)
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()
