"""The metric as a torchmetrics `Metric`: the mean over all image pairs, synchronised across processes.

Needs torchmetrics: pip install 'fastdps[torchmetrics]'.
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor

from fastdps.errors import ConfigError, FastDPSError, did_you_mean
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.inputs import Images
from fastdps.metric.load import Context, load

try:
    from torchmetrics import Metric
except ImportError as error:
    raise FastDPSError("fastdps.torchmetrics needs torchmetrics: pip install 'fastdps[torchmetrics]'.") from error

REDUCTIONS = ("mean", "sum")


class DeepPerceptualSimilarity(Metric):
    """The mean or the sum of the distances of all image pairs passed to `update` or `forward`.

    Lower is more similar. Differentiable in `forward`.

    Args:
        source: An `ImageMetric`, or a source of `fastdps.load`.
        context: As in `fastdps.load`.
        reduction: "mean" or "sum".
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

    def __init__(
        self,
        source: str | PathLike[str] | ImageMetric = "alexnet",
        context: Context | None = None,
        *,
        reduction: Literal["mean", "sum"] = "mean",
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
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, x: Images, y: Images) -> None:
        """Add image pairs, in the form that `ImageMetric` takes."""
        distances = self.measure(x, y)
        self.total = self.total + distances.sum()
        self.pairs = self.pairs + len(distances)

    def compute(self) -> Tensor:
        """Return the mean or the sum, a scalar. Without pairs the mean is NaN and the sum zero."""
        return self.total / self.pairs if self.reduction == "mean" else self.total
