"""What is kept of a scoring for the report: accuracies by pair of distortions, and examples of wrong choices."""

import itertools
import json
import re

import pytest
import torch
from PIL import Image

from fastdps.commands.cli import main
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings, labels, pairs, sample_rankings
from fastdps.evaluation.examples import CHOICES, CONTEXTS, LONGEST_SIDE, corrected_choices, worst_choices
from fastdps.evaluation.tally import Tally
from fastdps.metric.scores import agreeing_votes
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves

RANKINGS = sample_rankings(5, NAMES, seed=0)


def tally_of(rankings) -> Tally:
    votes = labels(rankings, NAMES).double()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, 11, (len(votes), 1 + len(rankings)), generator=generator).double()
    return Tally(
        agreeing_votes(chosen[:, :1], votes, of=10), agreeing_votes(chosen[:, 1:], votes, of=10), votes, judged=10
    )


def test_both_orders_of_a_pair_add_up_to_the_pair():
    tally = tally_of(RANKINGS)
    rows = tally.per_order()
    baseline, adapted = tally.per_pair()
    for number, (i, j) in enumerate(pairs(len(NAMES)).tolist()):
        both = [row for row in rows if {row["closer"], row["farther"]} == {NAMES[i], NAMES[j]}]
        assert sum(row["contexts"] for row in both) == len(RANKINGS)
        for values, name in ((baseline, "baseline_accuracy"), (adapted, "adapted_accuracy")):
            mean = sum(row["contexts"] * row[name] for row in both) / len(RANKINGS)
            assert mean == pytest.approx(values[number].item())


def test_an_order_counts_the_contexts_that_have_it_and_the_baseline_chooses_alike_in_all():
    rows = {(row["closer"], row["farther"]): row for row in tally_of(all_rankings(NAMES)).per_order()}
    assert len(rows) == 30
    assert {row["contexts"] for row in rows.values()} == {360}
    for a, b in itertools.combinations(NAMES, 2):
        assert rows[a, b]["baseline_accuracy"] + rows[b, a]["baseline_accuracy"] == pytest.approx(1)


def test_worst_choices_are_wrong_ones_in_order_without_repetition():
    d = torch.rand(40, len(NAMES), generator=torch.Generator().manual_seed(0))
    votes = labels([NAMES], NAMES)[:, 0]
    found = worst_choices(d, votes, most=5)
    assert len(found) == 5
    assert all(closer < farther and d[image, closer] > d[image, farther] for image, closer, farther in found)
    wrongness = [(d[i, c] - d[i, f]) / (d[i, c] + d[i, f]) for i, c, f in found]
    assert wrongness == sorted(wrongness, reverse=True)
    by_hand = max((d[i, c] - d[i, f]) / (d[i, c] + d[i, f]) for i in range(40) for c, f in pairs(6).tolist())
    assert wrongness[0] == by_hand
    assert len({image for image, *_ in found}) == len({(c, f) for _, c, f in found}) == 5
    assert {image for image, *_ in worst_choices(d, votes, without={found[0][0]})}.isdisjoint({found[0][0]})


def test_a_metric_that_is_right_has_no_wrong_choices():
    d = torch.arange(6.0).expand(3, -1)
    assert worst_choices(d, labels([NAMES], NAMES)[:, 0]) == []
    assert len(worst_choices(d, labels([NAMES[::-1]], NAMES)[:, 0])) == CHOICES
    assert worst_choices(torch.zeros(3, 6), labels([NAMES], NAMES)[:, 0]) == []


def test_corrected_choices_were_wrong_and_are_right_and_the_clearest_comes_first():
    before, after = torch.rand(2, 40, len(NAMES), generator=torch.Generator().manual_seed(1))
    votes = labels([NAMES], NAMES)[:, 0]
    found = corrected_choices(before, after, votes, most=5)
    assert len({image for image, *_ in found}) == len({(c, f) for _, c, f in found}) == len(found) == 5
    assert all(before[i, c] > before[i, f] and after[i, c] < after[i, f] for i, c, f in found)

    def clearness(i: int, c: int, f: int) -> float:
        gaps = [float(sign * (d[i, c] - d[i, f]) / (d[i, c] + d[i, f])) for d, sign in ((before, 1), (after, -1))]
        return min(gaps)

    assert clearness(*found[0]) == max(clearness(i, c, f) for i in range(40) for c, f in pairs(6).tolist())
    assert corrected_choices(before, before, votes) == []


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(16, 128, seed=1), out, PackOptions(size=128, holdout=0.5), workers=1)
    return out


@pytest.fixture(scope="module")
def run(leaves, weights_dir, tmp_path_factory):
    """A run that has been scored, on images larger than they are kept."""
    out = tmp_path_factory.mktemp("runs") / "run"
    rankings = ";".join(map(",".join, RANKINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        train = ["train", "--shards", str(leaves / "train"), "--out", str(out), "--contexts", rankings, "--epochs", "1"]
        assert main([*train, "--quiet"]) == 0
        assert main(["evaluate", str(out), "--shards", str(leaves / "val"), "--draws", "2"]) == 0
    return out


def test_details_agree_with_the_scores(run):
    details, scores = (json.loads((run / name).read_text()) for name in ("details.json", "scores.json"))
    assert details["held_out"]["samples"] == 8
    assert details["held_out"]["draws"] == 2
    total = sum(row["contexts"] for row in details["pairs"])
    assert total == 15 * len(RANKINGS)
    mean = sum(row["contexts"] * row["adapted_accuracy"] for row in details["pairs"]) / total
    assert mean == pytest.approx(scores["summary"]["adapted_accuracy"])
    by_accuracy = sorted(scores["contexts"], key=lambda context: context["adapted_accuracy"])
    shown = [example["adapted_accuracy"] for example in details["examples"]]
    assert shown == [context["adapted_accuracy"] for context in by_accuracy[:CONTEXTS]]


def test_examples_are_wrong_or_corrected_and_have_their_pictures(run):
    details = json.loads((run / "details.json").read_text())
    files, legend = set(), details["legend"]
    for example in details["examples"]:
        for kind in ("wrong", "right"):
            for choice in example[kind]:
                closer, farther = choice["closer"], choice["farther"]
                ranking = example["ranking"]
                assert ranking.index(closer["distortion"]) < ranking.index(farther["distortion"])
                assert (closer["adapted_distance"] > farther["adapted_distance"]) == (kind == "wrong")
                assert kind == "wrong" or closer["baseline_distance"] > farther["baseline_distance"]
                files |= {choice["reference"], closer["file"], farther["file"]}
    assert {kind for example in details["examples"] for kind in ("wrong", "right") if example[kind]} == {
        "wrong",
        "right",
    }
    assert [view["distortion"] for view in legend["views"]] == list(NAMES)
    files |= {legend["reference"], *(view["file"] for view in legend["views"])}
    assert {path.name for path in (run / "examples").iterdir()} == files
    for name in files:
        assert re.fullmatch(r"[\w-]+\.png", name)
        with Image.open(run / "examples" / name) as picture:
            assert picture.size == (LONGEST_SIDE, LONGEST_SIDE)


def test_quiet_commands_say_nothing(run, leaves, capfd, monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    assert main(["evaluate", str(run), "--shards", str(leaves / "val"), "--draws", "1", "--quiet"]) == 0
    train = ["train", "--shards", str(leaves / "train"), "--out", str(run), "--contexts", "1", "--quiet"]
    assert main([*train, "--overwrite", "--epochs", "1"]) == 0
    assert capfd.readouterr() == ("", "")
    assert not (run / "details.json").exists()
    assert not (run / "examples").exists()
