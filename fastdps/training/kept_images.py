"""The images of a judgement set, decoded once: kept in memory, or in a file that is mapped into memory.

    shards, in packed order --> uint8 (n, H, W, 3) in memory or on disk --> any images, in any order

A step of a training on judgements needs images from all over the set. Reading shards in that order would decode each
shard again for a few of its images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.errors import ConfigError, ShardError
from fastdps.loading.loader import ShardLoader
from fastdps.training.kept_arrays import Place, kept_array
from fastdps.training.options import MomentLimits


class KeptImages:
    """Decoded images of a judgement set.

    Args:
        loader: The images of the set, in packed order.
        ids: Sample ids of the images to keep, ascending, (n,).
        limits: Limits of memory and disk space.
        beat: Called with the number of images so far, to show that this process is alive.

    Attributes:
        place: "memory" or "disk".

    Raises:
        ShardError: A shard cannot be read, or lacks an image.
        ConfigError: The images exceed both limits.
        FastDPSError: The disk is full.
    """

    def __init__(
        self,
        loader: ShardLoader,
        ids: NDArray[np.int64],
        *,
        limits: MomentLimits | None = None,
        beat: Callable[[int], None] = lambda _: None,
    ) -> None:
        limits = limits or MomentLimits()
        self._shape = (len(ids), *loader.image_size, 3)
        size = math.prod(self._shape)
        self.place: Place = "memory" if size <= limits.memory else "disk"
        if size > limits.memory and size > limits.disk:
            raise ConfigError(
                f"the {len(ids):,} images of {self._shape[1]} x {self._shape[2]} pixels need {size:,} bytes, more than "
                f"the limits of memory ({limits.memory:,}) and disk ({limits.disk:,}). Give a smaller --size, or a "
                "larger --moments-disk."
            )
        self._images: NDArray[np.uint8] = kept_array(self._shape, np.uint8, self.place, limits.directory)
        self._read(loader, ids, beat)

    def of(self, positions: NDArray[np.int64]) -> Tensor:
        """Return the images at positions in `ids`, uint8 (m, H, W, 3) on the CPU."""
        return torch.from_numpy(np.asarray(self._images[positions]))

    def _read(self, loader: ShardLoader, ids: NDArray[np.int64], beat: Callable[[int], None]) -> None:
        found = 0
        with closing(loader.epoch(0)) as batches:
            for batch in batches:
                is_used = np.isin(batch.ids.numpy(), ids, assume_unique=True)
                rows = np.searchsorted(ids, batch.ids.numpy()[is_used])
                self._images[rows] = batch.images.cpu().numpy()[is_used]
                found += len(rows)
                beat(found)
        if found < len(ids):
            raise ShardError(
                f"the set has {found:,} of the {len(ids):,} images of its judgements. Check it with `fastdps check`."
            )
