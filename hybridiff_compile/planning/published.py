"""What the paper measured of a model, to show beside a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridiff_compile.bench.figures import Mode, Row

#: Device, link, width, height, steps, k and batch of the paper's Table 1.
SETTING = ("rtx3090", "pcie3", 1024, 1024, 50, 5, 1)
#: Seconds and GB of a picture there; "exact" is condition partitioning only (Table 4). None was not
#: published. They hold encoders and VAE.
TABLE: Mapping[str, Mapping[Mode, tuple[float, float | None]]] = {
    "sdxl": {
        "one-device": (16.49, None),
        "exact": (9.24, None),
        "paper": (7.12, 0.516),
        "asyncdiff": (12.54, 9.830),
    },
    "sd3-medium": {
        "one-device": (19.36, None),
        "paper": (9.33, 0.189),
        "asyncdiff": (9.82, 1.290),
    },
}


def beside(rows: Sequence[Row]) -> Mapping[Mode, tuple[float, float | None]]:
    """Its figures, if the rows of a plan are for what they were measured on."""
    paper = next(row for row in rows if row.mode == "paper")
    size = paper.width, paper.height, paper.steps, paper.k, paper.batch
    return TABLE.get(paper.model, {}) if (paper.device, paper.link, *size) == SETTING else {}
