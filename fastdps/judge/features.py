"""What the metric knows of the pictures: features once, and from them the moments of pairs.

Shapes: n pictures, M candidate triplets, C channels of all taps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.judge.images import PictureSet
from fastdps.judge.triplets import Deck, Triplet
from fastdps.judge.versions import VERSIONS, DistortedPictures
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.training.kept_features import KeptFeatures

#: Triplets among which the next one is chosen.
CANDIDATES = 2000
#: Pictures that a strip of neighbours shows, and among how many they are looked for.
SHOWN_NEIGHBOURS, MOST_NEIGHBOURS = 12, 2000
#: Pictures whose distances to all others are kept ready.
KEPT_PROBES = 8


class PictureFeatures:
    """The features of all pictures under the base metric.

    Args:
        metric: The base metric.
        pictures: The pictures.
        deck: The triplets that may be asked.
        size: Side in pixels of the pictures as the metric sees them.
        on_pictures: Called with the number of pictures so far.

    Attributes:
        kept: The features by picture.
        candidates: Triplets that may be asked, int64 (M, 3).
    """

    def __init__(
        self,
        metric: PerceptualMetric,
        pictures: PictureSet,
        deck: Deck,
        *,
        size: int,
        on_pictures: Callable[[int], None],
    ) -> None:
        images = torch.empty(len(pictures), 3, size, size, dtype=torch.uint8)
        for number in range(len(pictures)):
            images[number] = torch.from_numpy(np.array(pictures.for_metric(number, size))).movedim(-1, 0)
            on_pictures(number // 2)
        self.kept = KeptFeatures(metric, images, on_images=lambda done: on_pictures(len(pictures) // 2 + done // 2))
        self._versions = isinstance(pictures, DistortedPictures)
        self.candidates = np.array(deck.sample(CANDIDATES), np.int64)
        self._probes: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def of_triplets(self, triplets: Sequence[Triplet] | NDArray[np.int64]) -> Tensor:
        """Return m(ref, a) - m(ref, b) of triplets, (R, C): its product with weights is above 0 where b is closer."""
        ref, a, b = np.asarray(triplets, np.int64).reshape(-1, 3).T
        return self.kept.moments(ref, a) - self.kept.moments(ref, b)

    def nearest(self, weights: Tensor, probe: int) -> list[int]:
        """Return the pictures nearest to a picture, of its own versions if pictures are versions."""
        with self._lock:
            if probe not in self._probes:
                others = self._others(probe)
                self._probes[probe] = others, self.kept.moments(torch.full_like(others, probe), others)
                while len(self._probes) > KEPT_PROBES:
                    self._probes.popitem(last=False)
            self._probes.move_to_end(probe)
            others, moments = self._probes[probe]
        order = (moments @ weights).argsort(stable=True)[:SHOWN_NEIGHBOURS]
        return others[order].tolist()

    def _others(self, probe: int) -> Tensor:
        first, end = 0, len(self.kept)
        if self._versions:
            first = probe // VERSIONS * VERSIONS
            end = first + VERSIONS
        others = torch.arange(first, min(end, first + MOST_NEIGHBOURS))
        return others[others != probe]
