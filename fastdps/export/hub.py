"""Push metrics to the Hugging Face hub, from which `fastdps.load("hub:user/name")` loads them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch

from fastdps.errors import ConfigError
from fastdps.export.card import finish
from fastdps.export.format import Distances, Format
from fastdps.export.hub_card import describe_all, hub_card
from fastdps.export.lpips_checkpoint import is_pretrained
from fastdps.export.write import Verified, verify
from fastdps.metric.hub import PREFIX, check_repository, upload
from fastdps.metric.hub_metric import FORMAT, FORMAT_VERSION, MANIFEST, METRIC, METRICS, HubContext
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.load import Context, ContextLocation, list_contexts, load_with_location
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.published import is_published
from fastdps.metric.weights import tensors_sha256
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import json_text

README = "README.md"
#: What may be pushed.
Source = str | PathLike[str] | ImageMetric | PerceptualMetric


class HubFormat(Format):
    """Metric files of fastdps in a repository of the hub."""

    name = "hub"
    suffix = ".safetensors"
    library = "fastdps"
    inputs = "tensors (N, 3, H, W), RGB uint8 or float in [0, 1]; paths, PIL images and arrays (H, W, 3)"
    usage = """import fastdps

metric = fastdps.load("hub:{file}"{context})
distances = metric(x, y)"""

    def check(self, metric: PerceptualMetric) -> None:
        """Accept every metric."""

    def write(self, metric: PerceptualMetric, path: Path, card: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Write the heads, and the backbone if it is not the pretrained one."""
        metric.save(path, include_backbone=not is_pretrained(metric.backbone))

    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:  # noqa: ARG002
        """Load the file as `fastdps.load` does."""
        loaded = PerceptualMetric.load(path)
        return lambda x, y: loaded(x, y)[:, 0]

    def usage_of(self, metric: PerceptualMetric, file: str) -> str:
        """Return lines of Python that load the metric, with one of its contexts if it has several."""
        names = [*metric.judges, *(",".join(ranking) for ranking in metric.rankings)]
        return self.usage.format(file=file, context=f", context={names[0]!r}" if len(names) > 1 else "")


@dataclass(frozen=True)
class Pushed:
    """A metric that was pushed to the hub.

    Attributes:
        repository: "user/name".
        commit: The commit that has it.
        url: The page of the commit.
        contexts: The number of its contexts.
        card: Its model card.
    """

    repository: str
    commit: str
    url: str
    contexts: int
    card: Mapping[str, Any]

    @property
    def address(self) -> str:
        """What `fastdps.load` loads exactly this metric from, also after the next push."""
        return f"{PREFIX}{self.repository}@{self.commit}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return asdict(self) | {"address": self.address}


def push_to_hub(
    source: Source,
    repository: str,
    *,
    context: Context | None = None,
    licence: str = "other",
    private: bool | None = None,
    tag: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Push a metric to the Hugging Face hub, with a model card.

    The repository gets the metric as safetensors, a list of its contexts with the sha256 of each file, and the model
    card: context, training data, scores before and after, licence. Before the upload the files are read back, and their
    distances compared. The next push makes a new commit; earlier ones stay.

    Args:
        source: A run directory, a metric file, the name of a backbone, or a loaded metric.
        repository: "user/name", created if it does not exist.
        context: The context to push; None for all contexts of the source.
        licence: The identifier of a licence on the hub, such as "apache-2.0"; "other" refers to the card.
        private: Only you see a new repository; None for the default of your account.
        tag: A tag to give to the commit, to load the metric by: "hub:user/name@tag".
        token: A token that may write; None for $HF_TOKEN or the one of `hf auth login`.

    Returns:
        The commit, and the address to load exactly this metric from.

    Raises:
        ConfigError: The source, the context or the repository's name cannot be used, huggingface_hub is not installed,
            or there is no token.
        FastDPSError: The source cannot be read, or the hub cannot be reached or does not accept the files.

    Example:
        >>> push_to_hub("runs/food", "anna/food").address  # doctest: +SKIP
        'hub:anna/food@0123456789abcdef0123456789abcdef01234567'
    """
    check_repository(repository)
    with tempfile.TemporaryDirectory(prefix="fastdps-push-") as folder:
        written = _write(_parts(source, context), Path(folder))
        places = [ContextLocation(Path(one.file), one.row, one.ranking, one.judge) for one in written.contexts]
        known = describe_all(written.first, places, _run_of(written.first))
        card = finish(known, HubFormat(), written.first, repository, written.verified)
        texts = {MANIFEST: json_text(_manifest(written, card)), README: hub_card(card, repository, licence)}
        files = {name: Path(folder, name) for name in (*written.files, *texts)}
        for name, text in texts.items():
            files[name].write_text(text, encoding="utf-8")
        message = f"Metric of fastdps {version('fastdps')}"
        commit, url = upload(repository, files, message, private=private, tag=tag, token=token)
    return Pushed(repository, commit, url, len(places), card)


@dataclass(frozen=True)
class _Written:
    """Metric files in a folder.

    Attributes:
        files: The sha256 of each file, by its name.
        contexts: The contexts of all files.
        first: The metric of the first file.
        verified: Result of the comparison of its distances.
    """

    files: Mapping[str, str]
    contexts: Sequence[HubContext]
    first: PerceptualMetric
    verified: Verified


def _parts(source: Source, context: Context | None) -> Sequence[PerceptualMetric | Path]:
    """Return a metric, or the metric files of a run."""
    if isinstance(source, ImageMetric | PerceptualMetric):
        if context is not None:
            raise ConfigError("A loaded metric is pushed as it is: leave the context out, or give it to load().")
        return [source.metric if isinstance(source, ImageMetric) else source]
    text = fspath(source)
    if context is not None or is_published(text) or text.startswith(PREFIX):
        return [load_with_location(text, context)[0].metric]
    return list(dict.fromkeys(place.path for place in list_contexts(Path(text))))


def _write(parts: Sequence[PerceptualMetric | Path], folder: Path) -> _Written:
    """Write metrics into a folder one after another, and read them back."""
    form = HubFormat()
    files: dict[str, str] = {}
    contexts: list[HubContext] = []
    first: tuple[PerceptualMetric, Verified] | None = None
    (folder / METRICS).mkdir()
    for number, part in enumerate(parts):
        metric = PerceptualMetric.load(part) if isinstance(part, Path) else part
        name = METRIC if len(parts) == 1 else f"{METRICS}/{number:03d}.safetensors"
        form.write(metric, folder / name, {})
        verified = verify(metric, form, form.read_back(metric, folder / name))
        files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        contexts += [HubContext(name, place.row, place.ranking, place.judge) for place in list_contexts(folder / name)]
        first = first or (metric, verified)
    assert first is not None  # a source has at least one metric
    return _Written(files, contexts, *first)


def _manifest(written: _Written, card: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": [{"name": name, "sha256": digest} for name, digest in written.files.items()],
        "contexts": [one.to_dict() for one in written.contexts],
        "card": dict(card),
    }


def _run_of(metric: PerceptualMetric) -> RunDirectory | None:
    """Return the run whose file a metric was loaded from, None if there is none or the metric was changed since."""
    file = metric.origin.file
    if file is None or not file.exists():
        return None
    run = RunDirectory.of_metric(file)
    return run if run.config.exists() and _is_saved(metric, file) else None


def _is_saved(metric: PerceptualMetric, file: Path) -> bool:
    """Return True if a file has all contexts of a metric, and the same weights of them."""
    saved = PerceptualMetric.load(file)
    names, own = ([*one.rankings, *one.judges] or [""] for one in (saved, metric))
    if any(name not in names for name in own):
        return False
    weights = saved.weights[[names.index(name) for name in own]]
    backbones = [tensors_sha256(one.backbone.state_dict()) for one in (saved, metric)]
    return torch.equal(weights, metric.weights.cpu()) and backbones[0] == backbones[1]
