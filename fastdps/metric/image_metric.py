"""The metric for users: one context, float or uint8 images, one distance per pair.

`fastdps.load` returns an `ImageMetric`. It compares image pairs, ranks candidates and computes distance matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from fastdps.contexts.rankings import Ranking
from fastdps.errors import ConfigError, ImageError
from fastdps.metric.distances import means_between
from fastdps.metric.image_sizes import SizeErrors
from fastdps.metric.inputs import Images, batched, check_same_size, to_unit_range
from fastdps.metric.maps import distance_maps
from fastdps.metric.matrix import distance_matrix, distances_between, embeddings, mebibytes
from fastdps.metric.perceptual import PerceptualMetric

#: Candidates that `rank` compares at a time.
RANK_BATCH = 64
#: Default memory limit of a distance matrix.
MATRIX_MIB = 1024


class Ranked(NamedTuple):
    """Candidates sorted by distance, the nearest first.

    Attributes:
        indices: Positions of the candidates, int64 (N,).
        distances: Their distances, (N,), ascending.
    """

    indices: Tensor
    distances: Tensor


class ImageMetric(nn.Module):
    """A metric in one context, or an unadapted one. Returned by `fastdps.load`.

    Images are RGB tensors, (N, 3, H, W) or single (3, H, W), float in [0, 1] or uint8, on any device; or paths, PIL
    images and NumPy arrays (H, W, 3), singly or in lists, which are resized to `size` if the metric has one. Distances
    are on the device of the metric.

    Args:
        metric: A metric with one context.
        check_values: Check that float images are in [0, 1] and free of NaN. The check synchronises with a GPU.

    Raises:
        ConfigError: The metric has several contexts.

    Example:
        >>> import torch, fastdps
        >>> m = fastdps.load("alexnet")
        >>> x, y = torch.rand(2, 5, 3, 64, 64)
        >>> m(x, y).shape
        torch.Size([5])
        >>> m(x, x)
        tensor([0., 0., 0., 0., 0.])
    """

    def __init__(self, metric: PerceptualMetric, *, check_values: bool = True) -> None:
        super().__init__()
        if len(metric.weights) != 1:
            raise ConfigError(f"An ImageMetric has one context, not {len(metric.weights)}; `fastdps.load` selects one.")
        self.metric = metric
        self.check_values = check_values

    @property
    def context(self) -> Ranking | None:
        """The distortions of the context, least disruptive first; None for a metric without a ranking."""
        return self.metric.rankings[0] if self.metric.rankings else None

    @property
    def judge(self) -> str | None:
        """The name of the judge whose judgements the metric was adapted to; None for other metrics."""
        return self.metric.judges[0] if self.metric.judges else None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the images that the metric was adapted to; None if that is not known."""
        return self.metric.origin.image_size

    @property
    def is_adapted(self) -> bool:
        """True if channel weights differ: the weights of an unadapted metric are equal."""
        weights = self.metric.weights
        return bool((weights != weights[:, :1]).any())

    @overload
    def forward(self, x: Images, y: Images, *, per_layer: Literal[False] = False, spatial: bool = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Images, y: Images, *, per_layer: Literal[True], spatial: bool = False
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, x: Images, y: Images, *, per_layer: bool = False, spatial: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the distances of image pairs. Differentiable with respect to both.

        Args:
            x: N images, or one that is compared with each of `y`.
            y: N images, or one that is compared with each of `x`.
            per_layer: Also return the contribution of each of the backbone's L taps, as the `lpips` package does.
            spatial: Return maps of where the images differ, upsampled to their size, as the `lpips` package does.

        Returns:
            Distances (N,), or maps (N, H, W) with `spatial`. With `per_layer` a tuple of that and the contributions,
            (N, L) or (N, L, H, W).

        Raises:
            ImageError: The images have an unsupported shape, type, size or range, or do not match each other.
            ConfigError: `spatial` with a metric whose comparison discards the position.
        """
        first, second = self._batched(x, "x"), self._batched(y, "y")
        check_same_size(first, second, ("x", "y"))
        if spatial:
            maps = self._maps(first, second)
            return (maps.sum(dim=1), maps) if per_layer else maps.sum(dim=1)
        parts = self._means(first, second) * self.metric.weights[0].float()
        if not per_layer:
            return parts.sum(dim=1)
        layers = torch.stack([part.sum(dim=1) for part in parts.split(list(self.metric.channels), dim=1)], dim=1)
        return layers.sum(dim=1), layers

    @torch.no_grad()
    def rank(self, ref: Images, candidates: Images, *, top: int | None = None) -> Ranked:
        """Sort candidates by their distance to one image. No gradients.

        Args:
            ref: One image.
            candidates: Images (N, 3, H, W), or a list of images.
            top: Number of nearest candidates to return, None for all.

        Returns:
            Indices and distances of the candidates, the nearest first.

        Raises:
            ImageError: `ref` is not one image, or the images are not supported.

        Example:
            >>> import torch, fastdps
            >>> m = fastdps.load("alexnet")
            >>> images = torch.rand(4, 3, 64, 64)
            >>> indices, distances = m.rank(images[2], images)
            >>> indices[0].item(), distances[0].item()
            (2, 0.0)
        """
        reference, others = self._batched(ref, "ref"), self._batched(candidates, "candidates")
        if len(reference) != 1:
            raise ImageError(f"ref must be one image, not {len(reference)}. Call rank for each of them.")
        check_same_size(reference, others, ("ref", "candidates"))
        weights = self.metric.weights[0].float()
        unsorted = torch.cat([(self._means(reference, part) * weights).sum(dim=1) for part in others.split(RANK_BATCH)])
        distances, indices = unsorted.sort(stable=True)
        return Ranked(indices[:top], distances[:top])

    def matrix(
        self,
        images: Images,
        others: Images | None = None,
        *,
        memory_MiB: float = MATRIX_MIB,  # noqa: N803
    ) -> Tensor:
        """Return the distances of all pairs of images, or of each image to each of others. No gradients.

        The features of each image are computed once if those of all images fit into `memory_MiB`; see
        `fastdps.metric.matrix`.

        Args:
            images: Images (N, 3, H, W), or a list of images.
            others: Images (M, 3, H, W) of the same size, or a list; None for `images` themselves.
            memory_MiB: Memory limit, in addition to the images and the result.

        Returns:
            Distances (N, N), symmetric, with zeros on the diagonal; or (N, M) with `others`.

        Raises:
            ImageError: The images are not supported, or sizes differ.
            ConfigError: `memory_MiB` is not above 0.

        Example:
            >>> import torch, fastdps
            >>> m = fastdps.load("alexnet")
            >>> images = torch.rand(4, 3, 64, 64)
            >>> torch.allclose(m.matrix(images)[0, 1:], m(images[:1], images[1:]), atol=1e-5)
            True
        """
        batch, memory_bytes = self._batched(images, "images"), mebibytes(memory_MiB)
        if others is None:
            with SizeErrors(self.metric.backbone, batch):
                return distance_matrix(self.metric, batch, memory_bytes=memory_bytes)
        second = self._batched(others, "others")
        check_same_size(batch[:1], second[:1], ("images", "others"))
        with SizeErrors(self.metric.backbone, batch):
            return distances_between(self.metric, batch, second, memory_bytes=memory_bytes)

    def embed(self, images: Images) -> Tensor:
        """Return vectors whose squared Euclidean distances are the distances of the metric. No gradients.

        They fit into any library for nearest neighbours or clustering. Squaring does not change who is nearest.

        Args:
            images: Images (N, 3, H, W), or a list of images.

        Returns:
            Vectors (N, F), float32. F grows with the image size: 31,872 for AlexNet at 64 x 64.

        Raises:
            ImageError: The images are not supported.

        Example:
            >>> import torch, fastdps
            >>> m = fastdps.load("alexnet")
            >>> images = torch.rand(4, 3, 64, 64)
            >>> torch.allclose(torch.cdist(m.embed(images), m.embed(images)) ** 2, m.matrix(images), atol=1e-4)
            True
        """
        batch = self._batched(images, "images")
        with SizeErrors(self.metric.backbone, batch):
            return embeddings(self.metric, batch)

    def push_to_hub(
        self,
        repository: str,
        *,
        licence: str = "other",
        private: bool | None = None,
        tag: str | None = None,
        token: str | None = None,
    ) -> str:
        """Push the metric to the Hugging Face hub, with its model card; see `fastdps.push_to_hub`.

        Args:
            repository: "user/name", created if it does not exist.
            licence: The identifier of a licence on the hub, such as "apache-2.0"; "other" refers to the card.
            private: Only you see a new repository; None for the default of your account.
            tag: A tag to give to the commit.
            token: A token that may write; None for $HF_TOKEN or the one of `hf auth login`.

        Returns:
            The address that `fastdps.load` loads exactly this metric from.

        Raises:
            ConfigError: The name cannot be used, huggingface_hub is not installed, or there is no token.
            FastDPSError: The hub cannot be reached, or does not accept the files.

        Example:
            >>> fastdps.load("runs/food").push_to_hub("anna/food")  # doctest: +SKIP
            'hub:anna/food@0123456789abcdef0123456789abcdef01234567'
        """
        import fastdps  # called as users do: exports know metrics, and not the other way round

        pushed = fastdps.push_to_hub(self, repository, licence=licence, private=private, tag=tag, token=token)
        return pushed.address

    def extra_repr(self) -> str:
        """Return the backbone, comparison and context for `repr`."""
        context = self.describe_context() if self.context is None else ",".join(self.context)
        if self.judge is not None:
            context = f"adapted to the {context}"
        scores = "".join(f"\n{score}" for score in self.metric.origin.scores)
        return f"{self.metric.backbone.name}, {self.metric.comparison}: {context}{scores}"

    def _repr_html_(self) -> str:
        """Return the properties of the metric as a table, for notebooks."""
        origin, size = self.metric.origin, self.size
        rows = {
            "backbone": f"{self.metric.backbone.name}, taps {', '.join(map(str, self.metric.backbone.taps))}",
            "comparison": self.metric.comparison,
            "context": self.describe_context(),
            "image size": "not known" if size is None else f"{size[0]} x {size[1]} pixels",
            "adapted with": None if origin.version is None else f"fastdps {origin.version}",
            "training data, sha256": origin.data_sha256 and origin.data_sha256[:16],
            "scores": "; ".join(map(str, origin.scores)),
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items() if text)
        return f"<table>{cells}</table>"

    def describe_context(self, shorten: Callable[[str], str] = str) -> str:
        """Return the context in words.

        Args:
            shorten: Applied to the name of a judge.
        """
        if self.context is not None:
            return ", ".join(self.context)
        if self.judge is not None:
            return f"judgements of {shorten(self.judge)}"
        return "adapted to judgements" if self.is_adapted else "not adapted"

    def _batched(self, images: Images, name: str) -> Tensor:
        return batched(images, name, check_values=self.check_values, size=self.size)

    def _ready(self, batch: Tensor) -> Tensor:
        own = self.metric.backbone.mean
        return to_unit_range(batch, own.device, own.dtype)

    def _means(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the first moments (N, C) of pairs of batches, one of which may be a single image."""
        if len(x) == len(y) and _one_is_fixed(x, y):
            return means_between(*self._features(x, y), self.metric.comparison)
        if len(x) == len(y):
            views = torch.stack([self._ready(x), self._ready(y)], dim=1)
        else:  # one reference, with all others as its distorted versions: its features are computed once
            one, others = (x, y) if len(x) == 1 else (y, x)
            views = torch.cat([self._ready(one), self._ready(others)])[None]
        with SizeErrors(self.metric.backbone, x):
            return self.metric.moments(views).mean.flatten(0, 1)

    def _maps(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance maps (N, L, H, W) of pairs of batches."""
        return distance_maps(self.metric, *self._features(x, y), (x.shape[2], x.shape[3]))

    def _features(self, x: Tensor, y: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the features of two batches."""
        with SizeErrors(self.metric.backbone, x):
            if _one_is_fixed(x, y):
                return self.metric.backbone(self._ready(x)), self.metric.backbone(self._ready(y))
            features = self.metric.backbone(torch.cat([self._ready(x), self._ready(y)]))
        in_x, in_y = zip(*(feature.split([len(x), len(y)]) for feature in features), strict=True)
        return in_x, in_y


def _one_is_fixed(x: Tensor, y: Tensor) -> bool:
    """Return True as a loss. In one pass autograd would also go back through the backbone for the fixed image."""
    return torch.is_grad_enabled() and x.requires_grad != y.requires_grad
