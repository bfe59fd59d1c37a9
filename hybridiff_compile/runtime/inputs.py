"""Whether a run's denoiser is still given what its last predictions were computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch

from hybridiff_compile.layout import Kept, is_same, writes
from hybridiff_compile.runtime.estimate import Reading
from hybridiff_compile.runtime.forecast import READ_AFTER

# An input is held once it was the same so many times in a row: some samplers call twice at a time,
# and what they pass on of it is the same once.
_HELD = 2


class Inputs:
    """The inputs of a run's steps. One that was held and is another one now has changed.

    The noisy picture is left out, and so is what has at most one dimension: the time, which may
    stand still for some steps where it is rounded. What is another one at each step (residuals of a
    ControlNet) was never held.

    Attributes:
        changed: the name of an input that has changed, as the last step tells; "" if none has.
        begun: the last step that told of a change; 0 if none has.
    """

    def __init__(self) -> None:
        self.changed, self.begun = "", 0
        self._last: dict[str, Kept] = {}
        # Times in a row that an input was the same: as seen at once, and as values told later.
        self._seen, self._told = Counter[str](), Counter[str]()
        self._late: list[tuple[int, list[str], Reading]] = []

    def note(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a step's inputs; waits for no device.

        A tensor in another's place is compared by its values. On a CPU that is done at once. On
        another device it is read `READ_AFTER` steps later, unless one object was held until now:
        another object is then taken for a change.

        Args:
            step: its index, counted up.
            tensors: by name; the first one is the noisy picture.
        """
        changed = list(self._arrived(step))
        others = {name: t for name, t in list(tensors.items())[1:] if t.dim() > 1}
        last, self._last = self._last, {name: (t, writes(t)) for name, t in others.items()}
        late: dict[str, torch.Tensor] = {}
        for name, tensor in others.items():
            same = is_same(last.get(name), tensor)
            if isinstance(same, torch.Tensor):
                if self._seen[name] < _HELD:
                    self._seen[name], late[name] = 0, same
                    continue
                same = False
            if not same and max(self._seen[name], self._told[name]) >= _HELD:
                changed.append(name)
            self._seen[name] = self._seen[name] + 1 if same else 0
            self._told[name] = self._told[name] if same else 0
        if late:
            device = next(iter(late.values())).device
            flags = torch.stack([flag.to(device) for flag in late.values()])
            self._late.append((step, list(late), Reading(flags)))
        self.changed = next(iter(changed), "")
        self.begun = step if changed else self.begun

    def _arrived(self, step: int) -> Iterator[str]:
        """What has changed by the values that are known by now."""
        while self._late and self._late[0][0] <= step - READ_AFTER:
            _, names, reading = self._late.pop(0)
            for name, same in zip(names, reading.tolist(), strict=True):
                if not same and self._told[name] >= _HELD:
                    yield name
                self._told[name] = self._told[name] + 1 if same else 0
