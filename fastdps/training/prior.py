"""Keep the prior: hold the unadapted metric of a trained backbone to that of the pretrained one.

    views --> trained backbone    --> distances with equal weights of some views to their reference --.
          '-> pretrained backbone --> the same, without gradients ------------------------------------> term

The term is the mean squared difference of the logarithms. It is computed per image, so it does not depend on how a
batch is divided. Views of one image are near each other, as the images are that people compare: held at pairs of
different images instead, the metric keeps these and forgets the others (docs/design.md has the figures). The trained
backbone's distances are known from the step itself, so the term costs a forward pass of the held views.

Shapes: n images, D distorted versions of each, S of them held, C channels of all taps.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastdps.contexts.philox import uniforms
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments
from fastdps.metric.distances import moments as compare
from fastdps.metric.precision import Precision, autocast

#: Distorted versions of an image that are held in a step. All six would cost a third of a step, these an eighth.
HELD = 2
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

    def term(self, moments: Moments, views: Tensor, held: Tensor) -> Tensor:
        """Return the mean squared difference of the logarithms of old and new distances, per image (n,).

        Args:
            moments: The trained backbone's moments of the views, (n, D, C).
            views: The views, (n, 1 + D, 3, H, W).
            held: Positions of the held views, int64 (n, 1 + S), that of the reference first.
        """
        n, count = held.shape
        rows = (held + views.shape[1] * torch.arange(n, device=held.device)[:, None]).flatten()
        with torch.no_grad(), autocast(self._precision, views.device):
            features = self.backbone(views.flatten(0, 1).index_select(0, rows))
            old = compare(features, count - 1, self._comparison).mean.sum(dim=-1)
        return self.difference(moments.mean.sum(dim=-1).gather(1, held[:, 1:] - 1), old)

    @staticmethod
    def difference(new: Tensor, old: Tensor) -> Tensor:
        """Return the mean squared difference of the logarithms of distances (..., P)."""
        return ((new + FLOOR).log() - (old + FLOOR).log()).square().mean(dim=-1)
