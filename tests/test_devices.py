"""Which device each rank computes on; no GPU is touched."""

import pytest
import torch

from hybridiff_compile import placing
from hybridiff_compile.errors import ConfigError

CPU = torch.device("cpu")


def cuda(*indices: int) -> list[torch.device]:
    return [torch.device("cuda", i) for i in indices]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize("cards", [3], indirect=True)
def test_ranks_take_the_cards_after_the_pipelines(cards: int) -> None:
    (first, second, last) = cuda(0, 1, 2)
    assert placing.ranks(first, 2) == [first, second]
    assert placing.ranks(last, 2) == [last, first]
    assert placing.ranks(second, 1) == [second]
    assert placing.ranks(first, 2, ("cuda:0", "cuda:2")) == [first, last]


@pytest.mark.parametrize("cards", [1], indirect=True)
def test_one_card_serves_two_ranks_only_when_it_is_named_twice(cards: int) -> None:
    (only,) = cuda(0)
    match = r"gpus=2, but this machine has 1 cuda dev.*to check results on one GPU, name it twice"
    with pytest.raises(ConfigError, match=match):
        placing.ranks(only, 2)
    for name in ("cuda:0", "cuda", only):
        assert placing.ranks(only, 2, (name, name)) == [only, only]


@pytest.mark.parametrize("cards", [2], indirect=True)
@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("cuda:0",), r"devices=\(cuda:0\) must name 2 device\(s\)"),
        (("cuda:1", "cuda:0"), r"must name 2 .* and first cuda:0, where the pipeline is"),
        (("cuda:0", "cpu"), r"this machine has 2 cuda device\(s\), and cpu is none of them"),
        (("cuda:0", "cuda:2"), r"and cuda:2 is none of them"),
    ],
)
def test_devices_that_cannot_be_are_refused(given: tuple[str], match: str, cards: int) -> None:
    with pytest.raises(ConfigError, match=match):
        placing.ranks(cuda(0)[0], 2, given)


def test_ranks_of_a_launcher_are_not_given_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="the launcher started the ranks"):
        placing.ranks(CPU, 2, ("cpu", "cpu"))


def test_processor_is_named_like_a_card() -> None:
    assert placing.ranks(CPU, 2, ("cpu", CPU)) == [CPU, CPU]
    with pytest.raises(ConfigError, match=r"the pipeline is on meta"):
        placing.ranks(torch.device("meta"), 2)


@pytest.mark.parametrize("given", ["cpu", ("cpu", "abacus")])
def test_names_of_no_device_are_refused(given):
    with pytest.raises(ConfigError, match=r"devices=.* names no devices: .*"):
        placing.ranks(CPU, 2, given)
