"""What a loader yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastdps.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """The samples of one process in one step: n of them, fewer than the batch size or none at the end of an epoch.

    `components` maps names to tensors on the loader's device: images are uint8 (n, H, W, 3) in RGB, scalars (a share
    of votes) are float32 (n,). `ids` are the sample ids, int64 (n,), always on the CPU. `global_size` is the number
    of samples that all processes together have in this step.
    """

    components: dict[str, Tensor]
    ids: Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def images(self) -> Tensor:
        """The images of a set of kind `images`, uint8 (n, H, W, 3). Raises `ConfigError` for other kinds."""
        if "image" not in self.components:
            raise ConfigError(f"this set has no component 'image'; it has {', '.join(self.components)}")
        return self.components["image"]
