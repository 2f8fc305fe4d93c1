"""Moments of a few draws of the distortions of each image, kept for all epochs.

    shards, in packed order --draws 0 to N - 1 of each image, frozen backbone--> moments float16, in memory or on disk
    epoch e: batches of images from all over the set --draw e modulo N--> moments of a batch

A frozen backbone gives the same moments in every epoch, so that from epoch N on only the heads are computed. Draw d of
an image is that of epoch d with new distortions in each epoch. Moments that exceed both limits are computed again in
each epoch, from kept images. Moments are rounded to float16 wherever they are kept, so the result does not depend on
the place.

Each batch has one image of each stratum of the set: as many runs of consecutive samples as a batch has images. So it is
the same for any number of processes, each of which has the images of its part of the set.

Shapes: m images of this process, N draws, D distortions, C channels of all taps, B images of a batch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.contexts.distortions import NAMES
from fastdps.errors import ConfigError
from fastdps.loading.loader import ShardLoader
from fastdps.loading.order import part_of, permutation
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric, frozen_moments
from fastdps.metric.precision import Precision
from fastdps.runtime.console import counter
from fastdps.runtime.processes import Processes
from fastdps.training.kept_arrays import Place, kept_array
from fastdps.training.numbered_batches import NumberedBatches
from fastdps.training.options import MomentLimits
from fastdps.training.recipes import TrainConfig
from fastdps.training.step import split
from fastdps.training.tasks import KeptBatch, Task

#: Moments are kept as float16 times this power of two. Means of squared differences of unit vectors are at most 4, and
#: float16 loses digits below 6e-5, where most of them are.
SCALE = 2.0**13
#: Number of the random stream that permutes the first stratum; lower streams permute shards.
STRATA_STREAM = 1 << 32


def pays(config: TrainConfig, samples: int) -> bool:
    """Return True if the training on a set of `samples` images is longer than one epoch for each draw.

    Otherwise no moments are used twice, and new distortions in each epoch are the same draws.
    """
    steps = config.epochs * _steps(samples, config.batch_size)
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    return 0 < config.draws_kept * _steps(samples, config.batch_size) < steps


def _steps(samples: int, batch_size: int) -> int:
    """Return the number of steps of an epoch."""
    return -(-samples // min(batch_size, samples))


def batch_order(samples: int, batch_size: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the samples of each batch of an epoch by their position in the set.

    Args:
        samples: Number of samples of the set.
        batch_size: Number of images of a batch, B.
        seed: The seed.
        epoch: The epoch.

    Returns:
        Positions (steps, B); the last batch has -1 where a stratum has no further sample. Each position comes once.
    """
    strata = min(batch_size, samples)
    bounds = samples * np.arange(strata + 1) // strata
    order = np.full((_steps(samples, batch_size), strata), -1, np.int64)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        order[: stop - start, number] = start + permutation(stop - start, seed, epoch, STRATA_STREAM + number)
    return order


class KeptDraws(NumberedBatches):
    """The images of a shard set as moments of N draws of their distortions.

    Args:
        task: The task, which makes the views of a draw.
        metric: The metric whose frozen backbone and comparison are used.
        loader: This process's part of the set, in packed order.
        config: Settings of the run.
        processes: The processes that train together.
        limits: Limits of memory and disk space of this process.
        precision: Floating-point type of the backbone.

    Attributes:
        place: "memory" or "disk", or "computed" if the moments are computed again in each epoch.
        samples: Number of images of the set.
        steps: Number of steps of an epoch.
        prepared_s: Seconds that it took to compute and keep the moments, or to keep the images.

    Raises:
        ShardError: A shard cannot be read.
        SampleError: A sample cannot be decoded.
        ConfigError: Moments and images exceed both limits.
        FastDPSError: The disk is full.
    """

    def __init__(
        self,
        task: Task,
        metric: PerceptualMetric,
        loader: ShardLoader,
        config: TrainConfig,
        processes: Processes,
        *,
        limits: MomentLimits | None = None,
        precision: Precision = "auto",
    ) -> None:
        self._task, self._metric, self._config, self._precision = task, metric, config, precision
        self._processes = processes
        self.samples = loader.samples
        self.steps = _steps(self.samples, config.batch_size)
        self._part = part_of(self.samples, processes.process_index, processes.num_processes)
        self._ids = torch.empty(len(self._part), dtype=torch.int64)
        started_s = time.perf_counter()
        self._allocate(loader, limits or MomentLimits())
        self._keep(loader)
        self.prepared_s = time.perf_counter() - started_s

    def _allocate(self, loader: ShardLoader, limits: MomentLimits) -> None:
        """Choose the place of the moments, and allocate it: by image, so that its draws are next to each other."""
        kinds = 2 if self._config.dropout else 1  # the second moments are for dropout only
        shape = (len(self._part), self._config.draws_kept, kinds, len(NAMES), sum(self._metric.channels))
        images = (len(self._part), *loader.image_size, 3)
        needed, needed_by_images = 2 * math.prod(shape), math.prod(images)
        self.place = "computed"
        # A GPU computes moments faster than a disk reads them.
        if needed <= limits.memory or (needed <= limits.disk and self._processes.device.type == "cpu"):
            self.place = "memory" if needed <= limits.memory else "disk"
            self._moments = torch.from_numpy(self._array(shape, np.float16, needed, limits))
            return
        if needed_by_images > max(limits.memory, limits.disk):
            raise ConfigError(
                f"--draws-kept {self._config.draws_kept} needs {needed:,} bytes for moments, or {needed_by_images:,} "
                f"for the {len(self._part):,} images, more than the limits of memory ({limits.memory:,}) and disk "
                f"({limits.disk:,}). Pass --draws-kept 0, which reads the images again in each epoch, or a larger "
                "--moments-disk."
            )
        self._images = torch.from_numpy(self._array(images, np.uint8, needed_by_images, limits))

    def _array(self, shape: tuple[int, ...], dtype: Any, size: int, limits: MomentLimits) -> NDArray[Any]:
        place: Place = "memory" if size <= limits.memory else "disk"
        return kept_array(shape, dtype, place, limits.directory)

    def _keep(self, loader: ShardLoader) -> None:
        """Read all images of this process, and keep their moments or themselves."""
        draws, position = range(self._config.draws_kept), 0
        shows = self._processes.is_main_process and self._processes.process_index == 0
        with counter("features", unit="images", enabled=shows) as count, closing(loader.epoch(0)) as batches:
            count.start(len(self._part))
            for batch in batches:
                # As many views at a time as in a step with new distortions.
                for part in split(batch, len(draws)):
                    rows = slice(position, position + len(part))
                    self._ids[rows] = part.ids
                    if self.place == "computed":
                        self._images[rows] = part.images.cpu()
                    else:
                        self._moments[rows] = self._compute(part, draws).cpu()
                    position += len(part)
                    self._processes.beat("computes features", position)
                    count.advance(len(part))

    def _compute(self, batch: Batch, draws: range) -> Tensor:
        """Return the moments of some draws of images, as they are kept: (n, draws, kinds, D, C) float16."""
        with torch.no_grad():
            views = [self._task.views(batch, draw) for draw in draws]
        if self._config.augment == "none":  # the reference is the same in all draws
            views = [torch.cat([views[0][:, :1], *(view[:, 1:] for view in views)], dim=1)]
        found = [frozen_moments(self._metric, view, self._precision) for view in views]
        mean, var = (torch.cat(part, dim=1).unflatten(1, (len(draws), -1)) for part in zip(*found, strict=True))
        kinds = [mean, var.sqrt()] if self._config.dropout else [mean]
        return torch.stack(kinds, dim=2).mul_(SCALE).to(torch.float16)

    def _batches_of(self, epoch: int) -> Callable[[int], KeptBatch]:
        config, draw = self._config, epoch % self._config.draws_kept
        order = batch_order(self.samples, config.batch_size, seed=config.seed, epoch=epoch)

        def batch_of(number: int) -> KeptBatch:
            positions = order[number][order[number] >= 0]
            own = positions[(positions >= self._part.start) & (positions < self._part.stop)] - self._part.start
            return self._batch(torch.from_numpy(own), draw, len(positions))

        return batch_of

    def _batch(self, rows: Tensor, draw: int, global_size: int) -> KeptBatch:
        device, ids = self._processes.device, self._ids[rows]
        if self.place == "computed":
            images = Batch({"image": self._images[rows].to(device)}, ids, global_size)
            kept = self._compute(images, range(draw, draw + 1))[:, 0]
        else:
            kept = self._moments[rows, draw].to(device)
        floats = kept.to(torch.float32).mul_(1 / SCALE)
        mean = floats[:, 0]
        var = floats[:, 1].square() if self._config.dropout else mean.new_zeros(()).expand_as(mean)
        return KeptBatch({"mean": mean, "var": var}, ids, global_size)
