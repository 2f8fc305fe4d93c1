"""Human judgement: how well metrics agree with people, on BAPPS as `make_shards.py bapps` packs it, or sets like it.

    DIR/2afc/val/SUB, triplets: distances (ref, p0) and (ref, p1) --> 2AFC    --> averages distort, real, all
    DIR/jnd/val/SUB, pairs:     distances (p0, p1)                --> JND mAP --> average jnd

A sub-set is read once, whatever the number of contexts. Source: Zhang et al. 2018, sections 2 and 4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from fastdps.contexts.distortions import to_float
from fastdps.errors import FastDPSError, SampleError, ShardError
from fastdps.loading.loader import LoaderName, ShardLoader, open_shards
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric, all_distances
from fastdps.metric.scores import average_precision, human_ceiling, two_afc
from fastdps.runtime.console import track
from fastdps.shards.cache import Cache
from fastdps.shards.format import MANIFEST, Kind, read_manifest
from fastdps.shards.storage import Location, Store, has_file, locate

Test = Literal["2afc", "jnd"]
#: The kind of the sets that each test is made on.
KINDS: dict[Test, Kind] = {"2afc": "triplets", "jnd": "pairs"}
#: The component that holds the votes.
VOTES: dict[Test, str] = {"2afc": "judge", "jnd": "same"}
#: The sub-sets of BAPPS in the order of the LPIPS paper; other ones come behind, by name.
SUBSETS = ("traditional", "cnn", "superres", "deblur", "color", "frameinterp")
#: Averages of 2AFC that are there only if all of their sub-sets are.
AVERAGES: dict[str, tuple[str, ...]] = {"distort": SUBSETS[:2], "real": SUBSETS[2:]}


@dataclass(frozen=True)
class JudgedSet:
    """A shard set of human judgements: which test it is for, the name of the sub-set, where it is."""

    test: Test
    name: str
    directory: Location


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1] of one sub-set, or means over several.

    `human` is the human ceiling, None for JND; `values` (1 + K,) float64 on the CPU are the baseline's score and that
    of every context.
    """

    samples: int
    human: float | None
    values: Tensor

    def to_json(self) -> dict[str, Any]:
        """The scores as `scores.json` has them; `adapted` is the mean over `contexts`."""
        baseline, contexts = self.values[0].item(), self.values[1:]
        adapted = contexts.mean().item()
        return {
            "samples": self.samples,
            "human": self.human,
            "baseline": baseline,
            "adapted": adapted,
            "change": adapted - baseline,
            "contexts": contexts.tolist(),
        }


def score_bapps(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    directory: str | Location,
    accelerator: Accelerator,
    *,
    batch_size: int,
    size: int | None = None,
    loader: LoaderName = "auto",
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Score a baseline and the K contexts of one or more adapted metrics on every sub-set in `directory`.

    `directory` holds 2afc/val/SUB and jnd/val/SUB, some or all of them, or is itself one set of triplets or pairs.
    `baseline` scores with its first row of weights; metrics that share its backbone share its features too. Metrics
    are on the accelerator's device; every process reads its part and returns the same result. `batch_size` is in
    samples of one process; `size` resizes the images to a square of this many pixels.

    Returns what `scores.json` has under "bapps", scores as fractions:

        {"2afc": {SUB: {"samples", "human", "baseline", "adapted", "change", "contexts": [K scores]}, ...},
         "jnd": {SUB: the same with "human" null, ...},
         "averages": {"distort", "real", "all", "jnd": the same and "of", the sub-sets averaged, or null}}

    The averages `distort` and `real` are null unless all of their sub-sets are there; `all` (of 2AFC) and `jnd` are
    those of what is there, null if nothing is.

    Raises `ShardError` when there is no such set or one is of the wrong kind, `SampleError` for votes that are no
    share, `FastDPSError` when a metric gives distances that are no numbers, and what loading raises.
    """
    scorer = _Scorer(baseline, adapted, accelerator)
    scores: dict[Test, dict[str, Scores]] = {"2afc": {}, "jnd": {}}
    for judged in find_judged_sets(locate(directory)):
        shards = open_shards(
            judged.directory,
            batch_size=batch_size,
            device=accelerator.device,
            shuffle=False,
            size=size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            loader=loader,
            cache=cache,
        )
        found = scorer.score(judged, shards)
        if not found.values.isfinite().all():
            raise FastDPSError(
                f"on {judged.directory} the metric gives distances that are no numbers: its training has diverged. "
                "Train again with a lower learning rate."
            )
        scores[judged.test][judged.name] = found
    subsets: dict[str, Any] = {
        test: {name: one.to_json() for name, one in of_test.items()} for test, of_test in scores.items()
    }
    return subsets | {"averages": _averages(scores)}


def find_judged_sets(directory: Location) -> list[JudgedSet]:
    """The sub-sets in a directory: 2AFC before JND, in the order of `SUBSETS`. Raises `ShardError` as `score_bapps`."""
    if has_file(directory, MANIFEST):
        kind = read_manifest(directory).kind
        tests = [test for test, scored in KINDS.items() if scored == kind]
        if not tests:
            raise ShardError(f"{directory} is a set of {kind}; human judgement needs triplets or pairs. {_HOW_TO_PACK}")
        name = directory.resolve().name if isinstance(directory, Path) else directory.name
        return [JudgedSet(tests[0], name, directory)]
    found = [
        JudgedSet(test, path.name, path)
        for test in KINDS
        for path in sorted(_subsets(directory / test / "val"), key=_by_rank)
    ]
    if not any(has_file(one.directory, MANIFEST) for one in found):
        raise ShardError(
            f"{directory} holds no packed judgements: it has neither a {MANIFEST} of its own, nor any in "
            f"{' or '.join(f'{test}/val/SUBSET' for test in KINDS)}. {_HOW_TO_PACK}"
        )
    for one in found:
        if (kind := read_manifest(one.directory).kind) != KINDS[one.test]:
            raise ShardError(f"{one.directory} is a set of {kind}; {one.test} needs {KINDS[one.test]}. {_HOW_TO_PACK}")
    return found


_HOW_TO_PACK = "Pack BAPPS with `python tools/make_shards.py bapps --source BAPPS --out DIR`, and name DIR."


def _subsets(directory: Location) -> list[Path] | list[Store]:
    """The directories in it; on a web server, which lists nothing, those of BAPPS that are there."""
    if isinstance(directory, Path):
        return [path for path in directory.glob("[!.]*") if path.is_dir()]
    if directory.is_listed:
        return directory.directories()
    return [directory / name for name in SUBSETS if has_file(directory / name, MANIFEST)]


def _by_rank(path: Location) -> tuple[int, str]:
    return (SUBSETS.index(path.name) if path.name in SUBSETS else len(SUBSETS), path.name)


class _Scorer:
    """What scores one sub-set, in one pass; every process gets the same result."""

    def __init__(
        self, baseline: PerceptualMetric, adapted: Sequence[PerceptualMetric], accelerator: Accelerator
    ) -> None:
        self._baseline, self._adapted, self._accelerator = baseline, adapted, accelerator
        self._columns = 1 + sum(len(metric.weights) for metric in adapted)

    def score(self, judged: JudgedSet, shards: ShardLoader) -> Scores:
        """The scores of one sub-set."""
        batches = track(
            shards.epoch(0),
            total=shards.steps,
            what=f"scoring {judged.test} {judged.name}",
            enabled=self._accelerator.is_main_process,
        )
        checked = (_with_votes_checked(batch, VOTES[judged.test], judged.directory) for batch in batches)
        return (self._score_2afc if judged.test == "2afc" else self._score_jnd)(checked, shards.samples)

    def _score_2afc(self, batches: Iterable[Batch], samples: int) -> Scores:
        """Sums over what each process has: the human ceiling's first, then those of the scores."""
        sums = torch.zeros(1 + self._columns, dtype=torch.float64, device=self._accelerator.device)
        for batch in batches:
            votes = batch.components[VOTES["2afc"]].double()[:, None]
            d0, d1 = self._distances(batch, "ref", "p0", "p1").unbind(dim=1)
            sums += torch.cat([human_ceiling(votes), two_afc(d0, d1, votes)], dim=1).sum(dim=0)
        human, *values = (self._accelerator.reduce(sums, reduction="sum") / samples).tolist()
        return Scores(samples, human, torch.tensor(values, dtype=torch.float64))

    def _score_jnd(self, batches: Iterable[Batch], samples: int) -> Scores:
        """Ranks all pairs of the sub-set, so it brings the distances of all processes together."""
        device = self._accelerator.device
        rows = -(-samples // self._accelerator.num_processes)  # of the process that has most; others are filled up
        votes = torch.full((rows,), torch.nan, device=device)
        distances = torch.zeros(rows, self._columns, device=device)
        start = 0
        for batch in batches:
            own = slice(start, start := start + len(batch))
            votes[own] = batch.components[VOTES["jnd"]]
            distances[own] = self._distances(batch, "p0", "p1")[:, 0]
        votes, distances = self._accelerator.gather((votes, distances))
        is_there = ~votes.isnan()
        return Scores(samples, None, average_precision(distances[is_there], votes[is_there]).cpu())

    def _distances(self, batch: Batch, *names: str) -> Tensor:
        """Distances (n, D, 1 + K) of the first named component to each of the D others."""
        views = torch.stack([to_float(batch.components[name]) for name in names], dim=1)
        return all_distances(self._baseline, self._adapted, views)


def _with_votes_checked(batch: Batch, component: str, directory: Location) -> Batch:
    """The batch. Raises `SampleError` where votes are no share: a score of them would look like any other."""
    votes = batch.components[component]
    if wrong := (~((votes >= 0) & (votes <= 1))).nonzero().flatten().tolist():
        number, share = batch.ids[wrong[0]].item(), votes[wrong[0]].item()
        raise SampleError(
            f"sample {number} of {directory} has {share} as {component}, not a share of votes in [0, 1]. "
            "Correct the source, and pack it again."
        )
    return batch


def _averages(scores: Mapping[Test, Mapping[str, Scores]]) -> dict[str, Any]:
    """The averages, in the order in which they are shown."""
    judged = scores["2afc"]
    averages = {name: _mean(judged, subsets) for name, subsets in AVERAGES.items()}
    return {**averages, "all": _mean(judged, judged), "jnd": _mean(scores["jnd"], scores["jnd"])}


def _mean(scores: Mapping[str, Scores], subsets: Collection[str]) -> dict[str, Any] | None:
    """The mean over sub-sets, each counting the same; None if there are none or one is missing."""
    chosen = [scores[name] for name in subsets if name in scores]
    if not subsets or len(chosen) < len(subsets):
        return None
    ceilings = [one.human for one in chosen if one.human is not None]
    mean = Scores(
        samples=sum(one.samples for one in chosen),
        human=sum(ceilings) / len(ceilings) if ceilings else None,
        values=torch.stack([one.values for one in chosen]).mean(dim=0),
    )
    return {"of": list(subsets), **mean.to_json()}
