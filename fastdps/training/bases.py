"""The base of an adaptation: a run, a metric file, a backbone's name, or "lpips"."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath

import torch

from fastdps.contexts.judgements import POOLED
from fastdps.errors import ConfigError, FastDPSError
from fastdps.metric.load import Context, find_context, list_contexts, local_path, select_context
from fastdps.metric.metric_file import includes_backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.published import is_published, load_published
from fastdps.run_directory import RunDirectory
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import locate
from fastdps.training.differences import HeadPrior, priors_of


@dataclass(frozen=True)
class Base:
    """What a metric is adapted from.

    Attributes:
        name: The run, the file, or the name that was given.
        metric: The metric: one context, or all contexts of a run on one backbone.
        priors: Weights that a head may be drawn to, the base's own first.
        size: Side in pixels of the images that it was adapted to, None if that is not known.
        includes_backbone: The backbone is not the pretrained one, so that files must include it.
    """

    name: str
    metric: PerceptualMetric
    priors: tuple[HeadPrior, ...]
    size: int | None = None
    includes_backbone: bool = False


def open_base(
    base: str | PathLike[str], context: Context | None = None, *, device: str | torch.device | None = None
) -> Base:
    """Load the base of an adaptation.

    Args:
        base: A run directory, a metric file, "hub:user/name" for a metric on the hub, the name of a backbone such as
            "alexnet", or "lpips", "lpips/vgg" or "lpips/squeeze" for LPIPS with its published heads (version 0.1) if
            that package is installed.
        context: The context of the run to start from, see `fastdps.load`. None for the pooled judge of a run on
            judgements, and for the mean of the contexts of a run on rankings.
        device: Where to compute; None for the CPU.

    Returns:
        The base.

    Raises:
        ConfigError: The base or the context does not exist, or the contexts have a backbone each and none is chosen.
        FastDPSError: A file cannot be read, or the `lpips` package is not installed.

    Example:
        >>> open_base("alexnet").metric.weights.shape
        torch.Size([1, 1152])
    """
    text, place = fspath(base), device or "cpu"
    if is_published(text):
        if context is not None:
            raise ConfigError(f"{text} has no contexts: leave the context out, or name a run.")
        metric = load_published(text).to(place)
        return Base(text, metric, priors_of(metric))
    path = local_path(text)
    places = list_contexts(path)
    if context is None and len({one.path for one in places}) > 1:
        raise ConfigError(
            f"{text} has {len(places)} contexts with a backbone each. Choose one of them to adapt, with context= or "
            "--context."
        )
    file = places[0].path if context is None else find_context(path, context).path
    metric = PerceptualMetric.load(file).to(place)
    if context is not None:
        metric = select_context(metric, find_context(path, context))
    elif POOLED in metric.judges:
        metric = select_context(metric, find_context(path, POOLED))
    size = min(metric.origin.image_size) if metric.origin.image_size else None
    if size is None and path.is_dir():  # a metric of an older version
        size = _size_of(RunDirectory(path))
    return Base(text, metric, priors_of(metric), size, includes_backbone(file))


def _size_of(run: RunDirectory) -> int | None:
    """Return the side in pixels of the images of a run, from its configuration or its shard set, if that is there."""
    if not run.config.exists():
        return None
    content = run.read_config()
    data, settings = content["data"], content["config"]
    if settings.get("crop_size"):
        return int(settings["crop_size"])
    if data["size"]:
        return int(data["size"])
    if sizes := data.get("image_size"):
        return int(min(sizes))
    try:
        stored = read_manifest(locate(data["shards"])).image_size
    except FastDPSError:
        return None
    return min(stored) if stored else None
