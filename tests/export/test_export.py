"""Exported metrics, read by the libraries they are for, as their users do; and their cards."""

import json
import sys
import warnings

import lpips
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands.cli import main
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.errors import ConfigError, FastDPSError
from fastdps.export import export as exporting
from fastdps.export.card import licence_of
from fastdps.export.export import FORMATS
from fastdps.export.lpips_checkpoint import LpipsCheckpoint
from fastdps.export.plain import PlainMetric
from fastdps.export.write import write_verified
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS, compared_channels
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from helpers.lpips_oracle import lpips_oracle

RANKINGS = all_rankings(NAMES)[::300]


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small_metric(comparison: str = "spatial") -> PerceptualMetric:
    """Two taps, which are written faster than five."""
    weights = noise(1, sum(compared_channels((64, 192), comparison)))
    return PerceptualMetric(Backbone("alexnet", taps=(1, 4)), weights, RANKINGS[:1], comparison=comparison)


def batches() -> list[torch.Tensor]:
    """Of sizes and numbers that the export did not try itself."""
    return [noise(2, n, 3, *size, seed=n) for n, size in ((1, (65, 66)), (2, (111, 70)), (7, (80, 130)))]


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights_dir):
    """A run of several contexts on AlexNet, with scores of two of them."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    weights = noise(len(RANKINGS), 1152, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        PerceptualMetric(Backbone("alexnet"), weights, RANKINGS).save(run.metric)
    data = {"source": {"name": "folder"}, "samples": 1234, "size": 64, "sha256": "ab" * 32, "shards": "/home/me/data"}
    settings = {"variant": "lin", "recipe": "fast", "epochs": 40, "backbone": "alexnet", "comparison": "spatial"}
    versions = {"fastdps": "0.1.0"}
    config = {
        "config": settings,
        "rankings": RANKINGS,
        "data": data | {"validation": None},
        "versions": versions,
        "machine": {},
    }
    run.config.write_text(json.dumps(config))
    rows = [
        {"ranking": RANKINGS[k], "baseline_accuracy": 0.4 + k / 100, "adapted_accuracy": 0.8 + k / 100} for k in (0, 1)
    ]
    change = {"baseline": 0.6, "adapted": 0.62, "change": 0.02}
    subset = {**change, "contexts": [0.61, 0.62, 0.63], "human": 0.7, "samples": 9}
    averages = dict.fromkeys(("distort", "real", "all", "jnd"))
    bapps = {"2afc": {"cnn": subset}, "jnd": {"cnn": {**subset, "human": None}}, "averages": averages}
    summary = {"contexts": 2, "improved_fraction": 1.0, "baseline_accuracy": 0.4, "adapted_accuracy": 0.8}
    names = {name: settings[name] for name in ("backbone", "variant", "comparison", "recipe")}
    speed = dict.fromkeys(("images_per_s", "triplets_per_s", "data_wait_fraction"))
    scores = {**names, "contexts": rows, "summary": summary, "bapps": bapps, "throughput": speed}
    run.scores.write_text(json.dumps(scores))
    return run


def exported(run, tmp_path, form, number=1):
    out = tmp_path / "made" / f"metric{FORMATS[form].suffix}"
    argv = ["export", str(run.path), "--context", ",".join(RANKINGS[number]), "--format", form, "--out", str(out)]
    assert main(argv) == 0
    whole = PerceptualMetric.load(run.metric)
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(
        [out.name, f"{out.name}.card.json", f"{out.name}.card.md"]
    )
    return out, lambda x, y: whole(x, y)[:, number]


@torch.no_grad()
def test_lpips_measures_the_same(run, tmp_path, weights_dir):
    out, ours = exported(run, tmp_path, "lpips")
    oracle = lpips_oracle("alex", load_file(weights_dir / "alexnet_features.safetensors"), model_path=str(out))
    for x, y in batches():
        assert torch.allclose(oracle(x, y, normalize=True).flatten(), ours(x, y), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_onnxruntime_measures_the_same_at_any_size(run, tmp_path):
    out, ours = exported(run, tmp_path, "onnx")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for x, y in batches():
        (found,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
        assert np.allclose(found, ours(x, y), atol=1e-5, rtol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(metadata["fastdps"])["context"] == list(RANKINGS[1])


@pytest.mark.slow
@torch.no_grad()
def test_torch_export_measures_the_same_at_any_size(run, tmp_path, monkeypatch):
    out, ours = exported(run, tmp_path, "torch")
    extra = {"card.json": ""}
    module = torch.export.load(out, extra_files=extra).module()
    for x, y in batches():
        assert torch.allclose(module(x, y), ours(x, y), atol=1e-5, rtol=1e-5)
    assert json.loads(extra["card.json"])["context"] == list(RANKINGS[1])
    monkeypatch.chdir(out.parent)
    names = {"x": x, "y": y}
    exec(json.loads((out.parent / f"{out.name}.card.json").read_text())["file"]["usage"], names)
    assert torch.equal(names["distances"], module(x, y))


@torch.no_grad()
def test_lpips_gets_a_trained_backbone(tmp_path):
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False, seed=7), noise(1, 1152))
    write_verified(metric, FORMATS["lpips"], tmp_path / "tuned.pth", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = lpips.LPIPS(net="alex", pnet_rand=True, model_path=str(tmp_path / "tuned.pth"), verbose=False)
    x, y = noise(2, 2, 3, 64, 64)
    assert torch.allclose(oracle(x, y, normalize=True).flatten(), metric(x, y)[:, 0], atol=1e-5)


@torch.no_grad()
def test_with_the_backbone_lpips_downloads_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["export", str(run.path), "--context", ",".join(RANKINGS[1]), "--with-backbone", "--out"]
    assert main([*argv, "m.pth", "--format", "lpips"]) == 0
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    x, y = noise(2, 2, 3, 64, 64).clamp(0, 1)
    names = {"x": x, "y": y}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(json.loads((tmp_path / "m.pth.card.json").read_text())["file"]["usage"], names)
    assert torch.allclose(names["distances"], PerceptualMetric.load(run.metric)(x, y)[:, 1], atol=1e-5)
    assert main([*argv, "m.onnx", "--format", "onnx"]) == 1
    assert "always include the backbone" in capsys.readouterr().err


@pytest.mark.parametrize("comparison", COMPARISONS)
@torch.no_grad()
def test_the_plain_metric_is_the_metric(comparison):
    metric = small_metric(comparison)
    x, y = noise(2, 3, 3, 64, 70)
    assert torch.allclose(PlainMetric(metric)(x, y), metric(x, y)[:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_other_comparisons_and_taps(form, tmp_path):
    path = tmp_path / f"m{FORMATS[form].suffix}"
    verified = write_verified(small_metric("spatial+sort"), FORMATS[form], path, {})
    assert path.exists()
    assert verified.pairs == 16
    assert verified.largest_difference < 1e-5 < verified.largest_distance


def test_another_metric_than_asked_for_is_found_out(tmp_path, monkeypatch):
    """Heads that differ in one weight are no small error of rounding; nothing of them is left on disk."""
    metric, write = PerceptualMetric(Backbone("alexnet"), noise(1, 1152)), LpipsCheckpoint.write

    def write_another(self, metric, path, card):
        weights = metric.weights.clone()
        weights[0, 5] += 0.05
        write(self, PerceptualMetric(metric.backbone, weights), path, card)

    monkeypatch.setattr(LpipsCheckpoint, "write", write_another)
    with pytest.raises(FastDPSError, match=r"lpips reads the file, but computes .* The file was removed"):
        write_verified(metric, FORMATS["lpips"], tmp_path / "m.pth", {})
    assert not list(tmp_path.iterdir())


def test_keys_that_lpips_does_not_know_are_found_out(tmp_path):
    """LPIPS itself loads such a file without a word, and measures with random heads."""
    metric = PerceptualMetric(Backbone("alexnet"), noise(1, 1152))
    torch.save({"lin0.model.0.weight": torch.ones(1, 64, 1, 1)}, tmp_path / "m.pth")
    with pytest.raises(FastDPSError, match=r"LPIPS did not load lin0\.model\.0\.weight"):
        FORMATS["lpips"].read_back(metric, tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda: PerceptualMetric(Backbone("resnet18", pretrained=False)), "LPIPS has alexnet, .* not resnet18"),
        (small_metric, "at its taps 1, 4, 7, 9, 11, not at 1, 4"),
        (lambda: PerceptualMetric(Backbone("alexnet"), comparison="sort"), "does not compare by sort"),
    ],
)
def test_what_lpips_cannot_hold(metric, message, tmp_path):
    with pytest.raises(ConfigError, match=f"{message}.*choose --format onnx or torch"):
        write_verified(metric(), FORMATS["lpips"], tmp_path / "m.pth", {})


@pytest.mark.parametrize("module", ["lpips", "onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_before_anything_is_written(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    form = "lpips" if module == "lpips" else "onnx"
    out = tmp_path / f"m{FORMATS[form].suffix}"
    assert main(["export", "alexnet", "--format", form, "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert f"needs {module}" in message
    assert "pip install 'fastdps[export]'" in message
    assert not list(tmp_path.iterdir())


def test_the_card(run, tmp_path, capsys):
    out, _ = exported(run, tmp_path, "lpips")
    assert "lpips 0.1.4 computes the same distances for 16 pairs" in capsys.readouterr().out
    card = json.loads((out.parent / f"{out.name}.card.json").read_text())
    assert card["context"] == list(RANKINGS[1])
    assert card["training"]["data"] == {"source": {"name": "folder"}, "samples": 1234, "size": 64, "sha256": "ab" * 32}
    assert card["scores"]["baseline_accuracy"] == pytest.approx(0.41)
    assert card["scores"]["adapted_accuracy"] == pytest.approx(0.81)
    assert card["scores"]["bapps"]["2afc"]["cnn"] == {"baseline": 0.6, "adapted": 0.62, "human": 0.7}
    assert card["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert card["verified"]["with"] == "lpips 0.1.4"
    text = (out.parent / f"{out.name}.card.md").read_text()
    for part in (
        "# metric.pth",
        ", ".join(RANKINGS[1]),
        'lpips.LPIPS(net="alex", model_path="metric.pth")',
        "| accuracy on held-out distortions | 0.4100 | 0.8100 |  |",
        "| BAPPS 2afc cnn | 0.6000 | 0.6200 | 0.7000 |",
        "| BAPPS jnd cnn | 0.6000 | 0.6200 |  |",
        "folder, 1,234 samples, 64 px",
        "ImageNet",
    ):
        assert part in text
    assert "/home/me" not in text + json.dumps(card)


def test_the_card_of_what_was_not_scored_or_is_not_adapted(run, tmp_path):
    out, _ = exported(run, tmp_path, "lpips", number=2)
    text = (out.parent / f"{out.name}.card.md").read_text()
    assert "held-out" not in text
    assert "| BAPPS 2afc cnn | 0.6000 | 0.6300 | 0.7000 |" in text
    assert main(["export", "alexnet", "--format", "lpips", "--out", str(tmp_path / "plain.pth")]) == 0
    text = (tmp_path / "plain.pth.card.md").read_text()
    assert "| context, least disruptive first | none |" in text
    assert "Not measured (`fastdps evaluate` measures them)." in text


@pytest.mark.parametrize(
    ("backbone", "parts", "absent"),
    [
        ("vgg16", ["vgg16 come from torchvision", "ImageNet"], "timm"),
        ("timm/resnet50@1,2", ["timm/resnet50@1,2 comes from timm", "its weights"], "torchvision"),
        ("alexnet+timm/resnet50", ["alexnet come from torchvision", "timm/resnet50 comes from timm"], "author"),
        ("mine", ["mine is not one of fastdps or torchvision: its author"], "ImageNet"),
    ],
)
def test_the_licence_names_where_a_backbone_is_from(backbone, parts, absent):
    text = licence_of(backbone)
    assert text.startswith("fastdps is licensed under Apache-2.0")
    assert all(part in text for part in parts)
    assert absent not in text


def test_options_that_do_not_fit(run, tmp_path, capsys):
    out = tmp_path / "m.pth"
    argv = ["export", "alexnet", "--format", "lpips", "--out", str(out)]
    assert main([*argv[:-1], str(tmp_path / "m.onnx")]) == 1
    assert "must end with .pth for --format lpips: m.pth" in capsys.readouterr().err
    out.write_text("mine")
    assert main(argv) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*argv, "--overwrite"]) == 0
    assert main(["export", str(run.path), "--format", "lpips", "--out", str(tmp_path / "other.pth")]) == 1
    assert "has 3 contexts. Choose one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "anna/food", "--format", "onnx"], "--format is for files, and --push for the hub"),
        (["--push", "anna/food", "--with-backbone"], "--with-backbone is for files"),
        (["--format", "onnx", "--out", "m.onnx", "--tag", "v1"], "--tag is for the hub: give --push USER/NAME"),
        (["--format", "onnx"], "Give --format and --out to write a file, or --push USER/NAME"),
    ],
)
def test_options_of_files_and_of_the_hub(options, message, capsys):
    assert main(["export", "alexnet", *options]) == 1
    assert message in capsys.readouterr().err


def test_scores_that_are_not_whole_are_named(run, tmp_path, capsys):
    broken = RunDirectory(tmp_path / "broken")
    broken.path.mkdir()
    for name in ("config", "metric"):
        getattr(broken, name).write_bytes(getattr(run, name).read_bytes())
    broken.scores.write_text(json.dumps(json.loads(run.scores.read_text()) | {"bapps": []}))
    argv = ["export", str(broken.path), "--context", ",".join(RANKINGS[0]), "--format", "lpips"]
    assert main([*argv, "--out", str(tmp_path / "m.pth")]) == 1
    assert "scores.json is damaged: bapps must be an object, not list" in capsys.readouterr().err


def test_every_format_is_a_choice():
    assert set(exporting.FORMATS) == {"lpips", "onnx", "torch"}
    assert len({form.suffix for form in exporting.FORMATS.values()}) == 3
