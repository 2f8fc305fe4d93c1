"""The metric: backbone, distances and heads in one Module, with a file format of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdps.backbones import Backbone
from fastdps.contexts import Ranking
from fastdps.distances import Moments, spatial_moments
from fastdps.errors import ConfigError, FastDPSError
from fastdps.heads import distances
from fastdps.weights import tensors_sha256

FORMAT = "fastdps-metric"
FORMAT_VERSION = 1


class PerceptualMetric(nn.Module):
    """A deep perceptual similarity metric in K contexts.

    `weights` (K, C) are the channel weights, all ones for the unadapted metric; `rankings` names the K contexts, or is
    empty for a metric that belongs to none.

    >>> metric = PerceptualMetric.load("runs/sample/metric.safetensors")  # doctest: +SKIP
    >>> metric(images, others).shape  # doctest: +SKIP
    torch.Size([8, 720])
    """

    weights: Tensor

    def __init__(self, backbone: Backbone, weights: Tensor | None = None, rankings: Sequence[Ranking] = ()) -> None:
        super().__init__()
        channels = sum(backbone.channels)
        if weights is None:
            weights = torch.ones(max(1, len(rankings)), channels)
        if weights.dim() != 2 or weights.shape[1] != channels:
            raise ConfigError(f"{backbone.name} needs weights (K, {channels}), not {tuple(weights.shape)}.")
        if rankings and len(rankings) != len(weights):
            raise ConfigError(f"{len(weights)} rows of weights, and {len(rankings)} rankings.")
        self.backbone = backbone
        self.rankings = tuple(rankings)
        self.register_buffer("weights", weights.detach().clone())
        self.requires_grad_(False)
        self.eval()

    def moments(self, views: Tensor) -> Moments:
        """Moments of views (n, 1 + D, 3, H, W), RGB in [0, 1], the reference first; see `fastdps.distances`."""
        return spatial_moments(self.backbone(views.flatten(0, 1)), views.shape[1] - 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of image pairs: two (n, 3, H, W), RGB float in [0, 1], to (n, K). Differentiable in both.

        Raises `ValueError` for other shapes and types.
        """
        if x.shape != y.shape or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be two (n, 3, H, W) of one size, not {tuple(x.shape)} and {tuple(y.shape)}")
        if not (x.is_floating_point() and y.is_floating_point()):
            raise ValueError(f"images must be float in [0, 1], not {x.dtype} and {y.dtype}; divide uint8 by 255")
        return distances(self.weights, self.moments(torch.stack([x, y], dim=1)).mean[:, 0])

    def save(self, path: str | Path) -> None:
        """Write the channel weights, the rankings and which backbone they belong to, without the backbone's weights."""
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "backbone": self.backbone.name,
            "backbone_sha256": tensors_sha256(self.backbone.state_dict()),
            "channels": json.dumps(self.backbone.channels),
            "comparison": "spatial",
            "rankings": json.dumps(self.rankings),
        }
        path = Path(path)
        temporary = path.with_name(path.name + ".partial")
        save_file({"weights": self.weights.contiguous().cpu()}, temporary, metadata=metadata)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> PerceptualMetric:
        """Read what `save` wrote, and the backbone from where `fastdps.weights` finds it.

        Raises `FastDPSError` when the file is missing, is not such a file, or belongs to other backbone weights.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise FastDPSError(f"{path} is not a metric of fastdps: its metadata name no {FORMAT!r}.")
                if metadata["format_version"] != str(FORMAT_VERSION):
                    raise FastDPSError(
                        f"{path} has format version {metadata['format_version']}, and this fastdps reads "
                        f"{FORMAT_VERSION}; update fastdps."
                    )
                weights = file.get_tensor("weights")
        except FileNotFoundError:
            raise FastDPSError(f"{path} does not exist. A run has one once `fastdps train` has ended.") from None
        except (OSError, SafetensorError) as error:
            raise FastDPSError(f"{path} cannot be read as a metric: {error}. Restore it or train again.") from error
        backbone = Backbone(metadata["backbone"])
        if tensors_sha256(backbone.state_dict()) != metadata["backbone_sha256"]:
            raise FastDPSError(f"{path} was adapted with other weights of {backbone.name} than those found here.")
        return cls(backbone, weights, [tuple(ranking) for ranking in json.loads(metadata["rankings"])])
