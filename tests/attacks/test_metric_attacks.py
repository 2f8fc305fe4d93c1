"""Mutated metric files, from fixed seeds: each is a named error, or the same metric, in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

import fastdps
from fastdps.metric.backbones import Backbone
from fastdps.metric.metric_file import read_contexts
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import tensors_sha256
from helpers.isolated import NAMED, Case, attack, expect
from helpers.mutations import DEEP, mutated, mutated_json

#: Mutated files; `make attacks` raises it.
FILES = 100 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
RANKINGS = [("blur", "rotate", "color"), ("color", "blur", "rotate")]
#: Metadata of which some are sound.
TEXTS = ["", "7", "[]", "[0]", "[[]]", "null", DEEP, "[-1]", "[1, 1]", "[1e0]", "spatial", "mean", "vgg16", "alexnet"]
TEXTS += ["included", "pretrained", "0" * 64, "é", "x" * 9999, '[["a"]]', '[["a"], ["a"]]', '{"a": 1}', "[true]", "NaN"]
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.uint8, torch.bool]
VALUES = [float("nan"), float("inf"), -float("inf"), -1e-30, -1.0, -0.0, 3e38]


@functools.cache
def images() -> torch.Tensor:
    return torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@functools.cache
def sound(include_backbone: bool) -> tuple[bytes, torch.Tensor]:
    """Return the content of a sound file, and the distances of its metric."""
    backbone = Backbone("alexnet", taps=(1, 3), pretrained=False)
    rows = torch.rand(2, 64 + 192, generator=torch.Generator().manual_seed(0))
    metric = PerceptualMetric(backbone, rows, RANKINGS)
    path = Path(os.environ["TMPDIR"]) / "sound.safetensors"
    metric.save(path, include_backbone=include_backbone)
    return path.read_bytes(), metric(*images())


def prepare() -> None:
    """Make the sound file once, in the server."""
    sound(True)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and its data."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def make_file(seed: int, directory: Path) -> Case:
    draw = random.Random(f"metrics {seed}")
    content, expected = sound(True)
    kind = draw.choice(["bytes", "bytes", "header", "metadata", "weights"])
    how, is_same = kind, True
    path = directory / "metric.safetensors"
    if kind == "bytes":
        how, damaged = mutated(content, draw, head=1500)
    elif kind == "header":
        header, data = header_of(content)
        damaged = with_header(mutated_json(header, draw), data)
    elif kind == "metadata":
        header, data = header_of(content)
        key = draw.choice([*header["__metadata__"], "x"])
        header["__metadata__"][key] = draw.choice(TEXTS)
        how = f"{key} = {header['__metadata__'][key][:40]!r}"
        if draw.random() < 0.5:  # a file of fastdps 0.1.0, where other sound metadata are another metric
            del header["__metadata__"]["metadata_sha256"]
            is_same, how = False, f"{how}, without a hash"
        damaged = with_header(header, data)
    else:
        how, damaged = with_other_weights(content, directory, draw)
        is_same = False
    path.write_bytes(damaged)
    readings: dict[str, Callable[[], object]] = {
        "load": lambda: load(path, expected if is_same else None),
        "rankings": lambda: read(path, is_same),
        "by name": lambda: fastdps.load(path, RANKINGS[1]),
    }
    # With other sound rankings, the wanted one does not exist.
    return Case(f"{kind}, {how}", (str(directory), "Unknown distortion 'color' in the ranking"), readings)


def with_other_weights(content: bytes, directory: Path, draw: random.Random) -> tuple[str, bytes]:
    """Return a file with other weights and the hash of its tensors, as a malicious writer would make it."""
    original = directory / "original.safetensors"
    original.write_bytes(content)
    with safe_open(original, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = draw.choice(["weights", "weights", "weights", *tensors])
    how = draw.choice(["type", "value", "value", "shape", "missing"])
    if how == "type":
        tensors[name] = tensors[name].to(draw.choice(DTYPES))
    elif how == "value":
        tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = draw.choice(
            VALUES if name == "weights" else VALUES[:-1]
        )
    elif how == "shape":
        shape = draw.choice([(0,), (1,), (2, 0), (0, 256), (1, 256), (3, 256), (2, 255), (2, 256, 1), ()])
        tensors[name] = torch.ones(shape)
    else:
        del tensors[name]
    del metadata["metadata_sha256"]
    metadata["tensors_sha256"] = tensors_sha256(tensors)
    if draw.random() < 0.5:
        state = {key.removeprefix("backbone."): value for key, value in tensors.items() if key != "weights"}
        metadata["backbone_sha256"] = tensors_sha256(state)
    return f"{how} of {name}", save(tensors, metadata)


def load(path: Path, expected: torch.Tensor | None) -> None:
    """Load the metric; its distances must be those of the sound file, or finite and at least 0."""
    metric = PerceptualMetric.load(path)
    found = metric(*images())
    if expected is None:
        expect(bool((metric.weights >= 0).all()), "weights below 0")
        expect(not found.isnan().any() and bool((found >= 0).all()), f"distances {found.tolist()}")
    else:
        expect(torch.equal(found, expected), f"distances {found.tolist()}, not {expected.tolist()}")
        expect(list(metric.rankings) == RANKINGS, f"rankings {metric.rankings}")


def read(path: Path, is_same: bool) -> None:
    """Read the rankings alone."""
    found = read_contexts(path)
    expect(not is_same or found == (RANKINGS, []), f"contexts {found}")


def test_mutated_metric_files_are_named_errors_or_the_same_metric(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with capfd.disabled():
        counts = attack(__file__, "make_file", range(FILES))
    assert counts[NAMED] > FILES
