"""One picture on two ranks, in three lines; then what it took, as a line and as a picture.

Run it with `python examples/two_ranks.py "a red circle left of a blue square on a dark green
background"`. Any diffusers pipeline with batched guidance takes the place of the embedded one:
`pipe = DiffusionPipeline.from_pretrained(...)`.
"""

from __future__ import annotations

import sys

import hybridiff_compile
from hybridiff_compile.bench import models

PROMPT = "a red circle left of a blue square on a dark green background"


def main() -> None:
    """Make the picture, save it and print the report."""
    prompt = sys.argv[1] if len(sys.argv) > 1 else PROMPT
    pipe = models.load("tiny-sdxl")
    with hybridiff_compile.optimize(pipe, gpus=2) as model:
        image = model(prompt, **models.call_settings("tiny-sdxl")).images[0]
        image.save("two_ranks.png")
        print(model.report)
        model.report.plot().savefig("two_ranks_steps.png")
    print("wrote two_ranks.png and two_ranks_steps.png")


if __name__ == "__main__":
    main()
