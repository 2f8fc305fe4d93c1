"""Seeded attacks on the files of a run: every reader either works or raises one `FastDPSError` that names a file."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import fastdps
from fastdps.contexts.distortions import NAMES
from fastdps.errors import FastDPSError
from fastdps.evaluation.evaluate import _require_same_run
from fastdps.evaluation.run_scores import RunScores, read_scores
from fastdps.export.card import describe, finish, to_markdown
from fastdps.export.export import FORMATS
from fastdps.export.write import Verified
from fastdps.metric.load import load_with_location
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import tensors_sha256
from fastdps.run_directory import RunDirectory
from fastdps.training.recipes import get_recipe
from fastdps.training.run_config import read_settings
from helpers.made_up_runs import CHANNELS, make_run
from helpers.mutations import DEEP, mutated_json

#: Mutated runs; `make attacks` raises it.
CASES = 100 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
RANKINGS = [list(NAMES), list(NAMES[::-1])]
JSON_FILES = ("config.json", "scores.json", "details.json")
#: Metadata without which a metric file is read as one of fastdps 0.1.0: with them each mutation would be one error.
HASHES = ("tensors_sha256", "metadata_sha256")


@pytest.fixture(scope="module")
def base(tmp_path_factory, weights_dir) -> Path:
    """A sound run whose metric can be loaded."""
    path = make_run(tmp_path_factory.mktemp("base") / "run", RANKINGS)
    content = json.loads((path / "config.json").read_text())
    content["config"] = get_recipe("fast", {}).to_json()
    (path / "config.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        backbone = fastdps.load("alexnet").metric.backbone
        rows = torch.rand(2, sum(CHANNELS), generator=torch.Generator().manual_seed(0))
        PerceptualMetric(backbone, rows, [tuple(ranking) for ranking in RANKINGS]).save(path / "metric.safetensors")
    return path


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return the bytes cut, with one flipped, repeated or replaced as a whole."""
    place = draw.randrange(len(content))
    return draw.choice(
        [
            content[:place],
            content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
            content + content[:place],
            b"",
            b"[]",
            b"null",
            b"\xff\xfe",
            DEEP.encode(),
            b'{"a":' + DEEP.encode(),
        ]
    )


def attack(run: Path, draw: random.Random) -> str:
    """Damage a run; return a description."""
    kind = draw.choice(["json", "json", "json", "log", "log", "bytes", "bytes", "metric", "directory"])
    if kind == "json":
        path = run / draw.choice(JSON_FILES)
        path.write_text(json.dumps(mutated_json(json.loads(path.read_text()), draw)))
    elif kind == "log":
        path = run / "log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        number = draw.randrange(len(lines))
        lines[number] = mutated_json(lines[number], draw)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif kind == "bytes":
        path = run / draw.choice((*JSON_FILES, "log.jsonl", "metric.safetensors"))
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    elif kind == "metric":
        path = run / draw.choice(["metric.safetensors", "metrics/x.safetensors", "metrics/007.safetensors"])
        with safe_open(run / "metric.safetensors", framework="np") as file:
            metadata = {key: value for key, value in file.metadata().items() if key not in HASHES}
        rankings = draw.choice([[], RANKINGS[:1], RANKINGS[::-1], [["a"] * 6], [[]], 7, [7], {"a": 1}])
        metadata |= {"rankings": json.dumps(rankings)}
        metadata |= draw.choice([{}, {}, {"channels": DEEP}, {"taps": "7"}, {"rankings": DEEP}, {"comparison": "x"}])
        path.parent.mkdir(exist_ok=True)
        weights = np.ones((draw.randrange(1, 4), sum(CHANNELS)), np.float32)
        save_file({"weights": weights}, path, metadata)
    else:
        path = run / draw.choice((*JSON_FILES, "log.jsonl", "metric.safetensors", "examples/0-7.png"))
        path.unlink()
        path.mkdir()
    return f"{kind} {path.name}"


def evaluation(run: Path) -> None:
    """Read what an evaluation reads, without computing distances."""
    directory = RunDirectory(run)
    config = read_settings(directory)
    metrics = [PerceptualMetric.load(path) for path in directory.metrics()]
    _require_same_run(directory, config, metrics)
    scores = read_scores(directory) or RunScores.unscored(config, directory)
    json.dumps(scores.to_dict()).encode()


def card(run: Path) -> None:
    loaded, place = load_with_location(run, RANKINGS[1])
    known = describe(loaded.metric, place, RunDirectory(run))
    verified = Verified(1, 0.0, 1.0)
    content = finish(known, FORMATS["torch"], loaded.metric, "m.pt2", verified)
    to_markdown(content).encode()
    json.dumps(content).encode()


READERS = {
    "report": lambda run: fastdps.report(run),
    "comparison": lambda run: fastdps.report([run, run.parent / "sound"], run.parent / "comparison.html"),
    "evaluation": evaluation,
    "load": lambda run: fastdps.load(run, RANKINGS[0]),
    "card": card,
}


def outcome(read, run: Path) -> str:
    """Return "works", "named error" or a description of the defect."""
    try:
        read(run)
    except FastDPSError as error:
        return "named error" if str(run) in str(error) else f"an error that names no file: {error}"
    except Exception as error:
        return f"traceback: {error!r}"[:300]
    return "works"


def test_readers_of_damaged_runs_work_or_raise_one_named_error(base, tmp_path, monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    backbone = PerceptualMetric.load(base / "metric.safetensors").backbone
    monkeypatch.setattr("fastdps.metric.perceptual.Backbone", lambda *_, **__: backbone)  # reading it takes most time
    monkeypatch.setattr("fastdps.metric.perceptual.tensors_sha256", _digest_of(base))
    shutil.copytree(base, tmp_path / "sound")
    assert {outcome(read, tmp_path / "sound") for read in READERS.values()} == {"works"}
    counts = {"works": 0, "named error": 0}
    defects = []
    for seed in range(CASES):
        run = tmp_path / f"run-{seed}"
        shutil.copytree(base, run)
        what = attack(run, random.Random(seed))
        for name, read in READERS.items():
            found = outcome(read, run)
            if found in counts:
                counts[found] += 1
            else:
                defects.append(f"seed {seed}, {what}, {name}: {found}")
        shutil.rmtree(run)
    print(f"{CASES} runs, {sum(counts.values())} readings: {counts}, {len(defects)} defects")
    assert not defects, "\n".join(defects)
    assert min(counts.values()) > CASES / 4


def _digest_of(base: Path):
    with safe_open(base / "metric.safetensors", framework="np") as file:
        digest = file.metadata()["backbone_sha256"]
    return lambda state: tensors_sha256(state) if "weights" in state else digest
