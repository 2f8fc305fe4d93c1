"""Moments of distinct image pairs, computed once: kept in memory, on disk, or computed again for each pass.

    images --backbone--> unit vectors of a block of images --with each later image--> mean of z per pair (P, C)

The features of each image are computed once if those of all images fit into memory. Otherwise images are divided into
blocks: the vectors of one block stay in memory while the later images pass by.
Shapes: n images, P pairs, C channels of all taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.contexts.distortions import to_float
from fastdps.errors import ShardError
from fastdps.loading.loader import ShardLoader
from fastdps.metric.distances import normalized_vectors, pair_means
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision, autocast
from fastdps.runtime.console import Counter, counter
from fastdps.training.kept_arrays import kept_array
from fastdps.training.options import MomentLimits
from fastdps.training.triplet_images import TripletImages

#: Bytes that are read from disk, or multiplied, at a time.
BLOCK_BYTES = 1 << 26
#: Images whose features are computed at a time.
BATCH = 32


class MomentBlocks(Protocol):
    """Moments of P pairs in blocks, as the fit of heads reads them.

    Attributes:
        shape: (P, C).
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of pairs and of channels, (P, C)."""
        ...

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield each pair once, in blocks: the indices of some pairs (p,), and their moments (p, C)."""
        ...

    def distances(self, weights: Tensor) -> Tensor:
        """Return the distances of all pairs, (P, K) float32, of channel weights (K, C)."""
        ...


class MomentMatrix:
    """Moments of pairs that are computed already.

    Args:
        mean: The moments, (P, C) float32.
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of pairs and of channels, (P, C)."""
        return self.mean.shape[0], self.mean.shape[1]

    def __len__(self) -> int:
        return len(self.mean)

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield all pairs at once: their indices (P,), and the moments."""
        yield np.arange(len(self)), self.mean

    def distances(self, weights: Tensor) -> Tensor:
        """Return the distances of all pairs, (P, K), of channel weights (K, C)."""
        return self.mean @ weights.T


class PairMoments:
    """The first moments of image pairs under a frozen backbone, in blocks.

    Args:
        metric: The metric whose backbone and comparison are used.
        loader: The images, in packed order.
        ids: Sample ids of the images, ascending; others of the loader are not used.
        pairs: Positions in `ids` of the images of each pair, the lower one first, int64 (P, 2).
        limits: Limits of memory and disk space.
        precision: Floating-point type of the backbone.
        progress: Show progress on the console.
        beat: Called with the number of images so far, to show that this process is alive.

    Attributes:
        place: "memory", "disk", or "computed" if the moments are computed again for each pass.
        images: Number of images whose features were computed so far, with repetitions.

    Raises:
        ShardError: A shard cannot be read, or lacks an image.
        FastDPSError: The disk is full.
    """

    def __init__(
        self,
        metric: PerceptualMetric,
        loader: ShardLoader | TripletImages,
        ids: NDArray[np.int64],
        pairs: NDArray[np.int64],
        *,
        limits: MomentLimits | None = None,
        precision: Precision = "auto",
        progress: bool = False,
        beat: Callable[[int], None] = lambda _: None,
    ) -> None:
        limits = limits or MomentLimits()
        used, places = np.unique(pairs, return_inverse=True)
        pairs = places.reshape(-1, 2)
        self._metric, self._loader, self._ids, self._precision = metric, loader, ids[used], precision
        self._progress, self._beat = progress, beat
        self.images = 0
        self.shape = (len(pairs), sum(metric.channels))
        self._block = max(BATCH, limits.memory // max(1, self._image_bytes()))
        # The order in which pairs are computed: by block of the lower image, then by the higher image.
        order = np.lexsort((pairs[:, 0], pairs[:, 1], pairs[:, 0] // self._block))
        self._pairs = pairs[order]
        self._order = order
        size = math.prod(self.shape) * torch.float32.itemsize
        self.place = "memory" if size <= limits.memory else "disk" if size <= limits.disk else "computed"
        self._kept: list[tuple[NDArray[np.int64], Tensor]] = []
        if self.place == "memory":
            mean = torch.empty(self.shape, device=metric.weights.device)
            for which, block in self._compute():
                mean[torch.from_numpy(which).to(mean.device)] = block
            self._kept = [(np.arange(len(pairs)), mean)]
        elif self.place == "disk":
            self._on_disk = self._write(limits.directory)

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield each pair once, in blocks: the indices of some pairs (p,), and their moments (p, C)."""
        if self.place == "memory":
            yield from self._kept
        elif self.place == "computed":
            yield from self._compute()
        else:
            step = max(1, BLOCK_BYTES // (self.shape[1] * torch.float32.itemsize))
            for start in range(0, len(self), step):
                rows = torch.from_numpy(np.array(self._on_disk[start : start + step]))
                yield self._order[start : start + step], rows.to(self._metric.weights.device)

    def distances(self, weights: Tensor) -> Tensor:
        """Return the distances of all pairs, (P, K) float32, of channel weights (K, C)."""
        result = torch.empty(len(self), len(weights), device=weights.device)
        for which, block in self.blocks():
            result[torch.from_numpy(which).to(weights.device)] = block @ weights.T
        return result

    def _write(self, directory: Path | None) -> NDArray[np.float32]:
        """Compute all moments into a file without a name, which disappears with this process."""
        memory = kept_array(self.shape, np.float32, "disk", directory)
        start = 0
        for which, block in self._compute():
            memory[start : start + len(which)] = block.cpu().numpy()
            start += len(which)
        return memory

    def _image_bytes(self) -> int:
        """Return the bytes of the vectors of one image."""
        height, width = self._loader.image_size
        one = self._vectors(torch.zeros(1, height, width, 3, dtype=torch.uint8, device=self._metric.weights.device))
        return sum(part.numel() * part.element_size() for part in one)

    @torch.no_grad()
    def _vectors(self, images: Tensor) -> list[Tensor]:
        """Return the unit vectors of images uint8 (m, H, W, 3)."""
        with autocast(self._precision, images.device):
            features = self._metric.backbone(to_float(images))
        return normalized_vectors(features, self._metric.comparison)

    def _compute(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield the moments of all pairs in the order of `self._order`."""
        starts = range(0, len(self._ids), self._block)
        with counter("features", unit="images", enabled=self._progress) as count:
            count.start(sum(len(self._ids) - start for start in starts))
            for start in starts:
                yield from self._compute_block(start, count)

    def _compute_block(self, start: int, count: Counter) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield the moments of the pairs whose lower image is in the block from `start` on."""
        kept: list[Tensor] = []
        size = min(self._block, len(self._ids) - start)
        blocks = self._pairs[:, 0] // self._block
        at, last = np.searchsorted(blocks, [start // self._block, start // self._block + 1])
        for position, images in self._images_from(start):
            vectors = self._vectors(images)
            self.images += len(images)
            self._beat(self.images)
            count.advance(len(images))
            if not kept:
                kept = [part.new_empty(size, *part.shape[1:]) for part in vectors]
            own = min(len(images), size - (position - start))
            for part, new in zip(kept, vectors, strict=True):
                if own > 0:
                    part[position - start : position - start + own] = new[:own]
            end = at + np.searchsorted(self._pairs[at:last, 1], position + len(images))
            if end > at:
                low, high = torch.from_numpy(self._pairs[at:end] - (start, position)).to(images.device).unbind(dim=1)
                yield self._order[at:end], pair_means(kept, low, vectors, high)
                at = end
            if at == last and position + len(images) >= start + size:
                return  # no later image has a pair with the block

    def _images_from(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the images from position `start` on in batches: the position of the first, and uint8 (m, H, W, 3)."""
        position = 0
        with closing(self._loader.epoch(0)) as batches:
            for batch in batches:
                is_used = np.isin(batch.ids.numpy(), self._ids, assume_unique=True)
                used = batch.images[torch.from_numpy(is_used).to(batch.images.device)]
                skipped = min(len(used), max(0, start - position))
                for part in used[skipped:].split(BATCH):
                    if len(part):
                        yield position + skipped, part
                    skipped += len(part)
                position += len(used)
        if position < len(self._ids):
            raise ShardError(
                f"the set has {position:,} of the {len(self._ids):,} images of its judgements. Check it with "
                "`fastdps check`."
            )
