"""Judgements that the metric gets wrong: which are shown, what is written of them, and interrupted writes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdps
from fastdps.commands.cli import main
from fastdps.contexts.judgements import JudgedPairs
from fastdps.evaluation import evaluate, examples
from fastdps.evaluation.judged_examples import EXAMPLES, PER_REFERENCE, JudgedExamples, find_corrected, find_wrong
from fastdps.evaluation.judged_scores import JudgementScores
from fastdps.evaluation.run_scores import read_scores
from fastdps.loading.loader import ShardLoader
from fastdps.report.reading import read_run
from fastdps.run_directory import RunDirectory
from helpers.judged_images import SIDE, packed_judged
from helpers.judgement_files import names_of
from helpers.made_up_judges import make_judged_run


def judged(rows: int = 400, images: int = 12, votes: int = 5, seed: int = 0) -> tuple[JudgedPairs, np.ndarray]:
    """Return random judgements, one per triplet, each with pairs of its own, and distances of the pairs."""
    rng = np.random.default_rng(seed)
    triplets = np.unique([np.sort(rng.choice(images, 3, replace=False)) for _ in range(rows)], axis=0)
    count = len(triplets)
    for_b = rng.integers(0, votes + 1, count).astype(float)
    pairs = np.concatenate([triplets[:, [0, 1]], triplets[:, [0, 2]]])
    columns = np.arange(count), np.arange(count) + count, votes - for_b, for_b
    made = JudgedPairs(np.arange(images), pairs, triplets, *columns, judge=np.full(count, -1), judges=())
    return made, rng.random(2 * count)


def test_examples_contradict_a_clear_majority_and_the_most_confident_come_first():
    made, d = judged()
    found = find_wrong(made, d)
    share = made.share[found.rows]
    margin = np.abs(d[made.first] - d[made.second])
    assert len(found.rows) == EXAMPLES
    assert (np.maximum(share, 1 - share) >= 0.75).all()
    chooses_b = d[made.second][found.rows] < d[made.first][found.rows]
    assert (chooses_b == (share < 0.5)).all()
    assert (np.diff(margin[found.rows]) <= 0).all()
    clear = np.maximum(made.share, 1 - made.share) >= 0.75
    wrong = clear & ((d[made.second] < d[made.first]) != (made.share > 0.5))
    assert (found.searched, found.wrong) == (clear.sum(), wrong.sum())
    references = made.images[:, 0]
    for row in set(np.flatnonzero(wrong & (margin > margin[found.rows[-1]])).tolist()) - set(found.rows):
        earlier = [other for other in found.rows if margin[other] > margin[row]]
        assert (references[earlier] == references[row]).sum() == PER_REFERENCE  # left out for its reference only


def test_corrected_judgements_were_wrong_and_are_right_and_the_clearest_come_first():
    made, before = judged()
    after = np.random.default_rng(1).random(len(before))
    found = find_corrected(made, before, after)
    clearness = []
    for row in range(len(made)):
        one, other = made.first[row], made.second[row]
        if made.share[row] > 0.5:
            one, other = other, one
        gaps = [sign * (d[one] - d[other]) / (d[one] + d[other]) for d, sign in ((before, 1), (after, -1))]
        clearness.append(min(gaps) if max(made.share[row], 1 - made.share[row]) >= 0.75 else -1)
    assert found.corrected == sum(value > 0 for value in clearness) > EXAMPLES
    assert clearness[found.rows[0]] == max(clearness)
    assert all(clearness[row] > 0 for row in found.rows)
    assert np.unique(made.images[found.rows, 0], return_counts=True)[1].max() <= PER_REFERENCE
    assert find_corrected(made, before, before).corrected == 0


def test_no_reference_comes_more_than_twice():
    made, d = judged()
    made.images[:, 0] %= 3
    rows = find_wrong(made, d).rows
    assert np.unique(made.images[rows, 0], return_counts=True)[1].tolist() == [PER_REFERENCE] * 3


def test_the_sides_of_a_judgement_do_not_matter():
    made, d = judged()
    turned = JudgedPairs(
        made.ids,
        made.pairs,
        made.images[:, [0, 2, 1]],
        made.second,
        made.first,
        made.votes_b,
        made.votes_a,
        made.judge,
        made.judges,
    )
    assert find_wrong(turned, d) == find_wrong(made, d) == find_wrong(made, d)


def test_one_vote_is_clear_only_where_most_triplets_have_one():
    made, d = judged(votes=1)
    assert find_wrong(made, d).least_votes == 1
    assert find_wrong(made, d).searched == len(made)
    made.votes_a[3:] *= 4
    made.votes_b[3:] *= 4
    few = find_wrong(made, d)
    assert (few.least_votes, few.searched) == (3, len(made) - 3)


def test_without_fitted_heads_the_confidence_does_not_depend_on_the_scale():
    made, d = judged()
    scale = np.where(np.arange(len(d)) % len(made) < 20, 1000.0, 1.0)
    relative = find_wrong(made, d, relative=True)
    assert find_wrong(made, d * scale, relative=True) == relative
    assert find_wrong(made, d * scale) != find_wrong(made, d)


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights_dir) -> Path:
    """A run with heads of three people, scored on held-out judgements; the sets are beside it."""
    root = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        sets = packed_judged(root, holdout=0.4)
        train = ["train", "--judgements", str(sets / "train"), "--by", "person", "--out", str(root / "run")]
        assert main([*train, "--size", "64", "--quiet"]) == 0
        assert score(root / "run") == 0
    return root / "run"


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def score(run: Path, *options: str) -> int:
    held_out = run.parent / "set/val"
    return main(["evaluate", str(run), "--judgements", str(held_out), "--size", "64", "--quiet", *options])


def votes_of(run: Path) -> dict[tuple[str, ...], list[float]]:
    """Return the votes of the triplets of the source by a plain loop: reference, image, other image."""
    votes: dict[tuple[str, ...], list[float]] = {}
    with (run.parent / "source/judged.csv").open() as file:
        for row in csv.DictReader(file):
            for one, other, share in (("p0", "p1", 1 - float(row["judge"])), ("p1", "p0", float(row["judge"]))):
                counts = votes.setdefault((row["ref"], row[one], row[other]), [0.0, 0.0])
                counts[0] += share * float(row["votes"])
                counts[1] += (1 - share) * float(row["votes"])
    return votes


def test_entries_are_those_of_the_set_and_of_the_metric(run):
    content = json.loads((run / "judged.json").read_text())
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    names = names_of(run.parent / "set/val")
    assert content["set"]["sha256"] == scores["set"]["sha256"]
    assert content["examples"]
    after, before = fastdps.load(run), fastdps.load("alexnet")
    for example in content["examples"]:
        roles = [example[role] for role in ("reference", "closer", "farther")]
        pixels = []
        for image in roles:
            assert image["name"] == names[image["sample"]]
            with (
                Image.open(run / "judged" / image["file"]) as picture,
                Image.open(run.parent / "source" / image["name"]) as source,
            ):
                assert picture.size == (64, 64)
                small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
                assert np.abs(np.asarray(small, float) - np.asarray(source.convert("RGB"), float)).mean() < 12
                pixels.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))
        reference, *others = pixels
        for image, pixel in zip(roles[1:], others, strict=True):
            for metric, key in ((after, "adapted_distance"), (before, "baseline_distance")):
                assert image[key] == pytest.approx(metric(reference, pixel).item(), rel=1e-3)
        logit = example["closer"]["adapted_distance"] - example["farther"]["adapted_distance"]
        assert logit > 0
        assert example["probability"] == pytest.approx(1 / (1 + np.exp(-logit)))
        closer, farther = votes_of(run)[tuple(image["name"] for image in roles)]
        assert example["votes_closer"] <= closer  # some are in train
        assert example["votes_farther"] <= farther
        assert example["judges"]
        assert set(example["judges"]) <= {"bright", "colour", "random"}


def test_the_same_evaluation_gives_the_same_files_and_loads_only_what_it_shows(run, tmp_path, monkeypatch):
    loaded = []
    epoch = ShardLoader.epoch

    def counted(self, *arguments, **options):
        loaded.append(options.get("left"))
        return epoch(self, *arguments, **options)

    monkeypatch.setattr(ShardLoader, "epoch", counted)
    again = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "set").symlink_to(run.parent / "set")
    (again / "judged.json").unlink()
    assert score(again) == 0
    read = [{path.name: path.read_bytes() for path in (one / "judged").iterdir()} for one in (run, again)]
    assert read[0] == read[1]
    contents = [json.loads((one / "judged.json").read_text()) for one in (run, again)]
    assert contents[0]["examples"] == contents[1]["examples"]
    *_, shown = loaded
    assert sum(map(len, shown)) == len(read[0])


def test_a_run_on_contexts_has_examples_without_a_probability(run, tmp_path):
    contexts = tmp_path / "contexts"
    shutil.copytree(run, contexts)
    config = json.loads((contexts / "config.json").read_text())
    names = ["rotate", "translate", "darken", "color", "blur", "zoom_in"]
    del config["judges"]
    config["rankings"] = [names, names[::-1]]
    (contexts / "config.json").write_text(json.dumps(config))
    metric = fastdps.PerceptualMetric.load(run / "metric.safetensors")
    two = fastdps.PerceptualMetric(metric.backbone, metric.weights[:2], [tuple(names), tuple(names[::-1])])
    two.save(contexts / "metric.safetensors")
    (contexts / "scores.json").unlink()
    (tmp_path / "set").symlink_to(run.parent / "set")
    assert score(contexts) == 0
    content = json.loads((contexts / "judged.json").read_text())
    assert content["examples"]
    assert {example["probability"] for example in content["examples"]} == {None}
    assert main(["report", str(contexts)]) == 0


def test_a_new_training_removes_the_examples(run, tmp_path):
    again = RunDirectory(shutil.copytree(run, tmp_path / "run"))
    assert again.judged.exists()
    again.clear()
    assert not again.judged.exists()
    assert not again.judged_pictures.exists()


class CrashError(Exception):
    """The error that ends an evaluation in these tests."""


def results(run: RunDirectory, number: int) -> tuple[object, None, JudgedExamples]:
    """Return scores and examples of the n-th set."""
    scores = read_scores(run)
    assert scores is not None
    made = scores.judgements.to_dict()
    of_set = JudgementScores.from_dict({**made, "set": {**made["set"], "sha256": f"{number}"}})
    content = json.loads(run.judged.read_text()) if run.judged.exists() else {"examples": []}
    content |= {"format_version": 1, "least_votes": 1, "searched": 1, "wrong": 1}
    examples = JudgedExamples({**content, "set": {"path": "set", "sha256": f"{number}"}}, {f"{number}.png": b"png"})
    return evaluate.replace(scores, judgements=of_set), None, examples


def crash_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Raise `CrashError` before the n-th file operation."""
    done = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done == number:
                raise CrashError
            return function(*arguments, **options)

        return call

    for name in ("replace", "unlink", "mkdir"):
        patch.setattr(Path, name, counted(getattr(Path, name)))
    patch.setattr(examples.shutil, "rmtree", counted(examples.shutil.rmtree))


def sets_in(run: RunDirectory) -> tuple[str, str | None]:
    """Return the sets of the scores and of the examples, read from the files."""
    judged = json.loads(run.judged.read_text())["set"]["sha256"] if run.judged.exists() else None
    return json.loads(run.scores.read_text())["judgements"]["set"]["sha256"], judged


def test_a_crash_at_any_moment_never_mixes_two_evaluations(tmp_path):
    run = RunDirectory(make_judged_run(tmp_path / "run", ["a", "b"]))
    seen = set()
    for number in range(1, 100):
        evaluate._write(run, *results(run, 1))
        assert sets_in(run) == ("1", "1")
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, number)
            try:
                evaluate._write(run, *results(run, 2))
                break
            except CrashError:
                seen.add(sets_in(run))
        record = read_run(run.path)
        assert record.judged is None or record.judged["set"]["sha256"] == record.judgements["set"]["sha256"]
    assert number > 5
    assert seen == {("1", "1"), ("1", None), ("2", None)}
    assert sets_in(run) == ("2", "2")
    assert [path.name for path in run.judged_pictures.iterdir()] == ["2.png"]
    assert not list(run.path.rglob("*.partial"))


def test_scores_on_other_data_keep_the_examples(tmp_path):
    run = RunDirectory(make_judged_run(tmp_path / "run", ["a"]))
    scores, _, judged = results(run, 1)
    evaluate._write(run, scores, None, judged)
    evaluate._write(run, scores, None)
    assert sets_in(run) == ("1", "1")
