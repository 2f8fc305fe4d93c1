"""The metric that learns beside the page, in a thread of its own: an answer never waits for it.

pictures --once--> features --each time that answers changed--> heads of people --every ten answers--> OUT/run
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdps.errors import FastDPSError
from fastdps.judge.features import PictureFeatures
from fastdps.judge.fitting import Judged, LearnedHeads, answers_of, fit_people, save_run
from fastdps.judge.images import PictureSet
from fastdps.judge.session import Foreseen
from fastdps.judge.triplets import Deck, Triplet
from fastdps.training.adapted_run import AdaptedTo
from fastdps.training.bases import Base
from fastdps.training.next_triplet import DEFAULT_STRATEGY, Strategy, TripletChooser

#: Answers of all people between two savings of the metric.
SAVE_EVERY = 10
#: Triplets that are chosen after each fit: for the queue of a person, and for answers that come before the next fit.
PROPOSALS = 4
#: Triplets by which the scale of the base's distances is found, for its probabilities.
SCALE_TRIPLETS = 256
_log = logging.getLogger(__name__)


@dataclass
class _LearnerState:
    """The state of the thread.

    Attributes:
        done: Number of pictures whose features are computed.
        failed: Why the metric cannot learn, or "".
        changed: Answers changed since the last fit began.
        saved_at: Number of answers in the saved run.
        unsaved: Why the metric could not be saved the last time, or "".
        is_closing: The thread shall end.
    """

    done: int = 0
    failed: str = ""
    changed: bool = False
    saved_at: int = 0
    unsaved: str = ""
    is_closing: bool = False


class Learner:
    """The metric that learns.

    Args:
        base: What it is adapted from.
        pictures: The pictures.
        deck: The triplets that may be asked.
        run: The run directory that it is saved in.
        size: Side in pixels of the pictures as the metric sees them.
        strategy: How the next triplet is chosen.
        seed: Seed of all choices.

    Attributes:
        saved: The run directory, once there is one.
    """

    def __init__(
        self,
        base: Base,
        pictures: PictureSet,
        deck: Deck,
        run: Path,
        *,
        size: int,
        strategy: Strategy = DEFAULT_STRATEGY,
        seed: int = 0,
    ) -> None:
        self._base, self._pictures, self._deck, self._run = base, pictures, deck, run
        self._size, self._strategy, self._seed = size, strategy, seed
        self._chooser: TripletChooser | None = None
        self._proposals: dict[str, list[Triplet]] = {}
        self.saved: str | None = str(run) if run.exists() else None
        self._features: PictureFeatures | None = None
        self._heads: LearnedHeads | None = None
        self._baseline: Tensor | None = None
        self._state, self._condition = _LearnerState(), threading.Condition()
        self._judged: Callable[[], Judged] = dict
        self._thread = threading.Thread(target=self._work, name="learner", daemon=True)

    def start(self, judged: Callable[[], Judged]) -> None:
        """Begin to learn from the answers that a function returns."""
        self._judged = judged
        self._state.changed = bool(judged())
        self._thread.start()

    def close(self) -> None:
        """Finish the fit that is running, save the metric if there are new answers, and end the thread."""
        with self._condition:
            self._state.is_closing = True
            self._condition.notify_all()
        self._thread.join()

    def learn(self, person: str) -> None:
        """Take note that the answers of a person changed."""
        del person
        with self._condition:
            self._state.changed = True
            self._condition.notify_all()

    def predict(self, person: str, triplet: Triplet) -> Foreseen:
        """Return the probability that the second candidate is closer, by the person's head and by the base."""
        features, baseline = self._features, self._baseline
        if features is None or baseline is None:
            return Foreseen()
        weights = torch.stack([self._weights_of(person, baseline), baseline])
        fitted, base = torch.sigmoid(features.of_triplets([triplet])[0] @ weights.T).tolist()
        return Foreseen(fitted, base)

    def choose(self, person: str, asked: set[tuple[int, int, int]]) -> tuple[Triplet, str] | None:
        """Return the triplet that the strategy asks next, None to have a random one."""
        for triplet in self._proposals.get(person, ()):
            if triplet.key not in asked:
                return triplet, self._strategy
        return None

    def describe(self, person: str) -> dict[str, Any]:
        """Return the state of learning, and a sentence about it."""
        if self._state.failed:
            return {"status": "failed", "text": f"The metric cannot learn: {self._state.failed}"}
        if self._features is None:
            total = len(self._pictures)
            return {"status": "features", "text": f"Preparing the images: {self._state.done:,} of {total:,}."}
        heads = self._heads
        if heads is None:
            return {"status": "ready", "text": "The metric learns from your first answers on."}
        return {
            "status": "ready",
            "text": heads.text_for(person) + self._state.unsaved,
            "message": heads.fit.message,
            "expected": heads.expected_of(person),
            "judged": sum(heads.answers.values()),
        }

    def nearest(self, person: str, probe: int) -> dict[str, Any] | None:
        """Return the pictures nearest to a picture by the person's head."""
        features, baseline = self._features, self._baseline
        if features is None or baseline is None:
            return None
        return {"probe": probe, "pictures": features.nearest(self._weights_of(person, baseline), probe)}

    def _weights_of(self, person: str, baseline: Tensor) -> Tensor:
        heads = self._heads
        return baseline if heads is None else heads.weights_of(person)

    # ---- the thread ----

    def _work(self) -> None:
        try:
            self._prepare()
            while self._wait():
                self._fit()
            if self._features is not None:
                self._finish()
        except FastDPSError as error:
            self._state.failed = str(error)
            _log.error("the metric cannot learn: %s", error)
        except Exception:
            self._state.failed = "an internal error, which the server has printed."
            _log.exception("the metric cannot learn")

    def _prepare(self) -> None:
        """Compute the features."""

        def on_pictures(done: int) -> None:
            self._state.done = done
            if self._state.is_closing:
                raise _ClosingError

        try:
            features = PictureFeatures(
                self._base.metric, self._pictures, self._deck, size=self._size, on_pictures=on_pictures
            )
        except _ClosingError:
            return
        prior = self._base.priors[0].weights
        differences = features.of_triplets(features.candidates[:SCALE_TRIPLETS])
        self._baseline = prior / (differences @ prior).std().clamp_min(1e-12)
        if self._strategy != "random":
            self._chooser = TripletChooser(
                features.kept, features.candidates, strategy=self._strategy, seed=self._seed, random_share=0.0
            )
        self._features = features

    def _wait(self) -> bool:
        """Wait until answers changed; return False once the thread shall end."""
        with self._condition:
            self._condition.wait_for(lambda: self._state.changed or self._state.is_closing)
            return not self._state.is_closing and self._features is not None

    def _finish(self) -> None:
        """Fit the heads to the last answers, and save them."""
        if self._state.changed:
            self._fit()
        self._save()

    def _fit(self) -> None:
        """Fit the heads of all people, and save the metric after enough answers."""
        self._state.changed = False  # what changes from now on is for the next fit
        judged = self._judged()
        assert self._features is not None
        before = {} if self._heads is None else self._heads.answers
        self._heads = fit_people(self._features.kept, judged, self._base, self._seed) if judged else None
        self._propose({name: rows for name, rows in judged.items() if before.get(name) != len(rows)})
        if self._count // SAVE_EVERY > self._state.saved_at // SAVE_EVERY:
            self._save()

    def _propose(self, judged: Judged) -> None:
        """Choose the next triplets of the people whose answers are given, unless they are random."""
        if self._chooser is None or self._heads is None:
            return
        for person, rows in judged.items():
            answers, weights = answers_of({person: rows}), self._heads.weights_of(person)
            asked = {triplet.key for triplet, _ in rows}
            found: list[Triplet] = []
            while len(found) < PROPOSALS:
                proposal = self._chooser.next(weights, answers, self._heads.fit.strength, asked=asked)
                if proposal is None:
                    break
                found.append(Triplet(*proposal.triplet))
                asked.add(found[-1].key)
            self._proposals[person] = found

    def _save(self) -> None:
        """Save the metric of all people if it is of other answers than the saved one; a failure is shown."""
        if self._heads is None or self._count < SAVE_EVERY or self._count == self._state.saved_at:
            return
        try:
            save_run(self._run, self._heads, self._base, self._described())
        except FastDPSError as error:
            self._state.unsaved = f" It could not be saved: {error}"
            _log.error("the metric could not be saved: %s", error)
        else:
            self._state.unsaved = ""
            self._state.saved_at, self.saved = self._count, str(self._run)

    def _described(self) -> AdaptedTo:
        """Return what the metric was adapted to."""
        judged = self._judged()
        digest = hashlib.sha256(json.dumps(sorted(judged.items())).encode()).hexdigest()
        return AdaptedTo(
            path=str(self._run.parent),
            images=len({picture for rows in judged.values() for triplet, _ in rows for picture in triplet}),
            size=self._size,
            sha256=digest,
            source={"name": "judge"},
            by="person" if len(judged) > 1 else None,
        )

    @property
    def _count(self) -> int:
        """The number of answers that the heads were fitted to."""
        return 0 if self._heads is None else sum(self._heads.answers.values())


class _ClosingError(Exception):
    """Raised within the thread to stop the computation of features."""
