"""Examples of judgements that the adapted metric gets wrong, and of those that adapting corrected, for the report.

`judged.json` of a run:

    {"format_version": 1,
     "set": {"path", "sha256"},
     "least_votes": smallest number of votes of a triplet that is searched,
     "searched": number of triplets with a clear majority, "wrong": number of them that the metric gets wrong,
     "examples": [{"reference": IMAGE, "closer": CANDIDATE, "farther": CANDIDATE,
                   "votes_closer", "votes_farther", "judges": [names], "probability"}, ...],
     "corrected": number of them that the metric gets right, and the unadapted metric wrong,
     "right": examples of these, the same as in "examples"}

    IMAGE: {"sample": id, "name": in the source, "file"}
    CANDIDATE: an IMAGE with {"baseline_distance", "adapted_distance"}

The majority finds `closer` closer to the reference. In "examples" the metric finds `farther` closer, and in "right" it
agrees. "probability" is that of its choice, null for a run that was not adapted to judgements. Files are in the
directory `judged`. Versions before 0.2 wrote neither "corrected" nor "right".
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdps.contexts.judgements import JudgedPairs
from fastdps.errors import ShardError
from fastdps.evaluation.examples import png, replace_pictures
from fastdps.evaluation.judged_sets import JudgedDistances, pair_places
from fastdps.loading.loader import ShardLoader
from fastdps.run_directory import JUDGED_VERSION, RunDirectory
from fastdps.runtime.files import write_json
from fastdps.shards.judgements import read_ids, read_names
from fastdps.shards.storage import Location

#: Number of examples, of examples with the same reference, and the longest side of a picture in pixels.
EXAMPLES, PER_REFERENCE, LONGEST_SIDE = 8, 2, 128
#: A majority is clear if it has this share of the votes, and if there are this many votes. Where most triplets of a set
#: have fewer votes, the median number is enough.
CLEAR_SHARE, CLEAR_VOTES = 0.75, 3


@dataclass(frozen=True)
class JudgedExamples:
    """The content of `judged.json`, and its pictures as PNGs by file name."""

    content: dict[str, Any]
    pictures: dict[str, bytes]


@dataclass(frozen=True)
class WrongJudgements:
    """Triplets whose clear majority the metric contradicts.

    Attributes:
        rows: Indices of the examples in the pooled judgements, the most confident choice of the metric first.
        least_votes: Smallest number of votes of a triplet with a clear majority.
        searched: Number of triplets with a clear majority.
        wrong: Number of them that the metric gets wrong.
    """

    rows: list[int]
    least_votes: float
    searched: int
    wrong: int


@dataclass(frozen=True)
class CorrectedJudgements:
    """Triplets with a clear majority that the unadapted metric contradicts, and the adapted one does not.

    Attributes:
        rows: Indices of the examples in the pooled judgements, the clearest first.
        corrected: Number of such triplets.
    """

    rows: list[int]
    corrected: int


def find_judged_examples(distances: JudgedDistances, location: Location, loader: ShardLoader) -> JudgedExamples:
    """Return the worst and the corrected choices of the pooled head on a judgement set, with their pictures.

    A run without judges is represented by the mean distance over its contexts.

    Args:
        distances: The distances of the set.
        location: The set.
        loader: Its images, in packed order; only those of the examples are loaded.

    Returns:
        The examples; the same for the same distances.

    Raises:
        ShardError: The set is damaged.
    """
    pooled = distances.judged.pool()
    places = pair_places(pooled.pairs, distances.judged)
    after = distances.after[places][:, 0] if distances.judges else distances.after[places].mean(axis=1)
    before = distances.before[places]
    found = find_wrong(pooled, after, relative=not distances.judges)
    corrected = find_corrected(pooled, before, after)
    rows = [*found.rows, *corrected.rows]
    ids = np.unique(pooled.ids[pooled.images[rows]])
    pictures = {f"{number}.png": png(image, LONGEST_SIDE) for number, image in _load(location, loader, ids).items()}
    names = read_names(location, loader.manifest) if rows else {}

    def described(rows: list[int]) -> list[dict[str, Any]]:
        return [_example(distances, pooled, row, (before, after), names) for row in rows]

    content = {
        "format_version": JUDGED_VERSION,
        "set": {"path": str(location), "sha256": loader.manifest.content_sha256()},
        "least_votes": found.least_votes,
        "searched": found.searched,
        "wrong": found.wrong,
        "examples": described(found.rows),
        "corrected": corrected.corrected,
        "right": described(corrected.rows),
    }
    return JudgedExamples(content, pictures)


def find_wrong(judged: JudgedPairs, distances: NDArray[np.float64], *, relative: bool = False) -> WrongJudgements:
    """Return the most confident choices against a clear majority, at most two of one reference.

    Args:
        judged: Judgements, one per triplet.
        distances: Distances of their pairs, (P,).
        relative: The confidence is the difference of both distances as a share of their sum. Otherwise it is the
            difference, which is the logit of the probability of a fitted head.
    """
    is_clear, least = _clear(judged)
    against = _against(judged, distances, relative=relative)
    wrong = np.flatnonzero(is_clear & (against > 0))
    return WrongJudgements(_shown(judged, wrong, against), least, int(is_clear.sum()), len(wrong))


def find_corrected(judged: JudgedPairs, before: NDArray[np.float64], after: NDArray[np.float64]) -> CorrectedJudgements:
    """Return choices that agree with a clear majority after adapting and not before, at most two of one reference.

    Args:
        judged: Judgements, one per triplet.
        before: Distances of their pairs by the unadapted metric, (P,).
        after: Distances by the adapted one.
    """
    was_wrong, is_right = _against(judged, before, relative=True), -_against(judged, after, relative=True)
    clearness = np.minimum(was_wrong, is_right)
    corrected = np.flatnonzero(_clear(judged)[0] & (clearness > 0))
    return CorrectedJudgements(_shown(judged, corrected, clearness), len(corrected))


def _clear(judged: JudgedPairs) -> tuple[NDArray[np.bool_], float]:
    """Return which judgements have a clear majority, (R,), and the smallest number of votes that is enough."""
    least = float(min(CLEAR_VOTES, np.median(judged.votes)))
    return (judged.votes >= least) & (np.maximum(judged.share, 1 - judged.share) >= CLEAR_SHARE), least


def _against(judged: JudgedPairs, distances: NDArray[np.float64], *, relative: bool) -> NDArray[np.float64]:
    """Return how clearly distances contradict each majority, negative where they agree, (R,)."""
    first, second = distances[judged.first], distances[judged.second]
    against = np.where(judged.share > 0.5, second - first, first - second)
    return against / np.maximum(first + second, 1e-12) if relative else against


def _shown(judged: JudgedPairs, rows: NDArray[np.int64], strength: NDArray[np.float64]) -> list[int]:
    """Return the first examples of some rows by strength (R,), at most two with the same reference."""
    chosen: list[int] = []
    references: list[int] = []
    for row in rows[np.argsort(-strength[rows], kind="stable")].tolist():
        reference = int(judged.images[row, 0])
        if references.count(reference) < PER_REFERENCE:
            chosen.append(row)
            references.append(reference)
        if len(chosen) == EXAMPLES:
            break
    return chosen


def _load(location: Location, loader: ShardLoader, ids: NDArray[np.int64]) -> dict[int, Tensor]:
    """Return images uint8 (H, W, 3) by sample id. Raises `ShardError`."""
    places = np.searchsorted(read_ids(location, loader.manifest), ids).tolist()
    found: dict[int, Tensor] = {}
    if places:
        with closing(loader.epoch(0, left=[range(place, place + 1) for place in places])) as batches:
            for batch in batches:
                found.update(zip(batch.ids.tolist(), batch.images.cpu(), strict=True))
    if list(found) != ids.tolist():
        raise ShardError(f"{location} has other samples than its tables. Check it with `fastdps check`.")
    return found


def _example(
    distances: JudgedDistances,
    pooled: JudgedPairs,
    row: int,
    values: Sequence[NDArray[np.float64]],
    names: dict[int, str],
) -> dict[str, Any]:
    """Return the entry of one triplet; `values` are the distances of the pooled pairs before and after."""
    reference, *candidates = pooled.ids[pooled.images[row]].tolist()
    pairs, votes = [pooled.first[row], pooled.second[row]], [float(pooled.votes_a[row]), float(pooled.votes_b[row])]
    closer = int(votes[1] > votes[0])

    def image(number: int) -> dict[str, Any]:
        return {"sample": number, "name": names.get(number, ""), "file": f"{number}.png"}

    def candidate(which: int) -> dict[str, Any]:
        before, after = (float(of_pairs[pairs[which]]) for of_pairs in values)
        return {**image(candidates[which]), "baseline_distance": before, "adapted_distance": after}

    right, chosen = candidate(closer), candidate(1 - closer)
    logit = abs(right["adapted_distance"] - chosen["adapted_distance"])
    return {
        "reference": image(reference),
        "closer": right,
        "farther": chosen,
        "votes_closer": votes[closer],
        "votes_farther": votes[1 - closer],
        "judges": _judges_of(distances.judged, pooled.images[row]),
        "probability": float(1 / (1 + np.exp(-logit))) if distances.judges else None,
    }


def _judges_of(judged: JudgedPairs, images: NDArray[np.int64]) -> list[str]:
    """Return the names of the judges of a triplet, in whichever order they saw its candidates."""
    reference, *candidates = images.tolist()
    same = (judged.images[:, 0] == reference) & (np.sort(judged.images[:, 1:], axis=1) == sorted(candidates)).all(
        axis=1
    )
    return [judged.judges[number] for number in np.unique(judged.judge[same]).tolist() if number >= 0]


def write_judged(run: RunDirectory, examples: JudgedExamples) -> None:
    """Write `judged.json`. Raises `FastDPSError`."""
    write_json(run.judged, examples.content)


def replace_judged_pictures(run: RunDirectory, examples: JudgedExamples) -> None:
    """Write the pictures in place of those of an earlier evaluation, whose `judged.json` is removed.

    Raises `FastDPSError`.
    """
    replace_pictures(run.judged_pictures, examples.pictures, named_in=run.judged)
