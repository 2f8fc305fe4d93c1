"""The metric that learns beside the page: what it foresees, saves and shows, and that no answer waits for it."""

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.errors import FastDPSError
from fastdps.judge import learner as learner_module
from fastdps.judge.images import PlainPictures, open_images
from fastdps.judge.learner import Learner
from fastdps.judge.summary import Rate, foreseen
from fastdps.judge.triplets import ImageTriplets, Triplet
from fastdps.judge.versions import VERSIONS, DistortedPictures
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.training.bases import Base, open_base
from fastdps.training.differences import priors_of
from helpers.judging import make_judging
from helpers.lpips_oracle import lpips_oracle
from helpers.packed import encoded, photo

SIDE, COUNT = 64, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        (root / f"{number:02d}.png").write_bytes(encoded(photo(SIDE, SIDE, seed=number), "PNG"))
    return root


@pytest.fixture(scope="module")
def base():
    """A small backbone of random weights."""
    torch.manual_seed(0)
    metric = PerceptualMetric(Backbone("squeezenet1_1", taps=(1, 4), pretrained=False))
    return Base("random", metric, priors_of(metric), SIDE, includes_backbone=True)


@pytest.fixture
def begin(folder, base, tmp_path):
    """Begin a page whose metric learns, and end it after the test."""
    opened = []

    def make(pictures=None, strategy="random"):
        out = tmp_path / "judged"
        found = pictures or PlainPictures(open_images(folder), out)
        learner = Learner(base, found, ImageTriplets(len(found), 0), out / "run", size=SIDE, strategy=strategy)
        opened.append(learner)
        return make_judging(folder, out, learner=learner), learner

    yield make
    for learner in opened:
        learner.close()


def wait(condition):
    """Wait for a condition of the thread."""
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not happen")


def judge_by(session, sees, count):
    """Give answers by the distance of what is seen of the images."""
    for _ in range(count):
        shown = session.state()["current"]
        ref, left, right = (sees[shown[role]] for role in ("ref", "left", "right"))
        choice = "left" if np.linalg.norm(ref - left) < np.linalg.norm(ref - right) else "right"
        session.answer(shown["id"], choice, 1.0)


@pytest.fixture(scope="module")
def brightness(folder):
    source = open_images(folder)
    return [source.pixels(number).mean() for number in range(len(source))]


def ready(learner):
    wait(lambda: learner.describe("anna")["status"] != "features")
    assert learner.describe("anna")["status"] == "ready", learner.describe("anna")


def fitted(judging, learner):
    """Wait until the heads are fitted to all answers."""
    wait(lambda: learner.describe("anna").get("judged") == sum(map(len, judging.people.values())))


def test_what_is_foreseen_is_what_the_saved_metric_says(begin, brightness, folder):
    judging, learner = begin()
    ready(learner)
    for name in ("anna", "ben"):
        judge_by(judging.enter(name), brightness, 12)
    fitted(judging, learner)
    learner.close()
    source = open_images(folder)
    images = torch.stack([torch.tensor(source.pixels(n)).movedim(-1, 0) for n in range(COUNT)])
    for name in ("anna", "ben"):
        metric = fastdps.load(judging.out / "run", name)
        for ref, a, b in ((0, 1, 2), (5, 3, 9)):
            wanted = torch.sigmoid(metric(images[ref], images[a]) - metric(images[ref], images[b])).item()
            assert learner.predict(name, Triplet(ref, a, b)).fitted == pytest.approx(wanted, abs=1e-4)
        order = metric.rank(images[4], images).indices.tolist()
        assert learner.nearest(name, 4) == {"probe": 4, "pictures": [n for n in order if n != 4][:12]}
    assert [m.judge for m in (fastdps.load(judging.out / "run"), fastdps.load(judging.out / "run", "ben"))] == [
        "pooled",
        "ben",
    ]


def test_an_answer_is_foreseen_before_it_is_learned_from(begin, brightness):
    """The prediction that is stored is of the heads that were there when the answer came."""
    judging, learner = begin()
    ready(learner)
    session = judging.enter("anna")
    for _ in range(12):
        shown = session.state()["current"]
        triplet = Triplet(*(shown[role] for role in ("ref", "left", "right")))
        fitted(judging, learner) if session.answers else None
        expected = learner.predict("anna", triplet)
        judge_by(session, brightness, 1)
        last = session.answers[-1]
        assert (last.predicted, last.baseline) == (expected.fitted, expected.baseline)
    decided = [a for a in session.answers if a.repeats is None]
    for by in ("predicted", "baseline"):
        hits = sum((getattr(a, by) > 0.5) == (a.judge == 1) for a in decided)
        assert foreseen(session.answers, by) == Rate(hits, len(decided))


def test_the_metric_is_saved_after_every_ten_answers(begin, brightness):
    judging, learner = begin()
    session = judging.enter("anna")
    ready(learner)
    judge_by(session, brightness, 9)
    fitted(judging, learner)
    assert learner.saved is None
    assert not (judging.out / "run").exists()
    judge_by(session, brightness, 1)
    wait(lambda: learner.saved)
    assert fastdps.load(learner.saved).judge == "pooled"


def test_no_answer_waits_for_a_fit(begin, brightness, monkeypatch):
    judging, learner = begin()
    ready(learner)
    running, release = threading.Event(), threading.Event()
    fit = learner_module.fit_people

    def slow(*arguments):
        running.set()
        assert release.wait(60)
        return fit(*arguments)

    monkeypatch.setattr(learner_module, "fit_people", slow)
    session = judging.enter("anna")
    judge_by(session, brightness, 1)
    assert running.wait(60)
    judge_by(session, brightness, 20)
    assert learner.nearest("anna", 0)["pictures"]
    assert len(judging.results()["people"]) == 1
    release.set()
    fitted(judging, learner)
    assert learner.describe("anna")["judged"] == 21


def test_triplets_are_chosen_by_the_strategy(begin, brightness):
    """All but repeats and one in four, once there is a fit; and no triplet twice."""
    judging, learner = begin(strategy="information")
    ready(learner)
    session = judging.enter("anna")
    for _ in range(12):
        judge_by(session, brightness, 1)
        fitted(judging, learner)
    asked = [answer.asked for answer in session.answers]
    assert asked.count("information") >= 6
    assert asked.count("random") >= 2
    keys = [session.triplet_of(answer).key for answer in session.answers if answer.repeats is None]
    assert len(set(keys)) == len(keys)


def test_answers_of_an_earlier_start_are_learned_from(begin, brightness):
    judging, learner = begin()
    judge_by(judging.enter("anna"), brightness, 11)  # maybe before the features are ready
    learner.close()
    judging, learner = begin()
    fitted(judging, learner)
    wait(lambda: learner.saved)
    assert learner.saved == str(judging.out / "run")


def test_a_metric_that_fails_does_not_stop_the_page(begin, brightness, monkeypatch):
    def fail(*_):
        raise FastDPSError("no reason")

    monkeypatch.setattr(learner_module, "fit_people", fail)
    judging, learner = begin()
    ready(learner)
    session = judging.enter("anna")
    judge_by(session, brightness, 1)
    wait(lambda: learner.describe("anna")["status"] == "failed")
    assert learner.describe("anna")["text"] == "The metric cannot learn: no reason"
    judge_by(session, brightness, 5)
    assert len(session.answers) == 6


def test_a_metric_that_cannot_be_saved_is_reported(begin, brightness, monkeypatch):
    def full(*_):
        raise FastDPSError("the disk is full")

    monkeypatch.setattr(learner_module, "save_run", full)
    judging, learner = begin()
    ready(learner)
    judge_by(judging.enter("anna"), brightness, 12)
    wait(lambda: "It could not be saved: the disk is full" in learner.describe("anna")["text"])
    assert learner.describe("anna")["status"] == "ready"


def test_versions_of_an_image_are_compared_with_each_other(folder, base, tmp_path):
    pictures = DistortedPictures(open_images(folder), tmp_path, size=SIDE, seed=0)
    learner = Learner(base, pictures, ImageTriplets(len(pictures), 0), tmp_path / "run", size=SIDE)
    learner.start(dict)
    ready(learner)
    found = learner.nearest("anna", 3 * VERSIONS)
    assert sorted(found["pictures"]) == list(range(3 * VERSIONS + 1, 4 * VERSIONS))
    learner.close()


@pytest.mark.slow
@torch.no_grad()
def test_the_metric_of_answers_exports_to_lpips(folder, brightness, tmp_path, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    out = tmp_path / "judged"
    pictures = PlainPictures(open_images(folder), out)
    learner = Learner(open_base("alexnet"), pictures, ImageTriplets(COUNT, 0), out / "run", size=SIDE)
    judging = make_judging(folder, out, learner=learner)
    judge_by(judging.enter("anna"), brightness, 25)
    fitted(judging, learner)
    learner.close()
    fastdps.export(out / "run", tmp_path / "mine.pth", "lpips")
    weights = load_file(weights_dir / "alexnet_features.safetensors")
    oracle = lpips_oracle("alex", weights, model_path=str(tmp_path / "mine.pth"))
    own = fastdps.load(out / "run")
    x, y = torch.rand(2, 5, 3, 80, 70, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(oracle(x, y, normalize=True).flatten(), own(x, y), atol=1e-5, rtol=1e-5)
