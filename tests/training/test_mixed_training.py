"""Training on several shard sets by weight: what is recorded, resumed and said, and what cannot be mixed."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.commands import cli
from fastdps.commands.options import weighted_location
from fastdps.contexts.distortions import NAMES
from fastdps.errors import ConfigError
from fastdps.evaluation.scored_sets import seen_as
from fastdps.loading.loader import open_shards
from fastdps.loading.mixed import set_numbers
from fastdps.loading.spec import Batch
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import locate
from fastdps.training.recipes import get_recipe
from fastdps.training.resume import read_recorded
from fastdps.training.step import Stepper, split
from fastdps.training.tasks import RankingTask
from helpers.pages import Page
from helpers.shard_sets import raw_samples, write_set
from helpers.warm_python import launch_warm

RANKING = "color,darken,zoom_in,rotate,translate,blur"
OPTIONS = ["--contexts", RANKING, "--epochs", "2", "--batch-size", "8", "--loader", "portable"]


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """A directory with the sets a, of 24 images, and b, of 6."""
    root = tmp_path_factory.mktemp("sets")
    for name, images, seed in (("a", 32, 1), ("b", 8, 2)):
        pack(DeadLeaves(images, 32, seed=seed), root / name, PackOptions(size=32, holdout=0.25), workers=1)
    return root


def argv_of(sets: Path, out: Path, *options: str, shares: tuple[str, str] = ("0.6", "0.4")) -> list[str]:
    mixed = [f"--shards={sets / name / 'train'}:{share}" for name, share in zip("ab", shares, strict=True)]
    return ["train", *mixed, *OPTIONS, *options, "--out", str(out)]


class InterruptionError(Exception):
    """What kills a training in these tests."""


def test_an_interrupted_mixture_ends_with_the_same_bits(sets, tmp_path, monkeypatch, capsys):
    seen, original = [], Stepper.step

    def step(self, batch, *arguments):
        if len(seen) == 7:  # the third step of the second epoch
            raise InterruptionError
        seen.append(set_numbers(batch.ids).tolist())
        return original(self, batch, *arguments)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(InterruptionError):
        cli.main(argv_of(sets, tmp_path / "run", "--checkpoint-every", "3"))
    monkeypatch.setattr(Stepper, "step", original)
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "resuming after step 6" in capsys.readouterr().err
    assert cli.main(argv_of(sets, tmp_path / "undisturbed")) == 0
    found, wanted = (load_file(tmp_path / name / "metric.safetensors") for name in ("run", "undisturbed"))
    assert torch.equal(found["weights"], wanted["weights"])
    assert all(abs(step.count(1) - 0.4 * len(step)) <= 1 for step in seen)  # each step has its share of both sets

    # A finished run is found again by equal shares, and not by others.
    assert cli.main(argv_of(sets, tmp_path / "run", shares=("6", "4"))) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert cli.main(argv_of(sets, tmp_path / "run", shares=("0.5", "0.5"))) == 1
    a, b = sets / "a/train", sets / "b/train"
    assert f"the training data was {a}:0.6 + {b}:0.4 and is now {a}:0.5 + {b}:0.5" in capsys.readouterr().err

    # Each part of the run that speaks of its data knows both sets.
    assert read_recorded(tmp_path / "run").shards == [(a, 0.6), (b, 0.4)]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert [one["samples"] for one in config["data"]["sets"]] == [24, 6]
    assert config["config"]["draws_kept"] == 0
    for name, part in (("a/train", "training"), ("b/train", "training"), ("a/val", None)):
        assert seen_as(read_manifest(locate(sets / name)).content_sha256(), config) == part
    assert cli.main(["status", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"trained on {a} (0.6 of each batch)\n  trained on {b} (0.4 of each batch)" in said
    assert "--shards HELD_OUT" in said
    fastdps.report(tmp_path / "run")
    assert f"{b} (0.4 of each batch)" in Page((tmp_path / "run/report.html").read_text(encoding="utf-8")).text


def test_one_set_is_recorded_as_before(sets, tmp_path):
    run = fastdps.train(sets / "b/train", tmp_path / "run", contexts=RANKING, variant="baseline")
    manifest = read_manifest(locate(sets / "b/train"))
    assert json.loads(run.directory.config.read_text())["data"] == {
        "shards": str(sets / "b/train"),
        "file": None,
        "validation": None,
        "size": None,
        "image_size": [32, 32],
        "samples": 6,
        "source": manifest.source,
        "sha256": manifest.content_sha256(),
        "validation_sha256": None,
    }


def test_repeats_of_an_image_in_an_epoch_are_distorted_differently(sets):
    """A small set with a large weight is read several times in an epoch: each time the draws are new."""
    loader = open_shards({str(sets / "a/train"): 1, str(sets / "b/train"): 3}, batch_size=8)
    batches = list(loader.epoch(1))
    ids = torch.cat([batch.ids for batch in batches])
    assert len(ids.unique()) < len(ids) == len(torch.cat([batch.draw_ids for batch in batches]).unique())
    parts = [part.draw_ids for batch in batches for part in split(batch, 3)]
    assert torch.equal(torch.cat(parts), torch.cat([batch.draw_ids for batch in batches]))

    config = get_recipe("shared", {"crop_size": 24})
    task = RankingTask([NAMES], config, torch.device("cpu"))
    image, ids = batches[0].images[:1].expand(2, -1, -1, -1), batches[0].ids[:1].expand(2)
    first, again = task.views(Batch({"image": image}, ids, 2, passes=torch.tensor([0, 1])), epoch=0)
    assert all((a - b).abs().max() > 0 for a, b in zip(first, again, strict=True))
    same = task.views(Batch({"image": image}, ids, 2), epoch=0)
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], first)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a/train:0.7", "a/train", 0.7),
        ("a/train:2", "a/train", 2),
        ("a:b:1e-2", "a:b", 0.01),
        ("s3://bucket/x:0.7", "s3://bucket/x", 0.7),
        ("s3://bucket/x", "s3://bucket/x", None),
        ("http://host:8000", "http://host:8000", None),
        ("http://host:8000/x:3", "http://host:8000/x", 3),
        ("C:\\photos", "C:\\photos", None),
        ("C:\\photos:.5", "C:\\photos", 0.5),
        *((text, text, None) for text in ("a:0", "a:-1", "a:inf", "a:nan", "a:1_0", "a:", ":0.5", "a:b", "a:1e999")),
    ],
)
def test_the_weight_is_a_number_after_the_last_colon(text, path, weight):
    assert weighted_location(text) == (locate(path), weight)


def test_a_directory_whose_name_ends_like_a_weight_is_a_directory(tmp_path):
    (tmp_path / "a:1").mkdir()
    assert weighted_location(f"{tmp_path}/a:1") == (tmp_path / "a:1", None)
    assert weighted_location(f"{tmp_path}/a:1:2") == (tmp_path / "a:1", 2)
    with pytest.raises(argparse.ArgumentTypeError, match="ftp"):
        weighted_location("ftp://host/set:0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards=A:0.5"], "is the only set, and needs no weight. Omit :0.5."),
        (["--shards=A:0.5", "--shards=B"], "B needs a weight above 0, as in B:0.5"),
        (["--shards=A:0.5", "--shards=B:0.5", "--draws-kept=2"], "Pass --draws-kept 0"),
        (["--shards=A:0.5", "--shards=B:0.5", "--recipe=judgements"], "judgements cannot be mixed by weight"),
        (["--shards=A:0.5", "--shards=T:0.5"], "A is a set of images, and T of triplets. Mix sets of one kind."),
        (["--shards=A:0.5", "--shards=S:0.5"], "set 2 of a mixture has images of (40, 40)"),
        (["--shards=A:0.5", "--shards=F:0.5"], "F is a file, not a packed set"),
    ],
)
def test_what_cannot_be_mixed_is_said(sets, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    for name, target in (("A", sets / "a/train"), ("B", sets / "b/train")):
        Path(name).symlink_to(target)
    images = raw_samples(4, 40, 40)
    write_set(Path("S"), images, (4,), image_size=(40, 40))
    triplets = [{f"{name}.bin": one["bin"] for name in ("ref", "p0", "p1")} | {"judge.f32": bytes(4)} for one in images]
    write_set(Path("T"), triplets, (4,), kind="triplets", image_size=(40, 40))
    Path("F").write_text("")
    assert cli.main(["train", *options, "--out", "run"]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("run").exists()


def test_complete_settings_that_keep_draws_are_refused(sets, tmp_path):
    both = {str(sets / "a/train"): 1, str(sets / "b/train"): 1}
    with pytest.raises(ConfigError, match=r"draws_kept is 2, but .* Pass --draws-kept 0"):
        fastdps.train(both, tmp_path / "run", contexts=RANKING, config=get_recipe("fast", {}))
    run = fastdps.train(both, tmp_path / "run", contexts=RANKING, variant="baseline")
    assert run.config.draws_kept == 0
    with pytest.raises(ConfigError, match="is the only set, and needs no weight"):
        fastdps.train({str(sets / "a/train"): 1}, tmp_path / "one", contexts=RANKING)


def test_sets_of_triplets_are_mixed(tmp_path):
    """The same triplets, half of them with the opposite votes: what is learned depends on the weights."""
    images = raw_samples(24, 32, 32)
    names = ("ref.bin", "p0.bin", "p1.bin")
    triplets = [{name: images[3 * n + k]["bin"] for k, name in enumerate(names)} for n in range(8)]
    sets = {}
    for name, vote in (("first", 0.0), ("second", 1.0)):
        samples = [{**one, "judge.f32": np.float32(vote).tobytes()} for one in triplets]
        sets[name] = write_set(tmp_path / name, samples, (8,), kind="triplets", image_size=(32, 32))
    settings = {"config": "lpips", "variant": "lin", "judge": "logistic", "epochs": 3, "batch_size": 4}
    ends = []
    for weight in (15, 1 / 15):
        pairs = [(sets["first"], weight), (sets["second"], 1)]
        run = fastdps.train(pairs, tmp_path / f"run-{weight}", **settings)
        metric = run.load()
        x, a, b = (
            torch.stack([torch.frombuffer(bytearray(one[name]), dtype=torch.uint8) for one in triplets])
            .view(-1, 32, 32, 3)
            .permute(0, 3, 1, 2)
            for name in names
        )
        ends.append((metric(x, b) - metric(x, a)).mean().item())
    assert ends[0] > ends[1]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(sets, tmp_path):
    script = Path(__file__).parents[1] / "helpers" / "two_ranks.py"
    for result in launch_warm(2, script, tmp_path, *argv_of(sets, tmp_path / "two")[1:]):
        assert result.returncode == 0, result.stderr
    assert cli.main(argv_of(sets, tmp_path / "one")) == 0
    ranks = [torch.load(tmp_path / f"rank{rank}.pt")["weights"] for rank in (0, 1)]
    assert torch.equal(*ranks)
    one = load_file(tmp_path / "one/metric.safetensors")["weights"]
    torch.testing.assert_close(ranks[0], one, rtol=1e-4, atol=1e-5)
