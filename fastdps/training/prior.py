"""Keep the prior: hold the unadapted metric of a trained backbone to that of the pretrained one.

    views --> trained backbone    --> distances with equal weights of all pairs of views of an image --.
          '-> pretrained backbone --> the same, without gradients ------------------------------------> term

The term is the mean squared difference of the logarithms. It is computed per image, so it does not depend on how a
batch is divided. Pairs of one image are near each other, as the images are that people compare: held at pairs of
different images instead, the metric keeps these and forgets the others (docs/design.md has the figures).

The unadapted metric has equal weights, so its distance is the squared Euclidean distance of two embeddings: the unit
vectors of all positions and channels. All pairs of an image are one matrix product.

Shapes: n images, D distorted versions of each, S of them held, C channels of all taps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdps.contexts.philox import uniforms
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import normalized_vectors
from fastdps.metric.precision import Precision, autocast

#: Distorted versions of an image that are held in a step. All would cost a third of a step, these cost a sixth.
HELD = 3
#: Added to distances before their logarithm, since equal images have distance 0. The distance of different images is
#: about one per tap.
FLOOR = 0.05
#: Number of the random stream that draws the held versions; lower ones draw distortions.
HELD_STREAM = (1 << 14) + 1


def held_views(ids: Tensor, versions: int, *, seed: int, epoch: int) -> Tensor:
    """Return the held versions of each image: consecutive ones from one that is drawn by counter.

    Args:
        ids: Sample ids, int64 (n,).
        versions: Number of distorted versions, D.
        seed: The seed.
        epoch: The epoch.

    Returns:
        Positions among the views, int64 (n, 1 + S), that of the reference first.
    """
    drawn = uniforms(seed, epoch, ids, streams=1, first_stream=HELD_STREAM)[:, 0, :1]
    held = min(HELD, versions)
    others = ((drawn * versions).long() + torch.arange(held, device=ids.device)) % versions
    return torch.cat([torch.zeros_like(others[:, :1]), 1 + others], dim=1)


def pair_distances(features: Sequence[Tensor], comparison: str, views: int) -> Tensor:
    """Return the unadapted distances of all pairs of views of each image.

    Args:
        features: One tensor (n * views, C_l, H_l, W_l) per tap, with the views of an image one after another.
        comparison: One of `fastdps.metric.distances.COMPARISONS`.
        views: Number of views.

    Returns:
        Distances (n, P) of the P = views (views - 1) / 2 pairs.
    """
    vectors = normalized_vectors(features, comparison)
    embedded = torch.cat([part.flatten(1) / math.sqrt(part.shape[1]) for part in vectors], dim=1)
    embedded = embedded.unflatten(0, (-1, views))
    squares = embedded.square().sum(dim=2)
    first, second = torch.triu_indices(views, views, 1, device=embedded.device)
    products = torch.matmul(embedded, embedded.mT).flatten(1).index_select(1, first * views + second)
    return (squares.index_select(1, first) + squares.index_select(1, second) - 2 * products).clamp_min(0)


class Prior:
    """The pretrained backbone that a trained one is held to.

    Args:
        backbone: The backbone before the training. A copy of it is kept.
        comparison: How features are compared.
        precision: Floating-point type of the backbone.
    """

    def __init__(self, backbone: Backbone, comparison: str, precision: Precision = "auto") -> None:
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        self._comparison, self._precision = comparison, precision

    def term(self, features: Sequence[Tensor], views: Tensor, held: Tensor) -> Tensor:
        """Return the mean squared difference of the logarithms of old and new distances, per image (n,).

        Args:
            features: The trained backbone's features of the views, (n * (1 + D), C_l, H_l, W_l) per tap.
            views: The views, (n, 1 + D, 3, H, W).
            held: Positions of the held views, int64 (n, 1 + S).
        """
        n, count = held.shape
        rows = (held + views.shape[1] * torch.arange(n, device=held.device)[:, None]).flatten()
        chosen = [part.index_select(0, rows) for part in features]
        with torch.no_grad(), autocast(self._precision, views.device):
            pretrained = self.backbone(views.flatten(0, 1).index_select(0, rows))
        return self.difference(
            pair_distances(chosen, self._comparison, count), pair_distances(pretrained, self._comparison, count)
        )

    @staticmethod
    def difference(new: Tensor, old: Tensor) -> Tensor:
        """Return the mean squared difference of the logarithms of distances (..., P)."""
        return ((new + FLOOR).log() - (old + FLOOR).log()).square().mean(dim=-1)
