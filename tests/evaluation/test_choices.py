"""The examples of `details.json`, against distances that are computed one pair at a time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastdps.contexts.distortions import DISTORTIONS, NAMES, draw_plan
from fastdps.contexts.rankings import sample_rankings
from fastdps.evaluation.examples import (
    CHOICES,
    CONTEXTS,
    LONGEST_SIDE,
    Details,
    find_examples,
    find_legend,
    replace_examples,
    write_details,
)
from fastdps.evaluation.tally import EVALUATION_SEED, evaluation_views, tally_choices
from fastdps.loading.spec import Batch
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.runtime.processes import join_processes

RANKINGS = sample_rankings(6, NAMES, seed=1)
CPU = torch.device("cpu")


class Loader:
    """A loader of one batch."""

    steps = 1

    def __init__(self, batch: Batch) -> None:
        self.batch, self.samples = batch, len(batch)

    def epoch(self, number: int):
        return iter([self.batch])


@pytest.fixture(scope="module")
def found():
    """A batch, its metrics (two of them, with three contexts each) and their examples."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        {"image": torch.randint(0, 256, (14, 40, 32, 3), dtype=torch.uint8, generator=generator)},
        torch.tensor([3, 10, 7, 2**40, *range(20, 30)]),
        14,
    )
    backbone = Backbone("alexnet", taps=(1,), pretrained=False)
    heads = torch.rand(6, 64, generator=generator).sub(0.8).clamp_min(0)
    baseline = PerceptualMetric(backbone)
    adapted = [PerceptualMetric(backbone, heads[k : k + 3], RANKINGS[k : k + 3]) for k in (0, 3)]
    tally = tally_choices(baseline, adapted, Loader(batch), join_processes(), draws=2)
    return batch, baseline, adapted, tally, find_examples(baseline, adapted, batch, tally, "nearest")


def distance(metric: PerceptualMetric, row: int, views: torch.Tensor, view: int) -> float:
    return metric(views[:1], views[1 + view : 2 + view])[0, row].item()


def test_examples_are_of_the_hardest_contexts(found):
    _, _, _, tally, examples = found
    before, after = (accuracy.tolist() for accuracy in tally.per_context())
    hardest = sorted(range(6), key=after.__getitem__)[:CONTEXTS]
    assert len(examples) == CONTEXTS == 4
    for example, number in zip(examples, hardest, strict=True):
        wrong, right = example.entry["wrong"], example.entry["right"]
        assert example.entry == {
            "ranking": list(RANKINGS[number]),
            "baseline_accuracy": before[number],
            "adapted_accuracy": after[number],
            "searched": 14,
            "wrong": wrong,
            "right": right,
        }
        assert 0 < len(wrong) <= CHOICES
        assert len(right) <= CHOICES
        assert not {choice["sample"] for choice in wrong} & {choice["sample"] for choice in right}
    for kind in ("wrong", "right"):
        samples = [choice["sample"] for example in examples for choice in example.entry[kind]]
        assert len(set(samples)) == len(samples) > 0


def test_each_choice_is_described_by_its_numbers_and_pictures(found):
    batch, baseline, adapted, _, examples = found
    views = evaluation_views(batch, 0, CPU, "nearest")
    plan = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=0)
    owners = {tuple(ranking): (metric, row) for metric in adapted for row, ranking in enumerate(metric.rankings)}
    for place, example in enumerate(examples):
        metric, row = owners[tuple(example.entry["ranking"])]
        files = set()
        for number_shown, choice in enumerate(example.entry["wrong"] + example.entry["right"]):
            image = batch.ids.tolist().index(choice["sample"])
            assert choice.keys() == {"sample", "reference", "closer", "farther"}
            assert choice["reference"] == f"{place}-{choice['sample']}.png"
            assert torch.equal(example.pictures[choice["reference"]], views[image, 0])
            files.add(choice["reference"])
            for view in (choice["closer"], choice["farther"]):
                name = view["distortion"]
                number = NAMES.index(name)
                drawn = plan[name][image].tolist()
                assert view == {
                    "distortion": name,
                    "parameters": dict(zip([p.name for p in DISTORTIONS[name].parameters], drawn, strict=True)),
                    "file": f"{place}-{choice['sample']}-{name}.png",
                    "baseline_distance": pytest.approx(distance(baseline, 0, views[image], number), rel=1e-4),
                    "adapted_distance": pytest.approx(distance(metric, row, views[image], number), rel=1e-4),
                }
                assert torch.equal(example.pictures[view["file"]], views[image, 1 + number])
                files.add(view["file"])
            order = example.entry["ranking"]
            assert order.index(choice["closer"]["distortion"]) < order.index(choice["farther"]["distortion"])
            finds_farther = choice["closer"]["adapted_distance"] > choice["farther"]["adapted_distance"]
            assert finds_farther == (number_shown < len(example.entry["wrong"]))
        assert example.pictures.keys() == files


def test_the_first_choice_is_the_worst_of_the_adapted_metric(found):
    """By the difference of both distances as a share of their sum; images of earlier examples are left out."""
    batch, _, adapted, _, examples = found
    views = evaluation_views(batch, 0, CPU, "nearest")
    owners = {tuple(ranking): (metric, row) for metric in adapted for row, ranking in enumerate(metric.rankings)}
    shown: set[int] = set()
    for example in examples:
        order = example.entry["ranking"]
        metric, row = owners[tuple(order)]
        wrongness = {}
        for image, sample in enumerate(batch.ids.tolist()):
            d = {name: distance(metric, row, views[image], number) for number, name in enumerate(NAMES)}
            for place, closer in enumerate(order):
                for farther in order[place + 1 :]:
                    share = (d[closer] - d[farther]) / (d[closer] + d[farther])
                    wrongness[sample, closer, farther] = share if sample not in shown else -1
        first = example.entry["wrong"][0]
        chosen = first["sample"], first["closer"]["distortion"], first["farther"]["distortion"]
        assert wrongness[chosen] == pytest.approx(max(wrongness.values()), rel=1e-4)
        shown |= {choice["sample"] for choice in example.entry["wrong"]}


def test_the_legend_shows_all_distortions_of_the_image_whose_least_visible_one_is_seen_best(found):
    batch, *_ = found
    legend = find_legend(batch, "nearest")
    views = evaluation_views(batch, 0, CPU, "nearest")
    change = (views[:, 1:] - views[:, :1]).abs().mean(dim=(2, 3, 4))
    relative = change / change.median(dim=0).values
    image = max(range(14), key=lambda n: relative[n].min().item())
    sample = batch.ids[image].item()
    assert (legend.entry["sample"], legend.entry["reference"]) == (sample, f"legend-{sample}.png")
    assert [view["distortion"] for view in legend.entry["views"]] == list(NAMES)
    for number, view in enumerate(legend.entry["views"]):
        assert torch.equal(legend.pictures[view["file"]], views[image, 1 + number])
    assert torch.equal(legend.pictures[legend.entry["reference"]], views[image, 0])
    assert len(legend.pictures) == 7


def test_pictures_and_details_are_written(found, tmp_path):
    batch, *_, tally, examples = found
    legend = find_legend(batch, "nearest")
    run = RunDirectory(tmp_path)
    run.examples.mkdir()
    (run.examples / "old.png").touch()
    run.details.write_text("{}")
    replace_examples(run, [*examples, legend])
    assert not run.details.exists()
    pictures = {name: pixels for example in (*examples, legend) for name, pixels in example.pictures.items()}
    assert {path.name for path in run.examples.iterdir()} == set(pictures)
    for name, pixels in pictures.items():
        with Image.open(io.BytesIO((run.examples / name).read_bytes())) as image:
            expected = (pixels * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
            np.testing.assert_array_equal(np.asarray(image), expected)
    held_out = {"shards": "val", "samples": 9, "draws": 2, "sha256": "0" * 64}
    write_details(run, Details(held_out, tally.per_order(), examples, legend))
    content = run.read_details()
    assert list(content) == ["format_version", "held_out", "pairs", "examples", "legend"]
    assert content["legend"] == legend.entry
    assert content["format_version"] == 1
    assert content["held_out"] == held_out
    assert content["pairs"] == tally.per_order()
    assert content["examples"] == [example.entry for example in examples]


@pytest.mark.parametrize(("shape", "kept"), [((300, 200), (96, 64)), ((96, 97), (95, 96)), ((96, 96), (96, 96))])
def test_large_pictures_are_reduced(found, tmp_path, shape, kept):
    *_, examples = found
    example = examples[0]
    name = next(iter(example.pictures))
    pictures = {name: torch.rand(3, *shape)}
    replace_examples(RunDirectory(tmp_path), [type(example)(example.entry, pictures)])
    with Image.open(tmp_path / "examples" / name) as image:
        assert (image.height, image.width) == kept
        assert max(image.size) <= LONGEST_SIDE
