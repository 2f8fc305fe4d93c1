"""The Python surface: every public name, documented, lazily imported, and the whole way of the data by calls."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest
import torch

import fastdps
from fastdps.evaluation.run_scores import RunScores
from fastdps.loading.loader import ShardLoader
from fastdps.metric.image_metric import ImageMetric

RANKING = "color,darken,zoom_in,rotate,translate,blur"
CALLS = [name for name in fastdps.__all__ if inspect.isfunction(getattr(fastdps, name))]
CLASSES = [name for name in fastdps.__all__ if inspect.isclass(getattr(fastdps, name))]


def test_names_are_listed_and_found():
    assert set(fastdps.__all__) <= set(dir(fastdps))
    assert sorted(CALLS + CLASSES) == sorted(fastdps.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        fastdps.lod  # noqa: B018


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_documented(name):
    call = getattr(fastdps, name)
    text = inspect.getdoc(call) or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, section
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    for parameter in inspect.signature(call).parameters:
        assert f"{parameter}:" in arguments, parameter


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_documented(name):
    assert inspect.getdoc(getattr(fastdps, name))


def test_modules_do_not_hide_the_functions_of_their_names():
    for name in ("train", "report", "export"):
        importlib.import_module(f"fastdps.{name}")
        assert inspect.isfunction(getattr(fastdps, name))


def test_importing_is_cheap():
    heavy = "{'torch', 'numpy', 'rich', 'PIL', 'accelerate'}"
    code = f"import fastdps, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    leaves = fastdps.open_source("deadleaves", count=24, size=32, seed=1)
    packed = fastdps.pack(leaves, out, fastdps.PackOptions(size=32, holdout=0.25), workers=1)
    assert {name: manifest.samples for name, manifest in packed.manifests.items()} == {"train": 18, "val": 6}
    return out


@pytest.fixture(scope="module")
def run(shards, weights_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        yield fastdps.train(
            shards / "train", tmp_path_factory.mktemp("runs") / "run", contexts=RANKING, epochs=2, batch_size=6
        )


def test_shards_are_opened(shards):
    loader = fastdps.open_shards(shards / "train", batch_size=5, seed=None)
    assert isinstance(loader, ShardLoader)
    assert next(loader.epoch(0)).ids.tolist() == [0, 1, 2, 3, 4]


def test_a_folder_is_packed_by_its_path(shards, tmp_path):
    batch = next(fastdps.open_shards(shards / "val", batch_size=2).epoch(0))
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number, image in enumerate(batch.images.numpy()):
        Image.fromarray(image).save(tmp_path / f"photos/{number}.png")
    packed = fastdps.pack(tmp_path / "photos", tmp_path / "out", fastdps.PackOptions(size=16), workers=1)
    assert packed.manifests["train"].samples == 2


@pytest.mark.usefixtures("run")
def test_the_way_of_the_data(run, shards, tmp_path):
    assert run.rankings == (tuple(RANKING.split(",")),)
    assert run.config.epochs == 2
    assert run.throughput.images_per_s > 0
    json.dumps(run.to_dict())

    scores = fastdps.evaluate(run, shards=shards / "val", options=fastdps.EvaluationOptions(draws=2))
    assert scores.summary.contexts == len(scores.contexts) == 1
    assert scores.contexts[0].adapted_accuracy == scores.summary.adapted_accuracy
    assert len(scores.pairs) == 15
    written = json.loads((run.path / "scores.json").read_text())
    assert scores.to_dict() == written
    assert RunScores.from_dict(written) == scores

    assert fastdps.report(run) == run.path / "report.html"
    assert RANKING.split(",")[0] in (run.path / "report.html").read_text()
    exported = fastdps.export(run, tmp_path / "m.pth", "lpips")
    assert exported.verified.largest_difference < 1e-4
    json.dumps(exported.to_dict())

    x, y = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for metric in (run.load(), fastdps.load(run, context=RANKING)):
        assert isinstance(metric, ImageMetric)
        assert metric(x, y).shape == (3,)
    everything = fastdps.PerceptualMetric.load(run.path / "metric.safetensors")
    assert torch.allclose(everything(x, y)[:, 0], run.load()(x, y))


@pytest.mark.usefixtures("run")
def test_settings_are_checked_by_name(shards, tmp_path):
    with pytest.raises(fastdps.ConfigError, match=r"Unknown setting 'epoch'\. Did you mean 'epochs'"):
        fastdps.train(shards / "train", tmp_path / "run", epoch=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("run")
def test_a_finished_run_is_left_as_it_is(run, shards):
    before = (run.path / "metric.safetensors").stat().st_mtime_ns
    again = fastdps.train(shards / "train", run, contexts=[RANKING.split(",")], config=run.config)
    assert again == run
    assert (run.path / "metric.safetensors").stat().st_mtime_ns == before


def test_what_is_wrong_with_a_source_is_said():
    with pytest.raises(fastdps.ConfigError, match="deadleaves"):
        fastdps.open_source("deadleave")
