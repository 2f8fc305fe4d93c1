"""The metric as a torchmetrics `Metric`: the mean over all image pairs, synchronised across processes.

Needs torchmetrics: pip install 'fastdps[torchmetrics]'.
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor

from fastdps.errors import ConfigError, FastDPSError, ImageError, did_you_mean
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.inputs import Images
from fastdps.metric.load import Context, load

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise FastDPSError("fastdps.torchmetrics needs torchmetrics: pip install 'fastdps[torchmetrics]'.") from error

REDUCTIONS = ("mean", "sum", "none")


class DeepPerceptualSimilarity(Metric):
    """The mean or the sum of the distances of all image pairs passed to `update` or `forward`.

    Lower is more similar. Differentiable in `forward`.

    Args:
        source: An `ImageMetric`, or a source of `fastdps.load`.
        context: As in `fastdps.load`.
        reduction: "mean", "sum", or "none" for the distance of each pair.
        normalize: Images are in [0, 1], as everywhere in fastdps. False for images in [-1, 1], which `torchmetrics`'
            own LPIPS takes by default.
        keywords: Passed to `torchmetrics.Metric`.

    Raises:
        ConfigError: The reduction is unknown, or a context is given with an `ImageMetric`.
        FastDPSError: As `fastdps.load`.

    Example:
        >>> import torch
        >>> from fastdps.torchmetrics import DeepPerceptualSimilarity
        >>> metric = DeepPerceptualSimilarity("alexnet")
        >>> x, y = torch.rand(2, 6, 3, 64, 64)
        >>> metric.update(x[:4], y[:4])
        >>> metric.update(x[4:], y[4:])
        >>> torch.allclose(metric.compute(), metric.measure(x, y).mean())
        True
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    feature_network = "measure"

    total: Tensor
    pairs: Tensor
    distances: list[Tensor]

    def __init__(
        self,
        source: str | PathLike[str] | ImageMetric = "alexnet",
        context: Context | None = None,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
        normalize: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        if reduction not in REDUCTIONS:
            raise ConfigError(
                f"Unknown reduction {reduction!r}.{did_you_mean(reduction, REDUCTIONS)} Known: {', '.join(REDUCTIONS)}."
            )
        if isinstance(source, ImageMetric) and context is not None:
            raise ConfigError("A loaded metric already has its context: leave the context out.")
        self.measure = source if isinstance(source, ImageMetric) else load(source, context)
        self.reduction = reduction
        self.normalize = normalize
        if reduction == "none":
            self.add_state("distances", [], dist_reduce_fx="cat")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Images, target: Images) -> None:
        """Add image pairs, in the form that `ImageMetric` takes."""
        x, y = (images if self.normalize else _from_symmetric(images) for images in (preds, target))
        distances = self.measure(x, y)
        if self.reduction == "none":
            self.distances.append(distances)
            return
        self.total = self.total + distances.sum()
        self.pairs = self.pairs + len(distances)

    def compute(self) -> Tensor:
        """Return the mean or the sum, a scalar, or all distances. Without pairs the mean is NaN and the sum zero."""
        if self.reduction == "none":
            return dim_zero_cat(self.distances)
        return self.total / self.pairs if self.reduction == "mean" else self.total

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or more values with matplotlib, by default that of `compute`; returns figure and axes."""
        return self._plot(val, ax)


def _from_symmetric(images: Images) -> Tensor:
    """Return images in [-1, 1] as images in [0, 1]. Raises `ImageError` for other types than float tensors."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise ImageError("normalize=False is for float tensors in [-1, 1]; other images are taken as they are.")
    return (images + 1) / 2
