"""What named devices and links do by their data sheets: stated, not measured."""

from __future__ import annotations

from dataclasses import dataclass

from hybridiff_compile.arguments import check_choice
from hybridiff_compile.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """A device, in SI units.

    Attributes:
        name: by which a plan asks for it.
        flops: a second, dense 16-bit matrix products summed in 32 bits.
        flops32: a second, in 32 bits without TF32, as torch multiplies matrices unless told to.
        memory_rate: bytes a second.
        memory: bytes.
    """

    name: str
    flops: float
    flops32: float
    memory_rate: float
    memory: float


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two devices.

    Attributes:
        name: by which a plan asks for it.
        rate: bytes a second in one direction, as large copies reach it.
        latency: seconds from a send to its receive, beside the bytes.
    """

    name: str
    rate: float
    latency: float

    def seconds(self, nbytes: int) -> float:
        """How long that many bytes take."""
        return self.latency + nbytes / self.rate


#: SXM boards of the A100, H100 and H200.
DEVICES = {
    d.name: d
    for d in (
        Device("rtx3090", flops=71e12, flops32=35.6e12, memory_rate=936e9, memory=24e9),
        Device("rtx4090", flops=165e12, flops32=82.6e12, memory_rate=1008e9, memory=24e9),
        Device("a100", flops=312e12, flops32=19.5e12, memory_rate=2039e9, memory=80e9),
        Device("h100", flops=989e12, flops32=67e12, memory_rate=3350e9, memory=80e9),
        Device("h200", flops=989e12, flops32=67e12, memory_rate=4800e9, memory=141e9),
    )
}
#: PCIe: 16 lanes, three quarters of the lanes' rate. NVLink: that of the H100, two thirds.
LINKS = {
    link.name: link
    for link in (
        Link("pcie3", rate=12e9, latency=20e-6),
        Link("pcie4", rate=24e9, latency=20e-6),
        Link("nvlink", rate=300e9, latency=10e-6),
    )
}

#: The name of what is measured in place of a data sheet.
HERE = "here"

# What a kernel reaches of a data sheet's rates, and how long one takes at least when started from
# Python. The first was chosen by the paper's one RTX 3090 (Table 1): 50 steps of SDXL and of SD3
# come out as 15.0 and 19.6 s of its 16.49 and 19.36 s, which hold encoders and VAE too.
COMPUTE, MEMORY, LAUNCH = 0.7, 0.8, 5e-6
#: What the driver adds to a step on two ranks, as measured on a CPU (`hybridiff profile`), seconds.
OWN = 1e-3


def device(name: str) -> Device:
    """A device by name.

    Raises:
        ConfigError: there is none of that name.
    """
    check_choice("device", name, (*DEVICES, HERE))
    return DEVICES[name]


def link(name: str) -> Link:
    """A link by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == HERE:
        raise ConfigError("link='here' is measured between devices; ask for device='here' too.")
    check_choice("link", name, (*LINKS, HERE))
    return LINKS[name]
