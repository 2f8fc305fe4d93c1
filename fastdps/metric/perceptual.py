"""The metric: backbone, distances and heads in one Module, with a file format of its own.

A metric's file is a safetensors file: `weights` (K, C), where it is included `backbone.<name>` for every tensor of the
backbone, and metadata, all strings:

    format, format_version    FORMAT and FORMAT_VERSION
    backbone, taps            torchvision's name of the network, and JSON: the indices of its tapped layers
    backbone_weights          "included", or "pretrained": to be found by `fastdps.metric.weights`
    backbone_sha256           of the backbone's tensors, in either case
    comparison, channels      see `fastdps.metric.distances`, and JSON: the channels of every tap; their sum is C
    rankings                  JSON: K lists of names, least disruptive first, or none
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastdps.contexts.rankings import Ranking
from fastdps.errors import ConfigError, FastDPSError, WeightsMismatchError
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments, compared_channels, distances, moments
from fastdps.metric.precision import Precision, autocast
from fastdps.metric.weights import tensors_sha256
from fastdps.runtime.files import atomic_write

FORMAT = "fastdps-metric"
FORMAT_VERSION = 1
INCLUDED, PRETRAINED = "included", "pretrained"
_PREFIX = "backbone."


class PerceptualMetric(nn.Module):
    """A deep perceptual similarity metric in K contexts.

    `weights` (K, C) are the channel weights, all ones for the unadapted metric; `rankings` names the K contexts, or is
    empty for a metric that belongs to none. `comparison` is one of `fastdps.metric.distances.COMPARISONS`.

    >>> metric = PerceptualMetric.load("runs/sample/metric.safetensors")  # doctest: +SKIP
    >>> metric(images, others).shape  # doctest: +SKIP
    torch.Size([8, 720])
    """

    weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        weights: Tensor | None = None,
        rankings: Sequence[Ranking] = (),
        *,
        comparison: str = "spatial",
    ) -> None:
        super().__init__()
        self.comparison = comparison
        channels = sum(compared_channels(backbone.channels, comparison))
        if weights is None:
            weights = torch.ones(max(1, len(rankings)), channels)
        if weights.dim() != 2 or weights.shape[1] != channels:
            raise ConfigError(
                f"{backbone.name}, compared by {comparison}, needs weights (K, {channels}), not {tuple(weights.shape)}."
            )
        if rankings and len(rankings) != len(weights):
            raise ConfigError(f"{len(weights)} rows of weights, and {len(rankings)} rankings.")
        self.backbone = backbone
        self.rankings = tuple(rankings)
        self.register_buffer("weights", weights.detach().clone())
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every tap; a comparison of two kinds has each of the backbone's taps twice."""
        return compared_channels(self.backbone.channels, self.comparison)

    def moments(self, views: Tensor) -> Moments:
        """Moments of views (n, 1 + D, 3, H, W), RGB in [0, 1], the reference first; see `fastdps.metric.distances`."""
        return moments(self.backbone(views.flatten(0, 1)), views.shape[1] - 1, self.comparison)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of image pairs: two (n, 3, H, W), RGB float in [0, 1], to (n, K). Differentiable in both.

        Raises `ValueError` for other shapes and types.
        """
        if x.shape != y.shape or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be two (n, 3, H, W) of one size, not {tuple(x.shape)} and {tuple(y.shape)}")
        if not (x.is_floating_point() and y.is_floating_point()):
            raise ValueError(f"images must be float in [0, 1], not {x.dtype} and {y.dtype}; divide uint8 by 255")
        return distances(self.weights, self.moments(torch.stack([x, y], dim=1)).mean[:, 0])

    def save(self, path: str | Path, include_backbone: bool = False) -> None:
        """Write the channel weights and what they belong to.

        The backbone's own tensors are written only with `include_backbone`, which is for a backbone that is not the
        pretrained one; without them `load` finds the pretrained one, and refuses the file if that is another.
        """
        state = self.backbone.state_dict()
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "backbone": self.backbone.name,
            "taps": json.dumps(self.backbone.taps),
            "backbone_weights": INCLUDED if include_backbone else PRETRAINED,
            "backbone_sha256": tensors_sha256(state),
            "comparison": self.comparison,
            "channels": json.dumps(self.channels),
            "rankings": json.dumps(self.rankings),
        }
        tensors = {"weights": self.weights}
        if include_backbone:
            tensors |= {_PREFIX + name: tensor for name, tensor in state.items()}
        # Row-major copies, because safetensors knows no channels-last.
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        with atomic_write(Path(path)) as file:
            file.write(content)

    @classmethod
    def load(cls, path: str | Path) -> PerceptualMetric:
        """Read what `save` wrote, and unless it is included the backbone from where `fastdps.metric.weights` finds it.

        Raises `FastDPSError` when the file is missing, is not such a file, is damaged, or belongs to other backbone
        weights than those found.
        """
        metadata, tensors = _read(Path(path))
        try:
            included = {INCLUDED: True, PRETRAINED: False}[metadata["backbone_weights"]]
            taps = tuple(json.loads(metadata["taps"]))
            rankings = [tuple(ranking) for ranking in json.loads(metadata["rankings"])]
            name, expected, comparison = (metadata[key] for key in ("backbone", "backbone_sha256", "comparison"))
            weights = tensors.pop("weights")
        except (KeyError, TypeError, ValueError) as error:
            raise FastDPSError(
                f"{path} is not whole: {error!r} in its metadata or tensors. Restore it or train again."
            ) from error
        state = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()} if included else None
        try:
            backbone = Backbone(name, taps=taps, state=state)
            metric = cls(backbone, weights, rankings, comparison=comparison)
        except (ConfigError, WeightsMismatchError) as error:
            raise type(error)(f"{path}: {error}") from error
        if tensors_sha256(backbone.state_dict()) != expected:
            raise FastDPSError(
                f"{path} is damaged: the hash of its backbone is not what its metadata say. Restore it or train again."
                if included
                else f"{path} was adapted with other weights of {name} than those found here."
            )
        return metric


def frozen_moments(metric: PerceptualMetric, views: Tensor, precision: Precision = "auto") -> Moments:
    """Moments of views (n, 1 + D, 3, H, W) without gradients for the backbone; they may take part in autograd.

    The backbone computes in `precision`; distances are float32 everywhere.
    """
    with torch.inference_mode(), autocast(precision, views.device):
        moments = metric.moments(views)
    # Copies made outside inference mode are ordinary tensors.
    return Moments(moments.mean.clone(), moments.var.clone())


def all_distances(baseline: PerceptualMetric, adapted: Sequence[PerceptualMetric], views: Tensor) -> Tensor:
    """Distances of views (n, 1 + D, 3, H, W) in all contexts of all metrics: (n, D, 1 + K), the baseline's one first.

    Where all metrics share one backbone its features are computed once, and the distances are one matrix product.
    """
    mean = frozen_moments(baseline, views).mean
    if all(metric.backbone is baseline.backbone for metric in adapted):
        return distances(torch.cat([baseline.weights[:1], *(metric.weights for metric in adapted)]), mean)
    own = [distances(metric.weights, frozen_moments(metric, views).mean) for metric in adapted]
    return torch.cat([distances(baseline.weights[:1], mean), *own], dim=-1)


def read_rankings(path: str | Path) -> list[Ranking]:
    """The contexts of a metric's file, in order, without reading its tensors; none if it belongs to no context.

    Raises `FastDPSError` as `PerceptualMetric.load` does.
    """
    metadata, _ = _read(Path(path), tensors=False)
    try:
        return [tuple(ranking) for ranking in json.loads(metadata["rankings"])]
    except (KeyError, TypeError, ValueError) as error:
        raise FastDPSError(f"{path} is not whole: {error!r} in its metadata. Restore it or train again.") from error


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and, if wanted, all tensors of a metric's file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FastDPSError(f"{path} is not a metric of fastdps: its metadata name no {FORMAT!r}.")
            if metadata.get("format_version") != str(FORMAT_VERSION):
                raise FastDPSError(
                    f"{path} has format version {metadata.get('format_version')}, and this fastdps reads "
                    f"{FORMAT_VERSION}; update fastdps."
                )
            return metadata, {key: file.get_tensor(key) for key in file.keys() if tensors}  # noqa: SIM118
    except FileNotFoundError:
        raise FastDPSError(f"{path} does not exist. A run has one once `fastdps train` has ended.") from None
    except (OSError, SafetensorError) as error:
        raise FastDPSError(f"{path} cannot be read as a metric: {error}. Restore it or train again.") from error
