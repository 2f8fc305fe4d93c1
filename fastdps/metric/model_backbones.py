"""Backbones of other libraries, through an adapter: models of timm and registered ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdps.errors import ConfigError, WeightsNotFoundError
from fastdps.metric.adapters import TIMM, BackboneAdapter, adapter_of
from fastdps.metric.backbones import Backbone, StartingWeights, checked_taps, split_taps
from fastdps.metric.weights import load_pretrained

#: Side in pixels of the image on which the channels of the taps are measured.
_PROBE = 64
_MODEL = "model."


class ModelBackbone(Backbone):
    """A model of another library; see `Backbone`. Its tensors have the library's names after "model."."""

    def _build(self, name: str, taps: Sequence[int] | None, start: StartingWeights) -> None:
        self.name, taps = split_taps(name, taps)
        adapter = self._adapter
        self.taps = _check_taps(self.name, adapter, taps)
        self.library = adapter.library
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(start.seed)
            self.model = _built(adapter, self.taps)
        self._keep_outputs()
        self.train(self.training)
        self._set_normalisation(adapter.mean, adapter.std)
        if start.state is not None:
            self._load(start.state, "the given state")
        elif start.pretrained:
            found = _pretrained(self.name, adapter, [key.removeprefix(_MODEL) for key in self.state_dict()])
            self._load({_MODEL + key: tensor for key, tensor in found.items()}, f"the weights found for {self.name}")
        else:
            self._measure_statistics(start.seed)
        with torch.inference_mode():
            self.channels = tuple(maps.shape[1] for maps in self._maps(torch.zeros(1, 3, _PROBE, _PROBE)))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def probe(cls, name: str, taps: Sequence[int] | None) -> Callable[[int, int], object]:
        """Return a function that runs the model on an image without data; see `Backbone.probe`."""
        name, taps = split_taps(name, taps)
        adapter = _adapter_named(name)
        used = _check_taps(name, adapter, taps)
        try:
            with torch.device("meta"):
                model, device = _built(adapter, used).eval(), "meta"
        except NotImplementedError:  # some compute with tensors in their constructor
            model, device = _built(adapter, used).eval(), "cpu"

        def run(height: int, width: int) -> object:
            images = torch.zeros(1, 3, height, width, device=device)
            return adapter.features(model, _fitted(images, adapter), used)

        return run

    @property
    def _adapter(self) -> BackboneAdapter:
        """The adapter, looked up by name, so that the backbone can be pickled."""
        return _adapter_named(self.name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps (n, C_l, H_l, W_l) of images (n, 3, H, W) in [0, 1], the shallowest tap first."""
        return self._maps((images - self.mean) / self.std)

    def _maps(self, normalized: Tensor) -> list[Tensor]:
        adapter = self._adapter
        x = _fitted(normalized, adapter)
        if not torch.compiler.is_exporting():
            x = x.contiguous(memory_format=torch.channels_last)
        maps = list(adapter.features(self.model, x, self.taps))
        if len(maps) != len(self.taps) or any(one.dim() != 4 for one in maps):
            shapes = ", ".join(str(tuple(one.shape)) for one in maps)
            raise ConfigError(
                f"{self.name} returned features of shapes {shapes}, not one map (n, channels, height, width) for each "
                f"of its taps {', '.join(map(str, self.taps))}. Correct `features` of its adapter."
            )
        return maps


def _adapter_named(name: str) -> BackboneAdapter:
    adapter = adapter_of(name)
    if adapter is None:
        raise ConfigError(
            f"The backbone {name} is not registered in this process: call fastdps.register_backbone first."
        )
    return adapter


def _built(adapter: BackboneAdapter, taps: tuple[int, ...]) -> nn.Module:
    """Return the model of an adapter with its random initialisation, truncated after the last tap."""
    model = adapter.build()
    if adapter.truncate is not None:
        adapter.truncate(model, taps)
    return model


def _pretrained(name: str, adapter: BackboneAdapter, keys: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the pretrained tensors of a model, those of timm checked as `fastdps.metric.weights` does."""
    if name.startswith(TIMM):
        return load_pretrained(name, keys)
    if adapter.weights is None:
        raise WeightsNotFoundError(f"The backbone {name} was registered without weights: give its adapter `weights`.")
    return adapter.weights()


def _check_taps(name: str, adapter: BackboneAdapter, taps: Sequence[int] | None) -> tuple[int, ...]:
    chosen = adapter.taps if taps is None else taps
    count = adapter.tap_count if adapter.tap_count is not None else max([0, *chosen]) + 1
    return checked_taps(name, chosen, [str(tap) for tap in range(count)])


def _fitted(images: Tensor, adapter: BackboneAdapter) -> Tensor:
    """Return images scaled to a size that the model takes.

    The size is not compared with that of the images when exporting: a program would then be for one size only.
    """
    height, width = images.shape[2:]
    size, multiple = adapter.size, adapter.multiple
    if size is None and multiple == 1:
        return images
    if size is None:
        # Of whole numbers above 0, since the division of ONNX rounds towards 0.
        up = multiple - 1
        size = ((height + up) // multiple * multiple, (width + up) // multiple * multiple)
    if not torch.compiler.is_exporting() and size == (height, width):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
