"""The metric: backbone, distances and channel weights in one module. `fastdps.metric.metric_file` has its format.

Shapes: n images, D distorted versions of each, C channels of all taps, K contexts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdps.contexts.rankings import Ranking
from fastdps.errors import ConfigError, FastDPSError, WeightsMismatchError
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments, compared_channels, distances, moments
from fastdps.metric.metric_file import (
    INCLUDED,
    PRETRAINED,
    checked_weights,
    judges_in,
    rankings_in,
    read_metric_file,
    write_metric_file,
)
from fastdps.metric.origin import Origin
from fastdps.metric.precision import Precision, autocast
from fastdps.metric.weights import tensors_sha256
from fastdps.runtime.json_files import parse_json
from fastdps.runtime.stages import stage

_PREFIX = "backbone."


class PerceptualMetric(nn.Module):
    """A deep perceptual similarity metric in K contexts.

    Args:
        backbone: The network whose features are compared.
        weights: Channel weights (K, C); None for ones, which is the unadapted metric.
        rankings: The K contexts, or empty for a metric that was not adapted to rankings.
        comparison: One of `fastdps.metric.distances.COMPARISONS`.
        judges: The K contexts as names of judges, for a metric that was adapted to judgements.

    Raises:
        ConfigError: The weights do not fit the backbone or the rankings, or the comparison is unknown.

    Example:
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
        judges: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.comparison = comparison
        channels = sum(compared_channels(backbone.channels, comparison))
        if weights is None:
            weights = torch.ones(max(1, len(rankings), len(judges)), channels)
        if weights.dim() != 2 or weights.shape[1] != channels:
            raise ConfigError(
                f"{backbone.name}, compared by {comparison}, needs weights (K, {channels}), not {tuple(weights.shape)}."
            )
        if rankings and len(rankings) != len(weights):
            raise ConfigError(f"{len(weights)} rows of weights do not match {len(rankings)} rankings.")
        if judges and (rankings or len(judges) != len(weights)):
            raise ConfigError(f"{len(weights)} rows of weights do not match {len(judges)} judges.")
        self.backbone = backbone
        self.rankings = tuple(rankings)
        self.judges = tuple(judges)
        self.origin = Origin()
        self.register_buffer("weights", weights.detach().clone())
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of every tap. A comparison of two kinds has each of the backbone's taps twice."""
        return compared_channels(self.backbone.channels, self.comparison)

    def moments(self, views: Tensor) -> Moments:
        """Return the moments (n, D, C) of views (n, 1 + D, 3, H, W), RGB in [0, 1], the reference first."""
        with stage("features"):
            features = self.backbone(views.flatten(0, 1))
        with stage("distances"):
            return moments(features, views.shape[1] - 1, self.comparison)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances of image pairs in all contexts. Differentiable with respect to both images.

        Args:
            x: Images (n, 3, H, W), RGB float in [0, 1].
            y: Images of the same shape.

        Returns:
            Distances (n, K).

        Raises:
            ValueError: The images have other shapes or types.
        """
        if x.shape != y.shape or x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be two (n, 3, H, W) of one size, not {tuple(x.shape)} and {tuple(y.shape)}")
        if not (x.is_floating_point() and y.is_floating_point()):
            raise ValueError(f"images must be float in [0, 1], not {x.dtype} and {y.dtype}; divide uint8 by 255")
        return distances(self.weights, self.moments(torch.stack([x, y], dim=1)).mean[:, 0])

    def save(self, path: str | Path, include_backbone: bool = False) -> None:
        """Write the metric to a file.

        Args:
            path: The file, usually `metric.safetensors`.
            include_backbone: Also write the tensors of the backbone. Needed if it is not the pretrained one: without
                them `load` uses the pretrained backbone, and rejects the file if its hash differs.

        Raises:
            FastDPSError: The file cannot be written.
        """
        state = self.backbone.state_dict()
        metadata = {
            "backbone": self.backbone.name,
            "taps": json.dumps(self.backbone.taps),
            "backbone_library": self.backbone.library,
            "backbone_weights": INCLUDED if include_backbone else PRETRAINED,
            "backbone_sha256": tensors_sha256(state),
            "comparison": self.comparison,
            "channels": json.dumps(self.channels),
            "rankings": json.dumps(self.rankings),
        }
        if self.judges:
            metadata["judges"] = json.dumps(self.judges)
        metadata |= self.origin.to_metadata()
        tensors = {"weights": self.weights}
        if include_backbone:
            tensors |= {_PREFIX + name: tensor for name, tensor in state.items()}
        write_metric_file(Path(path), metadata, tensors)

    @classmethod
    def load(cls, path: str | Path) -> PerceptualMetric:
        """Load a metric that `save` wrote; a backbone that is not included is looked up by `fastdps.metric.weights`.

        Args:
            path: The metric file.

        Returns:
            The metric on the CPU.

        Raises:
            FastDPSError: The file is missing, damaged, not a metric, or was made with other backbone weights. Its
                weights are not floating, finite and at least 0, or its backbone is not finite.
        """
        metadata, tensors = read_metric_file(Path(path))
        try:
            included = {INCLUDED: True, PRETRAINED: False}[metadata["backbone_weights"]]
            taps = tuple(parse_json(metadata["taps"]))
            rankings, judges = rankings_in(metadata), judges_in(metadata)
            origin = Origin.from_metadata(metadata)
            name, expected, comparison = (metadata[key] for key in ("backbone", "backbone_sha256", "comparison"))
            weights = checked_weights(tensors.pop("weights"), path)
        except (KeyError, TypeError, ValueError) as error:
            raise FastDPSError(
                f"{path} is incomplete: {error!r} in its metadata or tensors. Restore it or train again."
            ) from error
        if faulty := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise FastDPSError(f"{path} is damaged: {faulty[0]} is not finite. Restore it or train again.")
        state = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()} if included else None
        try:
            backbone = Backbone(name, taps=taps, state=state)
            metric = cls(backbone, weights, rankings, comparison=comparison, judges=judges)
            metric.origin = replace(origin, file=Path(path))
        except (ConfigError, WeightsMismatchError) as error:
            raise type(error)(f"{path}: {error}") from error
        if tensors_sha256(backbone.state_dict()) != expected:
            raise FastDPSError(
                f"{path} is damaged: the hash of its backbone differs from its metadata. Restore it or train again."
                if included
                else f"{path} was adapted with other weights of {name} than the ones found on this machine. "
                "Install those, or train again."
            )
        return metric


def frozen_moments(metric: PerceptualMetric, views: Tensor, precision: Precision = "auto") -> Moments:
    """Return the moments of views (n, 1 + D, 3, H, W) without gradients for the backbone.

    Nothing here depends on the context, so one pass serves all contexts. The moments themselves may take part in
    autograd. The backbone computes in `precision`, the moments are float32.
    """
    with torch.inference_mode(), autocast(precision, views.device):
        moments = metric.moments(views)
    # Copies made outside inference mode may take part in autograd.
    return Moments(moments.mean.clone(), moments.var.clone())


def all_distances(baseline: PerceptualMetric, adapted: Sequence[PerceptualMetric], views: Tensor) -> Tensor:
    """Return the distances of views (n, 1 + D, 3, H, W) in all contexts of all metrics.

    If all metrics share one backbone, its features are computed once and the distances are one matrix product.

    Args:
        baseline: The unadapted metric; its first context is used.
        adapted: Metrics with K contexts together.
        views: Images, the reference first.

    Returns:
        Distances (n, D, 1 + K), the baseline's first.
    """
    mean = frozen_moments(baseline, views).mean
    if all(metric.backbone is baseline.backbone for metric in adapted):
        return distances(torch.cat([baseline.weights[:1], *(metric.weights for metric in adapted)]), mean)
    own = [distances(metric.weights, frozen_moments(metric, views).mean) for metric in adapted]
    return torch.cat([distances(baseline.weights[:1], mean), *own], dim=-1)


def with_unadapted(baseline: PerceptualMetric, adapted: Sequence[PerceptualMetric]) -> PerceptualMetric | None:
    """Return a metric that scores the unadapted metric of a trained backbone in the same pass as the adapted one.

    Args:
        baseline: The unadapted metric of the pretrained backbone.
        adapted: The adapted metrics.

    Returns:
        A metric on the trained backbone with 1 + K contexts, without names: equal weights, then those of the adapted
        metric. None if the backbone is that of `baseline`, or if there are several.
    """
    if len(adapted) != 1 or adapted[0].backbone is baseline.backbone:
        return None
    (metric,) = adapted
    weights = torch.cat([torch.ones_like(metric.weights[:1]), metric.weights])
    return PerceptualMetric(metric.backbone, weights, comparison=metric.comparison)
