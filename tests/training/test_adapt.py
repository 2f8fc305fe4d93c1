"""`adapt`, from judgements in every form to a run that everything opens."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import fastdps
from fastdps.commands import cli
from fastdps.errors import ConfigError, FastDPSError, ImageError, SampleError
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.training.bases import Base, open_base
from fastdps.training.differences import priors_of
from helpers.judged_images import SIDE, packed_judged, write_judged

OPTIONS = fastdps.AdaptOptions(size=SIDE)


@pytest.fixture(scope="module", autouse=True)
def _pretrained(weights_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        patch.setenv("FASTDPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """120 judgements of three people about 40 images."""
    return write_judged(tmp_path_factory.mktemp("judged"), 120, 40)


@pytest.fixture(scope="module")
def base() -> Base:
    """A run of two contexts on a backbone that is not the pretrained one, as a shared one is."""
    backbone = Backbone("alexnet", pretrained=False, seed=3)
    weights = torch.rand(2, 1152, generator=torch.Generator().manual_seed(0))
    metric = PerceptualMetric(backbone, weights)
    return Base("shared", metric, priors_of(metric), SIDE, includes_backbone=True)


def opened(path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def rows_of(file: Path) -> list[list[str]]:
    with file.open() as lines:
        return [
            [str(file.parent / row[name]) for name in ("ref", "p0", "p1")] + [row["judge"], row["person"]]
            for row in csv.DictReader(lines)
        ]


def test_a_file_a_directory_and_a_list_of_anything_give_one_metric(file, base, tmp_path):
    shutil.copytree(file.parent, tmp_path / "files")
    rows = [(*row[:3], float(row[3])) for row in rows_of(file)]
    pictures = {path: opened(path) for row in rows for path in row[:3]}
    tensors = {path: pil_to_tensor(picture) for path, picture in pictures.items()}
    floats = {path: tensor / 255 for path, tensor in tensors.items()}
    # The file counts some judgements twice, which a list does not.
    (tmp_path / "files" / file.name).write_text(file.read_text().replace(",2,", ",1,"))
    forms = [tmp_path / "files" / file.name, tmp_path / "files", rows]
    forms += [[(*(kind[path] for path in row[:3]), row[3]) for row in rows] for kind in (pictures, tensors, floats)]
    fits = [fastdps.adapt(base, form, options=OPTIONS).fit for form in forms]
    for fit in fits[1:]:
        torch.testing.assert_close(fit.fitted, fits[0].fitted, rtol=1e-3, atol=1e-4)
        assert fit.message == fits[0].message
    named = [(*row[:2], row[2], {"0.0": "a", "1.0": "b"}[row[3]], row[4]) for row in rows_of(file)]
    judges = fastdps.adapt(base, named, by="judge", options=OPTIONS)
    assert judges.fit.judges == ("bright", "colour", "random")
    assert judges.of_judge("bright").judge == "bright"
    with pytest.raises(ConfigError, match="no head for 'zoe'"):
        judges.of_judge("zoe")


@pytest.mark.slow
def test_the_run_opens_everywhere(file, base, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    adapted = fastdps.adapt(base, file, run, by="person", force=True)
    directory = RunDirectory(run)
    assert directory.read_config()["judges"] == ["pooled", "bright", "colour", "random"]
    content = directory.read_adapted()
    assert content is not None
    assert content["message"] == adapted.message
    x, y = torch.rand(2, 3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = adapted.metric(x, y)
    torch.testing.assert_close(fastdps.load(run)(x, y), expected)  # with the backbone of the base
    assert fastdps.load(run).metric.origin == adapted.metric.metric.origin  # the size of images that are not tensors
    torch.testing.assert_close(fastdps.load(adapted, "colour")(x, y), adapted.of_judge("colour")(x, y))

    assert cli.main(["evaluate", str(run), "--judgements", str(file), "--size", str(SIDE)]) == 0
    scores = json.loads((run / "scores.json").read_text())["judgements"]["pooled"]["votes"]
    rows = [(*row[:3], float(row[3])) for row in rows_of(file)]
    mean = base.metric.weights / base.metric.weights.mean(dim=1, keepdim=True)
    before = PerceptualMetric(base.metric.backbone, mean.mean(dim=0, keepdim=True))
    assert scores["before"]["value"] == pytest.approx(agreement_of(before, file, rows), abs=0.01)
    assert cli.main(["report", str(run)]) == 0
    assert cli.main(["export", str(run), "--format", "lpips", "--out", str(tmp_path / "mine.pth")]) == 0
    again = fastdps.adapt(run, file, context="colour", options=OPTIONS)  # a run is a base in turn
    assert again.base.includes_backbone
    torch.testing.assert_close(again.base.metric.weights, adapted.fit.weights[[2]])
    assert again.base.size == SIDE


def agreement_of(metric, file, rows):
    """The share of the votes of a file that agree with a metric, image by image."""
    with file.open() as lines:
        votes = [float(row["votes"]) for row in csv.DictReader(lines)]
    total = 0.0
    for (*paths, share), count in zip(rows, votes, strict=True):
        ref, a, b = (pil_to_tensor(opened(path)).float()[None] / 255 for path in paths)
        total += count * (share if metric(ref, a) > metric(ref, b) else 1 - share)
    return total / sum(votes)


def test_a_judgement_set_gives_what_its_file_gives(base, tmp_path):
    packed = packed_judged(tmp_path, rows=60, images=20)
    of_set = fastdps.adapt(base, packed / "train").fit
    of_file = fastdps.adapt(base, tmp_path / "source" / "judged.csv").fit
    assert of_set.judgements == of_file.judgements == 60
    torch.testing.assert_close(of_set.fitted, of_file.fitted, rtol=1e-2, atol=1e-2)


def test_the_command_says_what_to_expect_and_what_is_used(file, tmp_path, capsys):
    alexnet, lines = PerceptualMetric(Backbone("alexnet")), ["ref,p0,p1,judge"]
    for *paths, _, _ in rows_of(file)[:40]:  # judgements that follow the base
        ref, a, b = (pil_to_tensor(opened(path)).float()[None] / 255 for path in paths)
        lines.append(",".join([*paths, str(int(alexnet(ref, a) > alexnet(ref, b)))]))
    (tmp_path / "same.csv").write_text("\n".join(lines) + "\n")
    command = ["adapt", "alexnet", "--judgements", str(tmp_path / "same.csv"), "--size", str(SIDE), "--out"]
    assert cli.main([*command, str(tmp_path / "kept")]) == 0
    shown = capsys.readouterr().out
    assert "does not beat the base" in shown
    assert "The run keeps the weights of alexnet" in shown
    weights = PerceptualMetric.load(tmp_path / "kept" / "metric.safetensors").weights
    assert (weights == weights[0, 0]).all()
    assert cli.main([*command, str(tmp_path / "kept")]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "kept"), "--overwrite", "--force", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"] == "kept"
    content = RunDirectory(tmp_path / "kept").read_adapted()
    assert content is not None
    assert content["forced"]


def test_the_published_lpips_is_a_base(lpips_example, tmp_path, weights_dir):
    base = open_base("lpips")
    x, y = (pil_to_tensor(opened(lpips_example / f"ex_{name}.png"))[None] / 255 for name in ("ref", "p0"))
    assert base.metric(x, y).item() == pytest.approx(0.722, abs=1e-3)  # as its package documents
    assert [prior.name for prior in base.priors] == ["base", "equal weights"]


@pytest.mark.parametrize(
    ("judgements", "error", "message"),
    [
        ([], ConfigError, "no judgements"),
        ([("a.png", "b.png", "c.png")], ConfigError, "judgement 1 is not"),
        ([("a.png", "b.png", "c.png", 2)], ConfigError, "judgement 1 has the choice 2"),
        ([("a.png", "b.png", "c.png", "left")], ConfigError, "judgement 1 has the choice 'left'"),
        ([("a.png", "b.png", "b.png", 1)], ConfigError, "judgement 1 names an image twice"),
        ([("a.png", "b.png", "c.png", 1)], SampleError, "a.png"),
        ([(1, 2, 3, 1)], ImageError, "not int"),
        ("nowhere", FastDPSError, "nowhere"),
    ],
)
def test_bad_judgements_are_named(base, judgements, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        fastdps.adapt(base, judgements)


def test_bad_rows_and_bases_are_named(file, base, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(file.read_text().replace(",0.0,", ",7,", 1))
    with pytest.raises(FastDPSError, match=r"1 invalid rows: line \d+ judge is '7'"):
        fastdps.adapt(base, bad)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither a judgement set nor a directory"):
        fastdps.adapt(base, tmp_path / "empty")
    with pytest.raises(ConfigError, match="is not a run, a metric file or a backbone"):
        fastdps.adapt("alexent", file)
    with pytest.raises(ConfigError, match="has no contexts"):
        fastdps.adapt("alexnet", file, context="pooled")
    with pytest.raises(ConfigError, match="needs judgements with the names"):
        fastdps.adapt(base, file, by="judge")
    with pytest.raises(ConfigError, match="was not saved"):
        fastdps.load(fastdps.adapt(base, file))
