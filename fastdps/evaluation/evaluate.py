"""Score a run: baseline and adapted metric on the same held-out distortions, and against human judgement.

RUN, held-out images --> tally: all contexts in one pass --> scores.json, details.json, examples/
RUN, judged sets     --> agreement with people -----------> scores.json
RUN, judgement set   --> agreement with each judge --------> scores.json, judged.json, judged/
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch

from fastdps.errors import ConfigError, FastDPSError
from fastdps.evaluation.examples import Details, find_examples, find_legend, replace_examples, write_details
from fastdps.evaluation.judged_examples import (
    JudgedExamples,
    find_judged_examples,
    replace_judged_pictures,
    write_judged,
)
from fastdps.evaluation.judged_scores import JudgementScores
from fastdps.evaluation.judged_sets import judged_distances, score_judged
from fastdps.evaluation.judgements import find_judged_sets, score_judgements
from fastdps.evaluation.options import EvaluationOptions
from fastdps.evaluation.run_scores import RunScores, read_scores
from fastdps.evaluation.scored_sets import ScoredSet, SetKind, seen_as
from fastdps.evaluation.tally import Tally, tally_choices
from fastdps.metric.backbones import Backbone
from fastdps.metric.image_sizes import check_image_size
from fastdps.metric.metric_file import read_tensors_sha256
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import remove_partial, write_json
from fastdps.runtime.processes import Distributed, join_processes
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import Location, LocationLike, locate
from fastdps.training.judgement_files import packed_judgements
from fastdps.training.recipes import TrainConfig
from fastdps.training.run_config import open_images, read_settings

_log = logging.getLogger(__name__)


def evaluate(
    run: str | PathLike[str],
    *,
    shards: LocationLike | None = None,
    bapps: LocationLike | None = None,
    judgements: LocationLike | None = None,
    options: EvaluationOptions | None = None,
) -> RunScores:
    """Score a run on held-out images, on human judgement, or both, and write `scores.json`.

    Scores of an earlier call that are not computed again are kept. Under `accelerate launch` each process calls this
    function and gets the same result.

    Args:
        run: Run directory, or what `fastdps.train` returned.
        shards: Shard set of held-out images, to score the contexts on.
        bapps: Packed BAPPS, or any set of judged triplets or pairs.
        judgements: Judgement set, or a .csv, .jsonl or .parquet file of judgements, which is packed into the cache.
        options: Options for scoring, see `EvaluationOptions`.

    Returns:
        The scores of the run.

    Raises:
        ConfigError: There is nothing to score on, a set is of the wrong kind, or another process trains in the run or
            evaluates it.
        ShardError: A shard set is missing or damaged.
        FastDPSError: The run is missing or damaged, or its metric gives NaN.

    Example:
        >>> scores = evaluate("runs/sample", shards="shards/sample/val")  # doctest: +SKIP
        >>> scores.summary.adapted_accuracy  # doctest: +SKIP
        0.794
    """
    if shards is None and bapps is None and judgements is None:
        raise ConfigError("nothing to score on: give --shards with held-out images, --judgements or --bapps.")
    options, directory = options or EvaluationOptions(), RunDirectory(Path(run))
    directory.read_config()  # raises if it is not a run, before the lock creates the directory
    with join_processes() as processes, ExitStack() as stack:
        processes.broadcast(lambda: stack.enter_context(directory.locked("evaluation")))
        config = read_settings(directory)
        baseline, adapted = load_metrics(directory, config, processes)
        files = processes.broadcast(lambda: _metric_files(directory))
        earlier = read_scores(directory)
        scores = earlier or replace(RunScores.unscored(config, directory), metrics=files)
        if earlier and earlier.metrics not in ({}, files):
            _log.warning("%s changed since it was scored: earlier scores are left out", ", ".join(files))
            scores = replace(RunScores.unscored(config, directory), metrics=files)
        details, wrong = None, None
        sets = processes.broadcast(lambda: _sets(directory, options, shards=shards, bapps=bapps, judgements=judgements))
        if shards is not None:
            metrics = baseline, adapted
            tally, details = _score_contexts(directory, metrics, locate(shards), config, options, processes)
            rankings = [ranking for metric in adapted for ranking in metric.rankings]
            scores = scores.with_contexts(rankings, tally)
        if bapps is not None:
            agreement = score_judgements(baseline, adapted, locate(bapps), processes, options)
            scores = replace(scores, bapps=agreement)
        if judgements is not None:
            judged, wrong = _score_judges(baseline, adapted, judgements, options, processes)
            scores = replace(scores, judgements=judged)
        scores = scores.with_sets(sets)
        if processes.is_main_process:
            _write(directory, scores, details, wrong)
    return scores


def _metric_files(run: RunDirectory) -> dict[str, str]:
    """Return the hash of the tensors of each metric file of a run; none of files of 0.1.0, which do not state it."""
    hashes = {path.relative_to(run.path).as_posix(): read_tensors_sha256(path) for path in run.metrics()}
    return {name: digest for name, digest in hashes.items() if digest}


def _sets(
    run: RunDirectory,
    options: EvaluationOptions,
    *,
    shards: LocationLike | None,
    bapps: LocationLike | None,
    judgements: LocationLike | None,
) -> list[ScoredSet]:
    """Return the sets to score on. Raises `ShardError` if one of them is missing or damaged."""
    config = run.read_config()

    def describe(kind: SetKind, location: Location, name: str = "", draws: int | None = None) -> ScoredSet:
        manifest = read_manifest(location)
        size = manifest.image_size if options.size is None else (options.size, options.size)
        sha256 = manifest.content_sha256()
        same_as = seen_as(sha256, config)
        return ScoredSet(kind, name, str(location), sha256, manifest.samples, size, draws, same_as)

    found = [] if shards is None else [describe("contexts", locate(shards), draws=options.draws)]
    if bapps is not None:
        found += [describe(one.test, one.directory, one.name) for one in find_judged_sets(locate(bapps))]
    if judgements is not None:
        found.append(describe("judgements", packed_judgements(judgements, size=options.size)))
    return found


def _score_judges(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    judgements: LocationLike,
    options: EvaluationOptions,
    processes: Distributed,
) -> tuple[JudgementScores, JudgedExamples | None]:
    """Score all metrics on a judgement set; on the main process also collect what the report shows.

    The main process does it; the others get the scores.
    """
    examples: list[JudgedExamples] = []

    def score() -> JudgementScores:
        location = packed_judgements(judgements, size=options.size)
        loader = open_images(
            location, size=options.size, device=processes.device, options=options.loading, batch_size=options.batch_size
        )
        check_image_size(baseline.backbone.name, baseline.backbone.taps, loader.image_size, location)
        distances = judged_distances(baseline, adapted, location, loader, limits=options.moments, progress=True)
        examples.append(find_judged_examples(distances, location, loader))
        return score_judged(distances, location, loader.manifest.content_sha256())

    result: JudgementScores = processes.broadcast(score)
    return result, examples[0] if examples else None


def _write(run: RunDirectory, scores: RunScores, details: Details | None, judged: JudgedExamples | None = None) -> None:
    """Write scores and details so that a crash at any time never leaves the scores of one set with details of another.

    The earlier details are removed first and the new ones written last; in between there are none. The same holds for
    the examples of a judgement set.
    """
    for path in (run.scores, run.details, run.judged):
        remove_partial(path)
    if details:
        replace_examples(run, [*details.examples, details.legend])
    if judged:
        replace_judged_pictures(run, judged)
    write_json(run.scores, scores.to_dict())
    if details:
        write_details(run, details)
    if judged:
        write_judged(run, judged)


def load_metrics(
    run: RunDirectory, config: TrainConfig, processes: Distributed
) -> tuple[PerceptualMetric, list[PerceptualMetric]]:
    """Load the metrics of a run.

    Args:
        run: The run directory.
        config: Its settings.
        processes: The processes of the job.

    Returns:
        The unadapted metric, which is the pretrained backbone with equal weights even if training began from a random
        backbone, and the base itself after `fastdps adapt`; and the adapted metric, or several with a backbone each.

    Raises:
        FastDPSError: A metric file is missing or damaged.
        WeightsNotFoundError: The weights of the backbone are not found.
    """
    with processes.one_per_node_first():
        adapted = [PerceptualMetric.load(path).to(processes.device) for path in run.metrics()]
        backbone = adapted[0].backbone
        _require_same_run(run, config, adapted)
        if config.trains_backbone:
            backbone = Backbone(config.backbone, taps=config.taps)
    weights = None
    if content := run.read_adapted():
        weights = torch.tensor([content["base_weights"]])
    baseline = PerceptualMetric(backbone, weights, comparison=config.comparison).to(processes.device)
    return baseline, adapted


def _require_same_run(run: RunDirectory, config: TrainConfig, adapted: Sequence[PerceptualMetric]) -> None:
    """Raise `FastDPSError` if the metrics are not those that the settings of the run describe."""
    content = run.read_config()
    wanted = [*map(tuple, content["rankings"]), *content.get("judges", [])]
    found = [context for metric in adapted for context in (*metric.rankings, *metric.judges)]
    described = [(metric.backbone.name, metric.comparison) for metric in adapted]
    if not set(found) <= set(wanted) or set(described) != {(config.backbone, config.comparison)}:
        raise FastDPSError(
            f"{run.path} holds the metric of another run: its contexts, backbone or comparison differ from "
            f"{run.config}. Restore it or train again with --overwrite."
        )
    if found != wanted:
        raise FastDPSError(
            f"{run.path} has metrics of {len(found)} of its {len(wanted)} contexts: its training has not ended. Run "
            "the same `fastdps train` command again, which resumes it."
        )


def _score_contexts(
    run: RunDirectory,
    metrics: tuple[PerceptualMetric, Sequence[PerceptualMetric]],
    shards: Location,
    config: TrainConfig,
    options: EvaluationOptions,
    processes: Distributed,
) -> tuple[Tally, Details | None]:
    """Count the choices of all metrics on held-out images; on the main process also collect what the report shows."""
    baseline, adapted = metrics
    if not adapted[0].rankings:
        raise ConfigError(f"{run.path} was adapted to judgements and has no contexts; score it with --bapps.")
    loader = options.open(shards, processes)
    if loader.manifest.kind != "images":
        raise ConfigError(f"{shards} is a set of {loader.manifest.kind}; contexts are scored on images.")
    check_image_size(config.backbone, config.taps, loader.image_size, shards)
    interpolation = options.interpolation_after(config.interpolation)
    tally = tally_choices(baseline, adapted, loader, processes, draws=options.draws, interpolation=interpolation)
    if not processes.is_main_process:
        return tally, None
    with closing(loader.epoch(0)) as batches:
        batch = next(batches)
    examples = find_examples(baseline, adapted, batch, tally, interpolation)
    held_out = {
        "shards": str(shards),
        "samples": loader.samples,
        "draws": options.draws,
        "interpolation": interpolation,
        "sha256": loader.manifest.content_sha256(),
    }
    return tally, Details(held_out, tally.per_order(), examples, find_legend(batch, interpolation))
