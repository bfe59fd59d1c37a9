"""Pictures that are fetched by their address."""

from __future__ import annotations

from hybridiff_compile.serving.shelf import Shelf


def test_the_oldest_goes_when_there_are_too_many() -> None:
    shelf = Shelf(kept=2)
    names = [shelf.put(bytes([i])) for i in range(3)]
    assert [shelf.get(name) for name in names] == [None, b"\1", b"\2"]
    assert shelf.get("none") is None
    assert len(set(names)) == 3
