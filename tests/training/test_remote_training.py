"""Training and scoring from a web server and from object storage that fail now and then, with a cache of two shards."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.shards import storage
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import open_store
from helpers.judged_sets import noise_set
from helpers.servers import Faults, failing_proxy, guarded_server

RANKINGS = ";".join(",".join(ranking) for ranking in sample_rankings(2, NAMES, seed=3))


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(storage, "PIECE_BYTES", 20_000)


@pytest.fixture
def leaves(web) -> Path:
    """A set of 32 training images in four shards and 8 held-out ones, on a web server."""
    out = web[0] / "leaves"
    pack(DeadLeaves(40, 32, seed=1), out, PackOptions(size=32, holdout=0.2, samples_per_shard=8), workers=1)
    noise_set(out / "bapps" / "2afc" / "val" / "cnn", "triplets", 5)
    noise_set(out / "bapps" / "jnd" / "val" / "cnn", "pairs", 5)
    return out


@pytest.fixture
def here(leaves, tmp_path):
    """The run on the same sets here, with a validation in each epoch."""
    return run_and_score(str(leaves), tmp_path / "here")


def run_and_score(source: str, out: Path, cache: Path | None = None, size: int = 0) -> Path:
    """Train, with a cache of `size` bytes, and score, with one that holds the votes, too."""
    options = ["--cache-dir", str(cache), "--cache-size", str(size)] if cache else []
    train = ["train", "--shards", f"{source}/train", "--validation", f"{source}/val", "--out", str(out)]
    assert cli.main([*train, "--contexts", RANKINGS, "--batch-size", "5", "--max-steps", "16", *options]) == 0
    if cache:
        assert 0 < sum(path.stat().st_size for path in cache.rglob("*.tar")) <= size
        options[-1] = "1MB"
    held_out = ["--shards", f"{source}/val", "--bapps", f"{source}/bapps"]
    assert cli.main(["evaluate", str(out), *held_out, "--draws", "1", *options]) == 0
    return out


def assert_same(run: Path, expected: Path) -> None:
    weights, own = load_file(expected / "metric.safetensors"), load_file(run / "metric.safetensors")
    assert weights.keys() == own.keys()
    assert all(torch.equal(own[name], weights[name]) for name in own)
    scores = [json.loads((one / "scores.json").read_text()) | {"throughput": None} for one in (run, expected)]
    for content in scores:
        for scored in content["sets"]:
            del scored["path"]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["web", "bucket"])
def test_the_same_heads_and_scores_as_from_files_here(place, leaves, here, web, tmp_path, request, s3_port, s3_at):
    two_shards = sum(sorted(shard.bytes for shard in read_manifest(leaves / "train").shards)[-2:])
    faults = Faults(0.1, slow_s=0.1)
    if place == "bucket":
        source, port = f"{request.getfixturevalue('bucket')}/leaves", s3_port
        for path in leaves.rglob("*.*"):
            store = open_store(f"{source}/{path.parent.relative_to(leaves).as_posix()}")
            store.put(path.name, path)
    else:
        port = int(web[1].rpartition(":")[2])
    with failing_proxy(port, faults) as failing:
        if place == "bucket":
            s3_at(failing)
        else:
            source = f"http://127.0.0.1:{failing}/leaves"
        away = run_and_score(source, tmp_path / "away", tmp_path / "cache", two_shards)
    assert all(faults.done[kind] for kind in Faults.KINDS), faults.done
    assert_same(away, here)
    assert json.loads((away / "config.json").read_text())["data"]["shards"] == f"{source}/train"
    # The same set, wherever it lies: a run that was begun from one place goes on, or is found finished, from another.
    again = ["train", "--shards", str(leaves / "train"), "--validation", str(leaves / "val"), "--out", str(away)]
    assert cli.main([*again, "--contexts", RANKINGS, "--batch-size", "5", "--max-steps", "16"]) == 0
    assert cli.main(["gallery", f"{leaves}/train", "--out", str(tmp_path / "grid.png"), "--samples", "4"]) == 0
    assert cli.main(["report", str(away)]) == 0


def test_credentials_are_nowhere_in_a_run(leaves, tmp_path, capfd, caplog):
    """Neither in the files of the run, nor in the report, nor in what the commands print."""
    with guarded_server(leaves, login="me:pass-phrase", token="to-ken") as port:
        source = f"http://me:pass-phrase@127.0.0.1:{port}/{{}}?token=to-ken"
        out = tmp_path / "run"
        cache = ["--cache-dir", str(tmp_path / "cache"), "--cache-size", "1MB"]
        train = ["train", "--shards", source.format("train"), "--validation", source.format("val"), "--out", str(out)]
        assert cli.main([*train, "--contexts", RANKINGS, "--batch-size", "5", "--max-steps", "2", *cache]) == 0
        held_out = ["--shards", source.format("val"), "--bapps", source.format("bapps")]
        assert cli.main(["evaluate", str(out), *held_out, "--draws", "1", *cache]) == 0
        assert cli.main(["report", str(out)]) == 0
        assert cli.main([*train[:2], source.format("missing"), "--out", str(tmp_path / "other")]) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "web" not in path.parts]
    assert {"config.json", "details.json", "report.html", "scores.json"} <= {path.name for path in files}
    shown = {str(path): path.read_text(encoding="latin-1") for path in files}
    captured = capfd.readouterr()
    shown |= {"output": captured.out + captured.err, "log": caplog.text, "names": " ".join(shown)}
    assert not [
        (name, secret) for name, text in shown.items() for secret in ("pass-phrase", "to-ken") if secret in text
    ]
    assert f"http://127.0.0.1:{port}/train?token=***" in shown[str(out / "config.json")]
    assert f"http://127.0.0.1:{port}/val?token=***" in shown[str(out / "details.json")]


def test_the_report_of_an_old_run_hides_credentials(leaves, tmp_path):
    """fastdps 0.1.0 wrote them into config.json."""
    out = tmp_path / "run"
    assert cli.main(["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    config["data"]["shards"] = "https://me:pass-phrase@host/train?token=to-ken"
    (out / "config.json").write_text(json.dumps(config))
    (out / "metric.safetensors").unlink()  # so that the report shows the command that resumes
    assert cli.main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "https://host/train" in page
    assert "pass-phrase" not in page
    assert "to-ken" not in page
