"""A set of triplets, as BAPPS is, in the form of a judgement set: its images one by one, and a table of judgements.

triplet t: ref, p0, p1, share of votes --> images 3 t, 3 t + 1, 3 t + 2; judgement (3 t; 3 t + 1, 3 t + 2)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fastdps.errors import SampleError
from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.loading.options import LoadOptions
from fastdps.loading.spec import Batch
from fastdps.shards.judgements import JudgementTable
from fastdps.shards.storage import Location

#: Images of a triplet, in the order of their numbers.
ROLES = ("ref", "p0", "p1")
#: Triplets whose votes are read at a time.
VOTES_BATCH = 1000


class TripletImages:
    """The images of a set of triplets, one by one: the part of the interface of `ShardLoader` that images are read by.

    Args:
        loader: The triplets, in packed order.

    Attributes:
        manifest: The manifest of the set.
        samples: Number of triplets.
        image_size: (height, width) in pixels of the images.
    """

    def __init__(self, loader: ShardLoader) -> None:
        self._loader = loader
        self.manifest, self.samples, self.image_size = loader.manifest, loader.samples, loader.image_size

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """Yield the images in batches of whole triplets, with their numbers as ids."""
        with closing(self._loader.epoch(epoch)) as batches:
            for batch in batches:
                images = torch.stack([batch.components[role] for role in ROLES], dim=1).flatten(0, 1)
                ids = (len(ROLES) * batch.ids[:, None] + torch.arange(len(ROLES))).flatten()
                yield replace(batch, components={"image": images}, ids=ids, global_size=len(ids))


def triplet_table(location: Location, options: LoadOptions) -> JudgementTable:
    """Read the judgements of a set of triplets: one vote each, divided by the share of votes.

    Args:
        location: Directory or URL of the set.
        options: How to read.

    Returns:
        The judgements, with the numbers of their images as ids.

    Raises:
        SampleError: A share is not within 0 and 1.
        ShardError: The set is missing or damaged.
    """
    only_votes = replace(options, components=("judge",))
    loader = open_shards(location, batch_size=VOTES_BATCH, size=1, seed=None, options=only_votes)
    ids, shares = (np.concatenate(part) for part in zip(*_votes(loader), strict=True))
    if len(wrong := np.flatnonzero(~((shares >= 0) & (shares <= 1)))):
        raise SampleError(
            f"{location}: sample {ids[wrong[0]]} has {shares[wrong[0]]} as its share of votes, which is not within 0 "
            "and 1. Pack the set again."
        )
    return JudgementTable(
        ref=3 * ids,
        a=3 * ids + 1,
        b=3 * ids + 2,
        votes_a=1 - shares,
        votes_b=shares,
        judge=np.full(len(ids), -1),
        judges=(),
        row=ids + 1,
    )


def _votes(loader: ShardLoader) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            yield batch.ids.numpy(), batch.components["judge"].double().cpu().numpy()
