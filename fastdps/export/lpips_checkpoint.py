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

#: Names of the backbones of LPIPS, by their names in fastdps.
NETS = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1_1": "squeeze"}
_NET, _FEATURES = "net.", "features."


@dataclass(frozen=True)
class LpipsCheckpoint(Format):
    """A checkpoint of the heads, and of the backbone if it was trained or `with_backbone` is set; LPIPS loads both.

    Attributes:
        with_backbone: Include a pretrained backbone too, for machines where LPIPS cannot download it.
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
        """Raise `ConfigError` for a backbone, taps or a comparison that LPIPS does not have."""
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
        """Write the heads, and a backbone as `net.*`, with the keys of LPIPS's own training."""
        state = heads_to_lpips(metric.weights[:1], metric.channels)
        if self._holds_backbone(metric):
            state |= {_NET + key: tensor for key, tensor in _net_state(metric, _make(metric).net).items()}
        torch.save(state, path)

    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:
        """Load the file as users do, and then strictly, because LPIPS ignores unknown keys."""
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
        """Return lines of Python that use a file, with LPIPS's name of the backbone."""
        random = ", pnet_rand=True" if self._holds_backbone(metric) else ""  # a random backbone is not downloaded
        return self.usage.format(file=file, net=NETS[metric.backbone.name], random=random)

    def _holds_backbone(self, metric: PerceptualMetric) -> bool:
        return self.with_backbone or not is_pretrained(metric.backbone)


def _make(metric: PerceptualMetric, **options: str) -> Any:
    """Return an LPIPS with a random backbone, which is not downloaded."""
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # it uses deprecated arguments of torchvision and torch.load
        return lpips.LPIPS(net=NETS[metric.backbone.name], pnet_rand=True, verbose=False, **options)


def _net_state(metric: PerceptualMetric, net: torch.nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the backbone by LPIPS's names: `slice2.3.weight` for `features.3.weight` of torchvision."""
    theirs = {key.split(".", 1)[1]: key for key in net.state_dict()}
    own = metric.backbone.state_dict()
    return {theirs[key.removeprefix(_FEATURES)]: tensor.cpu().contiguous() for key, tensor in own.items()}


def is_pretrained(backbone: Backbone) -> bool:
    """Return True if the backbone is the pretrained one, which other machines find or download by themselves."""
    try:
        pretrained = Backbone(backbone.name, taps=backbone.taps).state_dict()
    except WeightsNotFoundError:
        return False  # unknown, and with the backbone the file is complete in any case
    return tensors_sha256(pretrained) == tensors_sha256(backbone.state_dict())


def _listed(taps: tuple[int, ...]) -> str:
    return ", ".join(map(str, taps))
