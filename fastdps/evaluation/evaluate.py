"""Score a run on held-out images: baseline and adapted metric on the same distortions, all contexts in one pass."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from accelerate import Accelerator

from fastdps.commands.options import add_cache, add_quiet, cache_from, location
from fastdps.commands.tables import print_bapps, print_scores
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import Ranking, pairs
from fastdps.errors import ConfigError
from fastdps.evaluation.examples import find_examples, write_details
from fastdps.evaluation.judgements import score_bapps
from fastdps.evaluation.tally import Tally, tally_choices
from fastdps.loading.loader import LoaderName, ShardLoader, open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.scores import improved
from fastdps.run_directory import RunDirectory, training_throughput
from fastdps.runtime.console import is_quiet, print_result
from fastdps.runtime.files import write_json
from fastdps.runtime.processes import join_processes, watch
from fastdps.training.recipes import TrainConfig, config_from_json

#: Draws of all distortions per image.
DRAWS = 5


def load_metrics(
    run: RunDirectory, config: TrainConfig, accelerator: Accelerator
) -> tuple[PerceptualMetric, list[PerceptualMetric]]:
    """The unadapted metric that a run is compared with, and its adapted metric, or several with a backbone each.

    The unadapted metric is the pretrained backbone with equal weights, also where training began from a random one.
    """
    with accelerator.local_main_process_first():
        adapted = [PerceptualMetric.load(path).to(accelerator.device) for path in run.metrics()]
        backbone = adapted[0].backbone
        if config.variant in ("tune", "scratch"):
            backbone = Backbone(config.backbone, taps=config.taps)
    baseline = PerceptualMetric(backbone, comparison=config.comparison).to(accelerator.device)
    return baseline, adapted


def context_scores(rankings: Sequence[Ranking], tally: Tally) -> dict[str, Any]:
    """The contexts and the summary of `scores.json`."""
    baseline, adapted = tally.per_context()
    return {
        "contexts": [
            {"ranking": list(ranking), "baseline_accuracy": before, "adapted_accuracy": after}
            for ranking, before, after in zip(rankings, baseline.tolist(), adapted.tolist(), strict=True)
        ],
        "summary": {
            "contexts": len(rankings),
            "improved_fraction": improved(baseline, adapted).double().mean().item(),
            "baseline_accuracy": baseline.mean().item(),
            "adapted_accuracy": adapted.mean().item(),
        },
    }


def empty_scores(config: TrainConfig, run: RunDirectory) -> dict[str, Any]:
    """`scores.json` of a run that nothing has been scored of yet."""
    return {
        "backbone": config.backbone,
        "variant": config.variant,
        "comparison": config.comparison,
        "recipe": config.recipe,
        "contexts": [],
        "summary": None,
        "bapps": None,
        "throughput": training_throughput(run.read_log()),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps evaluate`."""
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--shards", type=location, help="shard set of held-out images: a directory or a URL")
    parser.add_argument("--bapps", type=location, help="packed BAPPS, or any set of judged triplets or pairs")
    parser.add_argument(
        "--draws", type=int, default=DRAWS, help=f"draws of all distortions per image (default {DRAWS})"
    )
    parser.add_argument("--batch-size", type=int, default=50, help="images per step and process (default 50)")
    parser.add_argument("--size", type=int, help="resize images to a square of this many pixels while loading")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto")
    add_cache(parser)
    add_quiet(parser)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """What `fastdps evaluate` does with its options; scores of an earlier call that are not asked for again stay."""
    if arguments.draws < 1:
        raise ConfigError(f"--draws must be at least 1, not {arguments.draws}.")
    if not (arguments.shards or arguments.bapps):
        raise ConfigError("nothing to score on: give --shards with held-out images, --bapps, or both.")
    run = RunDirectory(arguments.run)
    config = config_from_json(run.read_config()["config"])
    accelerator = join_processes()
    with watch(accelerator):
        _score(arguments, run, config, accelerator)
    accelerator.end_training()


def _score(arguments: argparse.Namespace, run: RunDirectory, config: TrainConfig, accelerator: Accelerator) -> None:
    baseline, adapted = load_metrics(run, config, accelerator)
    scores = json.loads(run.scores.read_text("utf-8")) if run.scores.exists() else empty_scores(config, run)
    pair_rows: list[tuple[str, float, float]] = []
    details: dict[str, Any] = {}
    if arguments.shards:
        loader = _held_out(arguments, adapted, accelerator)
        tally = tally_choices(
            baseline, adapted, loader, accelerator, draws=arguments.draws, interpolation=config.interpolation
        )
        rankings = [ranking for metric in adapted for ranking in metric.rankings]
        scores |= context_scores(rankings, tally)
        names = [f"{NAMES[i]}, {NAMES[j]}" for i, j in pairs(len(NAMES)).tolist()]
        pair_rows = list(zip(names, *(accuracy.tolist() for accuracy in tally.per_pair()), strict=True))
        if accelerator.is_main_process:
            details = {
                "held_out": {
                    "shards": str(arguments.shards),
                    "samples": loader.samples,
                    "draws": arguments.draws,
                    "sha256": loader.manifest.content_sha256(),
                },
                "pairs": tally.per_order(),
            }
            with closing(loader.epoch(0)) as batches:
                found = find_examples(baseline, adapted, next(batches), tally, config.interpolation)
    if arguments.bapps:
        scores["bapps"] = score_bapps(
            baseline,
            adapted,
            arguments.bapps,
            accelerator,
            batch_size=arguments.batch_size,
            size=arguments.size,
            loader=arguments.loader,
            cache=cache_from(arguments),
        )
    if accelerator.is_main_process:
        write_json(run.scores, scores)
        if arguments.shards:
            write_details(run, details, found)
        if arguments.shards and not is_quiet():
            print_scores(scores, pair_rows)
        if arguments.bapps and not is_quiet():
            print_bapps(scores["bapps"])
        print_result(f"Scores: {run.scores}; as a page: fastdps report {shlex.quote(str(run.path))}")


def _held_out(
    arguments: argparse.Namespace, adapted: Sequence[PerceptualMetric], accelerator: Accelerator
) -> ShardLoader:
    """The held-out images of one process."""
    if not adapted[0].rankings:
        raise ConfigError(f"{arguments.run} was adapted to judgements and has no contexts; score it with --bapps.")
    loader = open_shards(
        arguments.shards,
        batch_size=arguments.batch_size,
        device=accelerator.device,
        shuffle=False,
        size=arguments.size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        loader=arguments.loader,
        cache=cache_from(arguments),
    )
    if loader.manifest.kind != "images":
        raise ConfigError(f"{arguments.shards} is a set of {loader.manifest.kind}; contexts are scored on images.")
    return loader
