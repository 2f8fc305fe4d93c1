"""The file of a metric: its format, and reading and writing it.

A metric file is a safetensors file. It holds `weights` (K, C), the tensors of the backbone as `backbone.<name>` if the
backbone is included, and metadata, all strings:

    format, format_version    FORMAT and FORMAT_VERSION
    backbone, taps            name of the network, see `fastdps.metric.backbones`, and JSON: the indices of its taps
    backbone_library          name and version of the library of the network, for information; missing in older files
    backbone_weights          "included", or "pretrained": looked up by `fastdps.metric.weights`
    backbone_sha256           hash of the backbone's tensors, in either case
    comparison, channels      see `fastdps.metric.distances`, and JSON: the channels of every tap; their sum is C
    rankings                  JSON: K lists of names, least disruptive first, or an empty list
    judges                    JSON: K names of judges, if the metric was adapted to judgements; else missing
    image_size, ...           where it comes from, see `fastdps.metric.origin`
    tensors_sha256            hash of all tensors of the file
    metadata_sha256           hash of all other metadata

Files of fastdps 0.1.0 lack the last two, and are not compared with them.

Shapes: C channels of all taps, K contexts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastdps.contexts.rankings import Ranking
from fastdps.errors import FastDPSError
from fastdps.metric.weights import tensors_sha256
from fastdps.runtime.files import atomic_write
from fastdps.runtime.json_files import Filled, check, parse_json

FORMAT = "fastdps-metric"
FORMAT_VERSION = 1
INCLUDED, PRETRAINED = "included", "pretrained"
_TENSORS_HASH, _METADATA_HASH = "tensors_sha256", "metadata_sha256"


def write_metric_file(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write a metric file, with format, version and hashes beside the given metadata.

    Args:
        path: The file.
        metadata: The metadata of the metric.
        tensors: `weights` and, with the backbone, its tensors.

    Raises:
        FastDPSError: The file cannot be written.
    """
    # Row-major copies, because safetensors knows no channels-last.
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION)} | dict(metadata)
    metadata[_TENSORS_HASH] = tensors_sha256(tensors)
    metadata[_METADATA_HASH] = _metadata_sha256(metadata)
    content = save(tensors, metadata)
    with atomic_write(path) as file:
        file.write(content)


def read_metric_file(path: Path, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata of a metric file and, if `tensors` is set, its tensors.

    Args:
        path: The file.
        tensors: Read the tensors too, and compare their hash.

    Returns:
        The metadata, and the tensors by name; empty if `tensors` is not set.

    Raises:
        FastDPSError: The file is missing, damaged, not a metric, or of a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FastDPSError(f"{path} is not a metric of fastdps: its metadata do not name {FORMAT!r}.")
            if metadata.get("format_version") != str(FORMAT_VERSION):
                raise FastDPSError(
                    f"{path} has format version {metadata.get('format_version')}, but this fastdps reads version "
                    f"{FORMAT_VERSION}. Update fastdps."
                )
            state = {key: file.get_tensor(key) for key in file.keys() if tensors}  # noqa: SIM118
    except FileNotFoundError:
        raise FastDPSError(f"{path} does not exist. `fastdps train` writes it when training ends.") from None
    except (OSError, SafetensorError) as error:
        raise FastDPSError(f"{path} cannot be read as a metric: {error}. Restore it or train again.") from error
    hashes = {_METADATA_HASH: _metadata_sha256(metadata)}
    if tensors and _TENSORS_HASH in metadata:
        hashes[_TENSORS_HASH] = tensors_sha256(state)
    for key, actual in hashes.items():
        if metadata.get(key, actual) != actual:
            raise FastDPSError(
                f"{path} is damaged: the hash of its {key.removesuffix('_sha256')} is {actual}, but its metadata say "
                f"{metadata[key]}. Restore it or train again."
            )
    return metadata, state


def read_contexts(path: str | Path) -> tuple[list[Ranking], list[str]]:
    """Return the contexts of a metric file, in order, without reading its tensors.

    Returns:
        The rankings and the judges; one of them is empty, both for a metric with one context without a name.

    Raises:
        FastDPSError: The file is missing, damaged or not a metric.
    """
    metadata, _ = read_metric_file(Path(path), tensors=False)
    try:
        return rankings_in(metadata), judges_in(metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise FastDPSError(f"{path} is incomplete: {error!r} in its metadata. Restore it or train again.") from error


def read_tensors_sha256(path: str | Path) -> str | None:
    """Return the hash of the tensors that a metric file states; None for files of 0.1.0. Raises `FastDPSError`."""
    return read_metric_file(Path(path), tensors=False)[0].get(_TENSORS_HASH)


def includes_backbone(path: str | Path) -> bool:
    """Return True if a metric file includes its backbone, which is not the pretrained one. Raises `FastDPSError`."""
    return read_metric_file(Path(path), tensors=False)[0].get("backbone_weights") == INCLUDED


def rankings_in(metadata: dict[str, str]) -> list[Ranking]:
    """Return the rankings in the metadata of a file, all of the same names. Raises `KeyError` or `ValueError`."""
    rankings = parse_json(metadata["rankings"])
    check(rankings, [Filled(str)], "rankings")
    for ranking in rankings:
        if len(set(ranking)) != len(ranking) or set(ranking) != set(rankings[0]):
            raise ValueError(f"{ranking} is not a ranking")
    return [tuple(ranking) for ranking in rankings]


def judges_in(metadata: dict[str, str]) -> list[str]:
    """Return the judges in the metadata of a file, which differ. Raises `ValueError`."""
    judges: list[str] = parse_json(metadata.get("judges", "[]"))
    check(judges, [str], "judges")
    if len(set(judges)) < len(judges):
        raise ValueError("a judge is named twice")
    return judges


def checked_weights(weights: Tensor, path: str | Path) -> Tensor:
    """Return the weights of a file as float32. Raises `FastDPSError` if they cannot be weights of a metric."""
    if not weights.is_floating_point():
        fault = f"are {str(weights.dtype).removeprefix('torch.')}, not floating"
    elif weights.dim() != 2 or not len(weights):
        fault = f"have the shape {tuple(weights.shape)}, not (K, C) with K at least 1"
    elif not (weights := weights.float()).isfinite().all():
        fault = "are not all finite"
    elif (weights < 0).any():
        fault = "are not all at least 0"
    else:
        return weights
    raise FastDPSError(f"{path} is damaged: its weights {fault}. Restore it or train again.")


def _metadata_sha256(metadata: Mapping[str, str]) -> str:
    """Return the sha256 of the metadata without this hash, independent of their order."""
    content = sorted((key, value) for key, value in metadata.items() if key != _METADATA_HASH)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
