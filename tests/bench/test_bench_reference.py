"""The baseline of training: it must do what it claims, or the comparison is meaningless."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from bench.harness import reference
from fastdps.contexts.distortions import NAMES
from fastdps.metric.backbones import Backbone

CPU = torch.device("cpu")
PARTS = {"load", "distort", "features", "distances", "heads"}


@pytest.fixture
def image(tmp_path):
    """Write an image file of noise."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return path


def test_reference_trains_its_backbone_if_asked_to(weights_dir, monkeypatch, image):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    for train_backbone in (False, True):
        with reference.Reference([image], NAMES, CPU, 1, train_backbone=train_backbone) as usual:
            before = {name: tensor.clone() for name, tensor in usual.lpips.state_dict().items()}
            usual._step(*(torch.stack([part] * 2) for part in usual._triplets[0]))
            changed = {name for name, tensor in usual.lpips.state_dict().items() if not tensor.equal(before[name])}
        backbone = {name for name in before if name.startswith("net.")}
        assert len(backbone) == 10
        assert changed & backbone == (backbone if train_backbone else set())
        assert changed - backbone


def test_parts_of_the_reference_together_are_its_step(weights_dir, monkeypatch, image):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setattr(reference, "BATCH", 3)
    with reference.Reference([image], NAMES, CPU, workers=2) as usual:
        usual.lpips.eval()  # without dropout
        reached = []
        monkeypatch.setattr(usual, "_descend", lambda *distances_and_judge: reached.append(distances_and_judge))
        random.seed(0)
        works = usual.parts()
        works["heads"](1)
        random.seed(0)
        columns = zip(*(usual._triplets[0] for _ in range(3)), strict=True)
        usual._step(*(torch.stack(column) for column in columns))
        parts, whole = reached
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(parts, whole, strict=True))
        assert {name: work(4) for name, work in works.items()} == {
            name: 4 * 3 * (2 if name in ("load", "distort") else 1) for name in PARTS
        }


def test_reference_judges_by_the_ranking(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((64, 64, 3), 51, np.uint8)).save(path)
    ranking = NAMES[::-1]
    marks = {name: float(rank) for rank, name in enumerate(ranking)}
    monkeypatch.setattr(reference, "draw_and_distort", lambda name, image: torch.full_like(image, marks[name]))
    dataset = reference.TripletDataset([path] * 40, ranking)
    seen = set()
    for index in range(len(dataset)):
        ref, p0, p1, judge = dataset[index]
        assert torch.allclose(ref, torch.tensor(0.2))
        assert judge.item() == float(p1.max() < p0.max())
        seen.add(judge.item())
    assert seen == {0.0, 1.0}


def test_reference_has_the_pretrained_network(weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    network, _ = reference.network(CPU)
    backbone, x = Backbone("alexnet").eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        theirs = network.net(x)
        assert torch.allclose(theirs[-1], backbone.features(x), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.net.parameters())
    assert all(parameter.requires_grad for parameter in network.lins.parameters())
    assert network.training
