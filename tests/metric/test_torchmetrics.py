"""The torchmetrics class: against a plain mean, in collections, copied, pickled, and in two processes."""

import copy
import pickle
import sys
import warnings

import pytest
import torch
import torch.multiprocessing
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanSquaredError

import fastdps
from fastdps.errors import ConfigError, FastDPSError, ImageError
from fastdps.torchmetrics import DeepPerceptualSimilarity


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.rand(2, 2 + n, 3, 64, 64, generator=generator)) for n in range(count)]


def plain(pairs) -> torch.Tensor:
    m = fastdps.load("alexnet")
    return torch.cat([m(x, y) for x, y in pairs])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_update_compute_reset_and_forward(reduction):
    metric, pairs = DeepPerceptualSimilarity("alexnet", reduction=reduction), batches()
    for _ in range(2):
        for x, y in pairs:
            value = metric(x, y)  # of this batch only
            assert torch.allclose(value, getattr(plain([(x, y)]), reduction)())
        assert torch.allclose(metric.compute(), getattr(plain(pairs), reduction)())
        metric.reset()
    metric.update(*pairs[0])
    assert torch.allclose(metric.compute(), getattr(plain(pairs[:1]), reduction)())


def test_the_distances_of_all_pairs():
    metric, pairs = DeepPerceptualSimilarity("alexnet", reduction="none"), batches()
    for x, y in pairs:
        assert torch.allclose(metric(x, y), plain([(x, y)]))
    assert torch.allclose(metric.compute(), plain(pairs))
    metric.reset()
    metric.update(*pairs[0])
    assert torch.allclose(metric.compute(), plain(pairs[:1]))


def test_arguments_and_ranges_of_torchmetrics():
    metric, (x, y) = DeepPerceptualSimilarity("alexnet", normalize=False), batches(1)[0]
    metric.update(preds=2 * x - 1, target=2 * y - 1)
    assert torch.allclose(metric.compute(), plain([(x, y)]).mean(), rtol=1e-4)
    with pytest.raises(ImageError, match=r"float tensors in \[-1, 1\]"):
        metric.update((x * 255).byte(), (y * 255).byte())


def test_a_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    metric, (x, y) = DeepPerceptualSimilarity("alexnet"), batches(1)[0]
    values = [metric(x, y) for _ in range(2)]
    _, axes = metric.plot(values)
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([value.item() for value in values])


def test_in_a_collection_beside_another():
    collection, pairs = MetricCollection([DeepPerceptualSimilarity("alexnet"), MeanSquaredError()]), batches()
    for x, y in pairs:
        collection.update(x, y)
    found = collection.compute()
    assert torch.allclose(found["DeepPerceptualSimilarity"], plain(pairs).mean())
    x, y = (torch.cat(images) for images in zip(*pairs, strict=True))
    assert torch.allclose(found["MeanSquaredError"], (x - y).square().mean())
    assert set(collection.clone(prefix="val_")(*pairs[0])) == {"val_DeepPerceptualSimilarity", "val_MeanSquaredError"}


def test_copies_and_pickles():
    metric, pairs = DeepPerceptualSimilarity("alexnet"), batches(2)
    metric.update(*pairs[0])
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        other.update(*pairs[1])
        assert torch.allclose(other.compute(), plain(pairs).mean())
    assert torch.allclose(metric.compute(), plain(pairs[:1]).mean())


def test_gradients_in_forward():
    metric, (x, y) = DeepPerceptualSimilarity("alexnet"), batches(1)[0]
    y.requires_grad_()
    metric(x, y).backward()
    (expected,) = torch.autograd.grad(fastdps.load("alexnet")(x, y).mean(), y)
    assert torch.allclose(y.grad, expected, atol=1e-7)
    assert y.grad.abs().max() > 0


def _of_one_process(rank: int, path: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    metric = DeepPerceptualSimilarity("alexnet")
    for x, y in batches()[rank::2]:  # five pairs at one, three at the other
        metric.update(x, y)
    torch.save(metric.compute(), f"{path}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_mean_is_over_the_pairs_of_all_processes(tmp_path):
    path = str(tmp_path / "meeting")
    torch.multiprocessing.spawn(_of_one_process, (path,), nprocs=2)
    expected = plain(batches()).mean()
    for rank in range(2):
        assert torch.allclose(torch.load(f"{path}.{rank}"), expected)


def test_mistakes():
    with pytest.raises(ConfigError, match=r"Unknown reduction 'men'\. Did you mean 'mean'"):
        DeepPerceptualSimilarity(reduction="men")
    with pytest.raises(ConfigError, match="already has its context"):
        DeepPerceptualSimilarity(fastdps.load("alexnet"), "a,b")
    with pytest.raises(ImageError, match="float images are in"):
        DeepPerceptualSimilarity().update(*(255 * torch.rand(2, 1, 3, 64, 64)))


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "fastdps.torchmetrics")
    with pytest.raises(FastDPSError, match=r"pip install 'fastdps\[torchmetrics\]'"):
        import fastdps.torchmetrics  # noqa: F401
