"""Agreement of metrics with human judgement, on packed BAPPS or on sets like it.

    DIR/2afc/val/SUB, triplets: distances (ref, p0) and (ref, p1) --> 2AFC    --> averages distort, real, all
    DIR/jnd/val/SUB, pairs:     distances (p0, p1)                --> JND mAP --> average jnd

A sub-set is read once for any number of contexts. Source: Zhang et al. 2018, sections 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastdps.contexts.distortions import to_float
from fastdps.errors import FastDPSError, ShardError
from fastdps.evaluation.options import EvaluationOptions
from fastdps.evaluation.run_scores import HumanAgreement, SubsetScores
from fastdps.loading.loader import ShardLoader
from fastdps.loading.spec import Batch
from fastdps.metric.image_sizes import check_image_size
from fastdps.metric.perceptual import PerceptualMetric, all_distances, with_unadapted
from fastdps.metric.scores import average_precision, human_ceiling, two_afc
from fastdps.runtime.console import track
from fastdps.runtime.processes import Distributed
from fastdps.shards.format import MANIFEST, Kind, read_manifest
from fastdps.shards.storage import Location, Store, has_file, locate

Test = Literal["2afc", "jnd"]
#: Kind of the sets of each test.
KINDS: dict[Test, Kind] = {"2afc": "triplets", "jnd": "pairs"}
#: Component with the votes.
VOTES: dict[Test, str] = {"2afc": "judge", "jnd": "same"}
#: Sub-sets of BAPPS in the order of the LPIPS paper; others follow, by name.
SUBSETS = ("traditional", "cnn", "superres", "deblur", "color", "frameinterp")
#: Averages of 2AFC over these sub-sets, computed only if all of them were scored.
AVERAGES: dict[str, tuple[str, ...]] = {"distort": SUBSETS[:2], "real": SUBSETS[2:]}


@dataclass(frozen=True)
class JudgedSet:
    """A shard set of human judgements: its test, the name of the sub-set, and its location."""

    test: Test
    name: str
    directory: Location


def score_judgements(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    directory: str | Location,
    processes: Distributed,
    options: EvaluationOptions,
) -> HumanAgreement:
    """Score a baseline and the K contexts of one or more adapted metrics on every judged set in `directory`.

    Args:
        baseline: The unadapted metric; its first row of weights is scored.
        adapted: Metrics on the device of `processes`. Metrics that share the backbone of `baseline` share its features.
        directory: Directory or URL with 2afc/val/SUB and jnd/val/SUB, some or all of them, or one set of triplets or
            pairs.
        processes: The processes, each of which reads its part and gets the same result.
        options: Batch size, image size and loading options.

    Returns:
        The scores. The averages "distort" and "real" need all of their sub-sets; "all" (of 2AFC) and "jnd" are over the
        sub-sets that were scored. An average that cannot be computed is `None`.

    Raises:
        ShardError: There is no such set, or one is of the wrong kind.
        ConfigError: Images are too small for the backbone.
        SampleError: Votes are not a share in [0, 1].
        FastDPSError: A metric gives NaN or infinite distances.
    """
    scorer = _Scorer(baseline, adapted, processes)
    scores: dict[Test, dict[str, SubsetScores]] = {"2afc": {}, "jnd": {}}
    for judged in find_judged_sets(locate(directory)):
        loader = options.open(judged.directory, processes)
        check_image_size(baseline.backbone.name, baseline.backbone.taps, loader.image_size, judged.directory)
        found = scorer.score(judged, loader)
        if not all(map(math.isfinite, (found.baseline, *found.contexts))):
            raise FastDPSError(
                f"on {judged.directory} the metric gives distances that are NaN or infinite: its training diverged. "
                "Train again with a lower learning rate."
            )
        scores[judged.test][judged.name] = found
    return HumanAgreement(scores["2afc"], scores["jnd"], _averages(scores))


def find_judged_sets(directory: Location) -> list[JudgedSet]:
    """Return the sub-sets in a directory, 2AFC before JND, in the order of `SUBSETS`. Raises `ShardError`."""
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


_HOW_TO_PACK = "Pack BAPPS with `fastdps pack bapps --source BAPPS --out DIR`, and name DIR."


def _subsets(directory: Location) -> list[Path] | list[Store]:
    """Return the directories in a location; on a web server, which lists nothing, those of BAPPS that exist."""
    if isinstance(directory, Path):
        return [path for path in directory.glob("[!.]*") if path.is_dir()]
    if directory.is_listed:
        return directory.directories()
    return [directory / name for name in SUBSETS if has_file(directory / name, MANIFEST)]


def _by_rank(path: Location) -> tuple[int, str]:
    return (SUBSETS.index(path.name) if path.name in SUBSETS else len(SUBSETS), path.name)


class _Scorer:
    """Scores one sub-set in one pass; every process gets the same result."""

    def __init__(self, baseline: PerceptualMetric, adapted: Sequence[PerceptualMetric], processes: Distributed) -> None:
        # With a single trained backbone its unadapted metric is one more column.
        extended = with_unadapted(baseline, adapted)
        self._has_unadapted = extended is not None
        if extended is not None:
            adapted = [extended]
        self._baseline, self._adapted, self._processes = baseline, adapted, processes
        self._columns = 1 + sum(len(metric.weights) for metric in adapted)

    def score(self, judged: JudgedSet, shards: ShardLoader) -> SubsetScores:
        """Return the scores of one sub-set."""
        batches = track(
            shards.epoch(0),
            total=shards.steps,
            what=f"scoring {judged.test} {judged.name}",
            enabled=self._processes.is_main_process,
        )
        return (self._score_2afc if judged.test == "2afc" else self._score_jnd)(batches, shards.samples)

    def _score_2afc(self, batches: Iterable[Batch], samples: int) -> SubsetScores:
        """Sum over all processes: the human ceiling first, then the scores."""
        sums = torch.zeros(1 + self._columns, dtype=torch.float64, device=self._processes.device)
        for batch in batches:
            votes = batch.components[VOTES["2afc"]].double()[:, None]
            d0, d1 = self._distances(batch, "ref", "p0", "p1").unbind(dim=1)
            sums += torch.cat([human_ceiling(votes), two_afc(d0, d1, votes)], dim=1).sum(dim=0)
        human, *values = (self._processes.reduce(sums, reduction="sum") / samples).tolist()
        return self._subset_scores(samples, human, torch.tensor(values, dtype=torch.float64))

    def _score_jnd(self, batches: Iterable[Batch], samples: int) -> SubsetScores:
        """Rank all pairs of the sub-set, which needs the distances of all processes in one place."""
        device = self._processes.device
        rows = -(-samples // self._processes.num_processes)  # the largest number on a process; the others are padded
        votes = torch.full((rows,), torch.nan, device=device)
        distances = torch.zeros(rows, self._columns, device=device)
        start = 0
        for batch in batches:
            own = slice(start, start := start + len(batch))
            votes[own] = batch.components[VOTES["jnd"]]
            distances[own] = self._distances(batch, "p0", "p1")[:, 0]
        votes, distances = self._processes.gather(votes), self._processes.gather(distances)
        is_sample = ~votes.isnan()
        return self._subset_scores(samples, None, average_precision(distances[is_sample], votes[is_sample]).cpu())

    def _subset_scores(self, samples: int, human: float | None, values: Tensor) -> SubsetScores:
        """Return scores from the values of all columns, (1 + K,) or (2 + K,)."""
        if not self._has_unadapted:
            return _subset_scores(samples, human, values)
        return replace(_subset_scores(samples, human, values[[0, *range(2, len(values))]]), unadapted=values[1].item())

    def _distances(self, batch: Batch, *names: str) -> Tensor:
        """Return the distances (n, D, 1 + K) of the first named component to each of the D others."""
        views = torch.stack([to_float(batch.components[name]) for name in names], dim=1)
        return all_distances(self._baseline, self._adapted, views)


def _subset_scores(samples: int, human: float | None, values: Tensor, of: Sequence[str] = ()) -> SubsetScores:
    """Return scores from `values` (1 + K,) float64 on the CPU: the baseline's, then that of each context."""
    baseline, contexts = values[0].item(), values[1:]
    adapted = contexts.mean().item()
    return SubsetScores(samples, human, baseline, adapted, adapted - baseline, tuple(contexts.tolist()), of=tuple(of))


def _averages(scores: Mapping[Test, Mapping[str, SubsetScores]]) -> dict[str, SubsetScores | None]:
    """Return the averages in the order in which they are shown."""
    judged = scores["2afc"]
    averages = {name: _mean(judged, subsets) for name, subsets in AVERAGES.items()}
    return {**averages, "all": _mean(judged, judged), "jnd": _mean(scores["jnd"], scores["jnd"])}


def _mean(scores: Mapping[str, SubsetScores], subsets: Collection[str]) -> SubsetScores | None:
    """Return the unweighted mean over sub-sets, None without sub-sets or if one of them is missing."""
    chosen = [scores[name] for name in subsets if name in scores]
    if not subsets or len(chosen) < len(subsets):
        return None
    ceilings = [one.human for one in chosen if one.human is not None]
    values = [torch.tensor([one.baseline, *one.contexts], dtype=torch.float64) for one in chosen]
    human = sum(ceilings) / len(ceilings) if ceilings else None
    mean = _subset_scores(sum(one.samples for one in chosen), human, torch.stack(values).mean(dim=0), of=list(subsets))
    unadapted = [one.unadapted for one in chosen if one.unadapted is not None]
    return replace(mean, unadapted=sum(unadapted) / len(unadapted)) if unadapted else mean
