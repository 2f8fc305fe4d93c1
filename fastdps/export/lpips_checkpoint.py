"""A checkpoint for `lpips.LPIPS(model_path=...)`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdps.errors import ConfigError, FastDPSError, WeightsNotFoundError
from fastdps.export.format import Distances, Format
from fastdps.metric.backbones import BACKBONES, Backbone
from fastdps.metric.lpips_format import heads_to_lpips
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import tensors_sha256

#: What LPIPS calls the backbones that it has.
NETS = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1_1": "squeeze"}
_NET, _FEATURES = "net.", "features."


@dataclass(frozen=True)
class LpipsCheckpoint(Format):
    """Heads, and the backbone with them where it was trained, or is asked for: LPIPS loads both.

    `with_backbone` is for machines where LPIPS cannot download what torchvision has.
    """

    with_backbone: bool = False

    name = "lpips"
    suffix = ".pth"
    library = "lpips"
    needs = ("lpips",)
    inputs = "two tensors (N, 3, H, W), RGB float in [-1, 1], or in [0, 1] with normalize=True; any N, H, W"
    usage = """import lpips

metric = lpips.LPIPS(net="{net}", model_path="{file}"{random})
distances = metric(x, y, normalize=True).flatten()"""

    def check(self, metric: PerceptualMetric) -> None:
        """LPIPS has three backbones, its own taps, and one comparison."""
        backbone = metric.backbone
        if backbone.name not in NETS:
            raise ConfigError(f"LPIPS has {', '.join(NETS)}, not {backbone.name}: choose --format onnx or torch.")
        if backbone.taps != BACKBONES[backbone.name].taps:
            raise ConfigError(
                f"LPIPS compares {backbone.name} at its taps {_listed(BACKBONES[backbone.name].taps)}, not at "
                f"{_listed(backbone.taps)}: choose --format onnx or torch."
            )
        if metric.comparison != "spatial":
            raise ConfigError(f"LPIPS does not compare by {metric.comparison}: choose --format onnx or torch.")

    def write(self, metric: PerceptualMetric, path: Path, card: Mapping[str, Any]) -> None:  # noqa: ARG002
        """The heads' keys, and with a trained backbone `net.*`, as LPIPS's own training saves them."""
        state = heads_to_lpips(metric.weights[:1], metric.channels)
        if self._holds_backbone(metric):
            state |= {_NET + key: tensor for key, tensor in _net_state(metric, _make(metric).net).items()}
        torch.save(state, path)

    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:
        """As its users load it, and then once more strictly, because LPIPS ignores keys that it does not know."""
        oracle = _make(metric, model_path=str(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        loaded = oracle.state_dict()
        if wrong := [key for key in state if key not in loaded or not torch.equal(loaded[key], state[key])]:
            raise FastDPSError(f"{path} was written, but LPIPS did not load {wrong[0]} from it.")
        heads = {key.removeprefix("lin"): tensor for key, tensor in state.items() if not key.startswith(_NET)}
        oracle.lins.load_state_dict(heads, strict=True)
        backbone = {key.removeprefix(_NET): tensor for key, tensor in state.items() if key.startswith(_NET)}
        oracle.net.load_state_dict(backbone or _net_state(metric, oracle.net), strict=True)
        return lambda x, y: oracle(x, y, normalize=True).flatten()

    def usage_of(self, metric: PerceptualMetric, file: str) -> str:
        """With the name that LPIPS has for the backbone."""
        random = ", pnet_rand=True" if self._holds_backbone(metric) else ""  # which downloads nothing
        return self.usage.format(file=file, net=NETS[metric.backbone.name], random=random)

    def _holds_backbone(self, metric: PerceptualMetric) -> bool:
        return self.with_backbone or not _is_pretrained(metric.backbone)


def _make(metric: PerceptualMetric, **options: str) -> Any:
    """An LPIPS with a random network, which downloads nothing."""
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # it calls torchvision and torch.load in ways that are deprecated
        return lpips.LPIPS(net=NETS[metric.backbone.name], pnet_rand=True, verbose=False, **options)


def _net_state(metric: PerceptualMetric, net: torch.nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors by LPIPS's names, `slice2.3.weight` for torchvision's `features.3.weight`."""
    theirs = {key.split(".", 1)[1]: key for key in net.state_dict()}
    own = metric.backbone.state_dict()
    return {theirs[key.removeprefix(_FEATURES)]: tensor.cpu().contiguous() for key, tensor in own.items()}


def _is_pretrained(backbone: Backbone) -> bool:
    """Whether the backbone is torchvision's, which LPIPS brings itself."""
    try:
        pretrained = Backbone(backbone.name, taps=backbone.taps).state_dict()
    except WeightsNotFoundError:
        return False  # then it cannot be known, and the file is whole with it
    return tensors_sha256(pretrained) == tensors_sha256(backbone.state_dict())


def _listed(taps: tuple[int, ...]) -> str:
    return ", ".join(map(str, taps))
