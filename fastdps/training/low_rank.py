"""Low-rank training of a backbone (LoRA): each weight matrix W is fixed, and a product of two small matrices is added.

    W + up @ down,  W (out, in),  up (out, rank) zeros at the start,  down (rank, in) random

Gradients and Adam's moments are those of `up` and `down` only: for a ViT-B with rank 8 one 70th of the backbone's. A
convolution counts as a matrix (out, in x height x width); depthwise ones stay as they are, and so do biases and
normalisations. Wherever the backbone is used it computes with the sum. `merge_low_rank` makes the sum its weights.
Source: Hu et al. 2022.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastdps.errors import ConfigError
from fastdps.metric.backbones import Backbone

_WEIGHT = "weight"


class LowRank(nn.Module):
    """Adds the product of two matrices to a weight.

    Args:
        weight: The weight, (out, in, ...).
        rank: Columns of `up` and rows of `down`.
        generator: Source of the initial values of `down`.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        bound = 1 / math.sqrt(columns)
        drawn = torch.rand(rank, columns, generator=generator).mul_(2 * bound).sub_(bound)
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the product added."""
        return weight + (self.up @ self.down).view(weight.shape)


def add_low_rank(backbone: Backbone, rank: int, seed: int) -> list[nn.Parameter]:
    """Freeze a backbone and add low-rank matrices to its linear layers and convolutions.

    Args:
        backbone: The backbone, which is changed.
        rank: Rank of the product that is added.
        seed: Seed of the initial values.

    Returns:
        The parameters to train.

    Raises:
        ConfigError: No layer has a weight of a higher rank.
    """
    backbone.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    trained: list[nn.Parameter] = []
    for layer in list(backbone.modules()):
        weight = _matrix_of(layer)
        if weight is None or min(len(weight), weight[0].numel()) <= rank:
            continue
        added = LowRank(weight, rank, generator)
        parametrize.register_parametrization(layer, _WEIGHT, added)
        trained += added.parameters()
    if not trained:
        raise ConfigError(f"No layer of {backbone.name} has a weight of a rank above {rank}. Choose a lower --lora.")
    return trained


def merge_low_rank(backbone: Backbone) -> None:
    """Make the sums the weights of a backbone, whose tensors then have their own names again."""
    for layer in list(backbone.modules()):
        if parametrize.is_parametrized(layer, _WEIGHT):
            parametrize.remove_parametrizations(layer, _WEIGHT, leave_parametrized=True)


def _matrix_of(layer: nn.Module) -> Tensor | None:
    """Return the weight of a linear layer or a convolution of all channels, None for other layers."""
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        return layer.weight
    return None
