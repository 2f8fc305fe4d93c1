"""Sizes of the shards of small sets, and the batches of a loader put together."""

from __future__ import annotations

import torch

#: Shards of uneven sizes: 23 samples.
SIZES = (5, 1, 7, 3, 7)


def gather(batches) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Return the ids and the components of all batches, concatenated."""
    batches = list(batches)
    names = batches[0].components
    ids = torch.cat([batch.ids for batch in batches]).tolist()
    return ids, {name: torch.cat([batch.components[name] for batch in batches]) for name in names}
