"""Backbones side by side: the taps of each follow those of the one before it, and heads choose among all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fastdps.errors import ConfigError
from fastdps.metric.adapters import BESIDE
from fastdps.metric.backbones import Backbone, StartingWeights, backbone_class

#: Each part normalises the images by itself.
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class CombinedBackbone(Backbone):
    """Two or more backbones; see `Backbone`. Its taps are numbered through; each part names its own with `@`.

    Example:
        >>> both = Backbone("alexnet+resnet18@4,7", pretrained=False)
        >>> both.channels, both.taps
        ((64, 192, 384, 256, 256, 64, 512), (0, 1, 2, 3, 4, 5, 6))
    """

    def _build(self, name: str, taps: Sequence[int] | None, start: StartingWeights) -> None:
        parts = []
        for number, part in enumerate(_names_in(name)):
            prefix = f"parts.{number}."
            own = start.state and {
                key.removeprefix(prefix): x for key, x in start.state.items() if key.startswith(prefix)
            }
            parts.append(Backbone(part, pretrained=start.pretrained, seed=start.seed, state=own))
        self.name = name
        self.parts = nn.ModuleList(parts)
        self.channels = tuple(channels for part in parts for channels in part.channels)
        self.taps = _numbered(name, len(self.channels), taps)
        self.library = ", ".join(dict.fromkeys(part.library for part in parts))
        self._set_normalisation(_ZERO, _ONE)
        self.train(self.training)

    @classmethod
    def probe(cls, name: str, taps: Sequence[int] | None) -> Callable[[int, int], object]:
        """Return a function that runs all parts on an image without data; see `Backbone.probe`."""
        runs = [backbone_class(part).probe(part, None) for part in _names_in(name)]
        if taps is not None:
            _numbered(name, len(taps), taps)
        return lambda height, width: [run(height, width) for run in runs]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps (n, C_l, H_l, W_l) of images (n, 3, H, W) in [0, 1], one part after the other."""
        return [maps for part in self.parts for maps in part(images)]

    def portable(self, images: Tensor) -> list[Tensor]:
        """Return what `forward` returns, by operations that every export format supports."""
        return [maps for part in self.parts if isinstance(part, Backbone) for maps in part.portable(images)]


def _names_in(name: str) -> list[str]:
    """Return the names of the parts. Raises `ConfigError` if one is missing or repeated."""
    names = name.split(BESIDE)
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{name!r} must name different backbones, such as alexnet{BESIDE}vgg16.")
    return names


def _numbered(name: str, count: int, taps: Sequence[int] | None) -> tuple[int, ...]:
    """Return the numbers of all taps. Raises `ConfigError` if `taps` are others."""
    numbers = tuple(range(count))
    if taps is not None and tuple(taps) != numbers:
        raise ConfigError(
            f"Taps of {name} are chosen within its name, such as alexnet@1,4{BESIDE}vgg16@15, not as "
            f"{', '.join(map(str, taps))}."
        )
    return numbers
