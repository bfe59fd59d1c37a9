"""The pipeline that a command is given, and the calls that it is prepared for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridiff_compile.bench import command, models
from hybridiff_compile.errors import ConfigError


@dataclass(frozen=True)
class Wanted:
    """Whose programs to prepare, and for which calls.

    Attributes:
        model: one of `models.NAMES`; None for a pipeline of the user's.
        pipe: folder of a user's pipeline; None for an embedded model.
        mode: as in `optimize`.
        height, width: of the pictures, pixels; None is the pipeline's own.
        images: pictures for each prompt.
        steps: denoising steps of the calls; None is the pipeline's own.
    """

    model: str | None
    pipe: Path | None
    mode: Any = "hybrid"
    height: int | None = None
    width: int | None = None
    images: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless there is one pipeline, and sizes that a picture can have."""
        if (self.model is None) == (self.pipe is None):
            raise ConfigError(
                f"model={self.model}, pipe={self.pipe}: give one of --model NAME and --pipe FOLDER."
            )
        if self.model is not None:
            models.check_names([self.model])
        for name in ("height", "width", "images", "steps"):
            value = getattr(self, name)
            if value is not None:
                command.check_least(name, value, 1)

    @property
    def name(self) -> str:
        """What to call the pipeline."""
        return self.model or str(self.pipe)

    def load(self) -> Any:
        """Load the pipeline."""
        if self.pipe is not None:
            return models.load_folder(self.pipe)
        assert self.model is not None
        return models.load(self.model)

    def call(self) -> dict[str, Any]:
        """Keywords of the pipeline's call that were given, or that the model was trained for."""
        given = {
            "height": self.height,
            "width": self.width,
            "num_images_per_prompt": self.images,
            "num_inference_steps": self.steps,
        }
        trained = {} if self.model is None else models.call_settings(self.model)
        return {**trained, **{name: value for name, value in given.items() if value is not None}}
