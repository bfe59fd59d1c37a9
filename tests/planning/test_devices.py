import pytest

from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning import devices


def test_names_are_found():
    assert devices.device("h100").memory == 80e9
    assert devices.link("pcie3").rate < devices.link("pcie4").rate < devices.link("nvlink").rate


def test_link_takes_its_latency_and_its_bytes():
    link = devices.Link("slow", rate=1e6, latency=0.5)
    assert link.seconds(2_000_000) == pytest.approx(2.5)
    assert link.seconds(0) == 0.5


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (
            lambda: devices.device("gtx1080"),
            r"device='gtx1080' is unknown; choose one of rtx3090",
        ),
        (
            lambda: devices.link("usb"),
            r"link='usb' is unknown; choose one of pcie3, pcie4, nvlink, here",
        ),
        (lambda: devices.link("here"), "ask for device='here' too"),
    ],
)
def test_unknown_names_are_refused(find, message):
    with pytest.raises(ConfigError, match=message):
        find()
