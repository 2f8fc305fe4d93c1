"""Judgement sets, from a file to a metric: packing, training, scoring and use, as users do it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.commands import cli
from fastdps.errors import ConfigError
from fastdps.metric.load import list_contexts
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from helpers.judged_images import SIDE, packed_judged, write_judged
from helpers.warm_python import launch_warm


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir, tmp_path):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setenv("FASTDPS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def judged_sets(tmp_path_factory) -> Path:
    return packed_judged(tmp_path_factory.mktemp("judged"), rows=2400, images=30, holdout=0.3)


def train(judgements: Path, out: Path, *options: str) -> int:
    return cli.main(["train", "--judgements", str(judgements), "--out", str(out), *options])


def assert_same_metric(found: torch.Tensor, expected: torch.Tensor, rel: float = 1e-2) -> None:
    """The solver stops near the minimum, where rounding moves single weights, but hardly any distance."""
    for one, other in zip(found, expected, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.999
        assert one.sum().item() == pytest.approx(other.sum().item(), rel=rel)


def error_of(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_from_a_set_to_a_metric_of_each_judge(judged_sets, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(judged_sets / "train", run, "--by", "judge") == 0
    assert "Adapted to the judgements of 3 judges, and to all together" in capsys.readouterr().out
    names = ["pooled", "bright", "colour", "random"]
    assert RunDirectory(run).read_config()["judges"] == names
    assert [place.judge for place in list_contexts(run)] == names

    assert cli.main(["evaluate", str(run), "--judgements", str(judged_sets / "val")]) == 0
    shown = capsys.readouterr().out
    assert "all together" in shown
    assert "bright" in shown
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    assert set(scores["judges"]) == {"bright", "colour", "random"}
    for person in ("bright", "colour"):  # who judge by something
        votes = scores["judges"][person]["votes"]
        assert votes["after"]["value"] > votes["before"]["value"] + 0.03

    x, y = torch.rand(2, 4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    distances = PerceptualMetric.load(run / "metric.safetensors")(x, y)
    assert distances.shape == (4, 4)
    for number, name in enumerate(names):
        metric = fastdps.load(run, context=name)
        assert metric.judge == name
        assert f"adapted to the judgements of {name}" in repr(metric)
        torch.testing.assert_close(metric(x, y), distances[:, number])
    assert fastdps.load(run).judge == "pooled"
    with pytest.raises(ConfigError, match=r"no judge 'brigth'\. Did you mean 'bright'\?"):
        fastdps.load(run, context="brigth")


def test_the_same_command_again_changes_nothing_and_other_settings_are_refused(judged_sets, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(judged_sets / "train", run) == 0
    before = (run / "metric.safetensors").read_bytes()
    assert train(judged_sets / "train", run) == 0
    assert "is finished: nothing to do" in capsys.readouterr().err
    assert (run / "metric.safetensors").read_bytes() == before
    assert train(judged_sets / "train", run, "--by", "judge") == 1
    assert "by was None and is now judge" in error_of(capsys)
    assert train(judged_sets / "val", run) == 1
    assert "the data's sha256 was" in error_of(capsys)
    assert train(judged_sets / "train", run, "--overwrite", "--prior-strength", "0.5") == 0
    assert (run / "metric.safetensors").read_bytes() != before


def test_training_again_from_scratch_gives_the_same_bits(judged_sets, tmp_path):
    for name in ("one", "two"):
        assert train(judged_sets / "train", tmp_path / name) == 0
    weights = [load_file(tmp_path / name / "metric.safetensors")["weights"] for name in ("one", "two")]
    assert torch.equal(*weights)
    assert (weights[0] >= 0).all()


def test_where_moments_are_kept_does_not_change_the_result(judged_sets, tmp_path):
    places = {
        "memory": (),
        "disk": ("--moments-memory", "0"),
        "computed": ("--moments-memory", "0", "--moments-disk", "0"),
    }
    found = {}
    for place, options in places.items():
        run = tmp_path / place
        assert train(judged_sets / "val", run, "--prior-strength", "1", *options) == 0
        assert RunDirectory(run).read_log()[-1]["moments"] == place
        found[place] = load_file(run / "metric.safetensors")["weights"]
    for place in ("disk", "computed"):
        assert_same_metric(found[place], found["memory"])


def test_some_judges_by_name(judged_sets, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(judged_sets / "train", run, "--by", "person", "--contexts", "colour, bright") == 0
    assert RunDirectory(run).read_config()["judges"] == ["pooled", "bright", "colour"]
    assert train(judged_sets / "train", tmp_path / "other", "--by", "judge", "--contexts", "Bright") == 1
    assert "there is no judge 'Bright'. Did you mean 'bright'?" in error_of(capsys)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--contexts", "bright"), "needs --by COLUMN"),
        (("--by", "age"), "was packed with person as the judge, not age"),
        (("--validation", "x"), "Omit it"),
        (("--recipe", "paper", "--comparison", "mean"), "--recipe judgements"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(judged_sets, tmp_path, capsys, options, message):
    assert train(judged_sets / "train", tmp_path / "run", *options) == 1
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_a_file_is_packed_into_the_cache_once(tmp_path, capsys):
    file = write_judged(tmp_path / "source", rows=240, images=16)
    assert train(file, tmp_path / "run", "--by", "person", "--size", str(SIDE)) == 0
    assert f"packing {file}: 16 images" in capsys.readouterr().err
    (packed,) = (tmp_path / "cache" / "judgements").iterdir()
    assert RunDirectory(tmp_path / "run").read_config()["data"]["shards"] == str(packed / "train")
    assert cli.main(["evaluate", str(tmp_path / "run"), "--judgements", str(file), "--size", str(SIDE)]) == 0
    assert len(list((tmp_path / "cache" / "judgements").iterdir())) <= 2
    assert train(file, tmp_path / "again", "--by", "person", "--size", str(SIDE)) == 0
    assert "packing" not in capsys.readouterr().err.split("16 judgements")[-1].split("features")[-1]
    image = file.parent / "images/000.png"
    image.write_bytes((file.parent / "images/001.png").read_bytes())
    assert train(file, tmp_path / "changed", "--by", "person", "--size", str(SIDE)) == 0
    assert "packing" in capsys.readouterr().err


def test_other_files_are_named_with_the_remedy(tmp_path, capsys):
    (tmp_path / "few.txt").write_text("ref,p0,p1\n")
    assert train(tmp_path / "few.txt", tmp_path / "run") == 1
    assert "is neither a shard set nor a file of judgements (.csv, .jsonl, .parquet)" in error_of(capsys)


def test_a_judge_cannot_have_the_name_of_the_pooled_head(tmp_path, capsys):
    file = write_judged(tmp_path / "source", rows=60, images=10)
    file.write_text(file.read_text().replace("bright", "pooled"))
    assert train(file, tmp_path / "run", "--by", "person", "--size", str(SIDE)) == 1
    assert "a judge has the name 'pooled'" in error_of(capsys)
    assert not (tmp_path / "run").exists()
    assert train(file, tmp_path / "run", "--size", str(SIDE)) == 0


def test_by_is_for_judgement_sets(tmp_path, capsys):
    argv = ["train", "--shards", str(tmp_path), "--out", str(tmp_path / "run"), "--by", "person"]
    assert cli.main(argv) == 1
    assert "--by is for --judgements" in error_of(capsys)


def test_python_calls(judged_sets, tmp_path):
    run = fastdps.train(judged_sets / "train", tmp_path / "run", by="judge", contexts=["colour"])
    assert run.judges == ("colour",)
    assert run.config.recipe == "judgements"
    scores = fastdps.evaluate(run, judgements=judged_sets / "val")
    assert scores.judgements is not None
    assert scores.judgements.pooled.votes.after.low <= scores.judgements.pooled.votes.after.value
    assert fastdps.evaluate(run, judgements=judged_sets / "val") == scores


def test_the_pooled_head_exports_to_lpips_strictly(judged_sets, tmp_path):
    lpips = pytest.importorskip("lpips")
    assert train(judged_sets / "train", tmp_path / "run") == 0
    file = tmp_path / "mine.pth"
    assert cli.main(["export", str(tmp_path / "run"), "--format", "lpips", "--out", str(file)]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, for the way in which lpips calls it
        oracle = lpips.LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False)
    heads = torch.load(file, weights_only=True)
    for number, layer in enumerate(oracle.lins):
        own = {name.removeprefix(f"lin{number}."): value for name, value in heads.items() if f"lin{number}." in name}
        layer.load_state_dict(own, strict=True)
        assert (own["model.1.weight"] >= 0).all()


@pytest.mark.slow
def test_two_processes_give_the_heads_of_one(judged_sets, tmp_path):
    options = ["--judgements", str(judged_sets / "train"), "--by", "judge"]
    assert cli.main(["train", *options, "--out", str(tmp_path / "one")]) == 0
    for result in launch_warm(2, "-m", "fastdps.train", *options, "--out", tmp_path / "two"):
        assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / name / "metric.safetensors")["weights"] for name in ("one", "two"))
    assert_same_metric(two, one)
    ends = [RunDirectory(tmp_path / name).read_log()[-1] for name in ("one", "two")]
    assert ends[0]["pooled"]["strength"] == ends[1]["pooled"]["strength"]
    assert ends[1]["processes"] == 2


def test_a_set_of_triplets_takes_the_same_way(tmp_path, capsys):
    """The heads are those of a judgement set of the same file, although no image is shared."""
    file = write_judged(tmp_path / "source", rows=150, images=40)
    single = tmp_path / "source" / "single.csv"  # triplets have no counts of votes
    single.write_text("\n".join(",".join(line.split(",")[:4]) for line in file.read_text().splitlines()) + "\n")
    for kind in ("triplets", "judgements"):
        argv = ["pack", kind, "--source", str(single), "--out", str(tmp_path / kind), "--size", str(SIDE)]
        assert cli.main(argv) == 0
    weights = {}
    for kind in ("triplets", "judgements"):
        run = tmp_path / f"run-{kind}"
        options = ["--recipe", "judgements", "--prior-strength", "1", "--out", str(run)]
        assert cli.main(["train", f"--{kind}", str(tmp_path / kind / "train"), *options]) == 0
        weights[kind] = load_file(run / "metric.safetensors")["weights"]
        end = RunDirectory(run).read_log()[-1]
        assert end["triplets"] == 150
    assert end["images"] < RunDirectory(tmp_path / "run-triplets").read_log()[-1]["images"] == 450
    assert_same_metric(weights["triplets"], weights["judgements"], rel=3e-2)  # 1.1 % on some processors
    capsys.readouterr()
    argv = ["evaluate", str(tmp_path / "run-triplets"), "--bapps", str(tmp_path / "triplets" / "train")]
    assert cli.main(argv) == 0
    subset = json.loads((tmp_path / "run-triplets" / "scores.json").read_text())["bapps"]["2afc"]["train"]
    assert subset["adapted"] > subset["baseline"]


def test_blocks_of_triplets_compute_each_image_once(tmp_path):
    file = write_judged(tmp_path / "source", rows=70, images=30)
    argv = ["pack", "triplets", "--source", str(file), "--out", str(tmp_path / "set"), "--size", str(SIDE)]
    assert cli.main(argv) == 0
    run = tmp_path / "run"
    options = ["--recipe", "judgements", "--prior-strength", "1", "--moments-memory", "0"]  # blocks of one batch
    assert cli.main(["train", "--triplets", str(tmp_path / "set/train"), "--out", str(run), *options]) == 0
    end = RunDirectory(run).read_log()[-1]
    assert end["images"] == 210
    assert end["features"] <= 1.5 * 210
