"""Adapt a metric: one call from shards to a run directory, in one process or many.

shards, contexts --> task --> [one training, or one per context] --> RUN/metric.safetensors, log.jsonl, checkpoints/
judgement set    --> moments of pairs, kept --> convex fit of heads --> RUN/metric.safetensors, log.jsonl
                                            '--> [backbone of each judge trained from there] --> RUN/metrics/
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.judgements import POOLED
from fastdps.contexts.rankings import MAX_CONTEXTS, Ranking
from fastdps.errors import ConfigError
from fastdps.loading.mixed import WeightedSets
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.load import Context, load
from fastdps.metric.precision import deterministic_algorithms
from fastdps.run_directory import RunDirectory
from fastdps.run_log import Throughput
from fastdps.runtime.processes import Distributed, check_trackers, join_processes
from fastdps.shards.storage import Location, LocationLike, Store, locate
from fastdps.training.checks import check_data, check_start, check_steps
from fastdps.training.judged_run import JudgedTraining
from fastdps.training.judged_tuning import JudgedTrainings
from fastdps.training.judgement_files import packed_judgements
from fastdps.training.loop import build_metric
from fastdps.training.mixture import Mixture, mixture_of, mixture_settings
from fastdps.training.options import TrainOptions
from fastdps.training.recipes import TrainConfig, default_recipe, get_recipe
from fastdps.training.resume import describe_start
from fastdps.training.run_config import RunData, RunStart, describe, origin_of
from fastdps.training.selection import Contexts, Selection, select
from fastdps.training.trainings import Trainings, ViewTrainings, run_trainings

_PARALLEL = "--parallel contexts is for --variant tune and scratch on several contexts; heads train all at once."


@dataclass(frozen=True)
class TrainingResult:
    """A finished run, as `train` returns it. It can be passed wherever the path of a run is expected.

    Attributes:
        directory: The run directory.
        config: The settings of the run.
        rankings: The contexts adapted to, empty for judgements.
        judges: The judges adapted to, with a head each, beside the pooled one; empty for other sets.
    """

    directory: RunDirectory
    config: TrainConfig
    rankings: tuple[Ranking, ...]
    judges: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return fspath(self.directory.path)

    @property
    def path(self) -> Path:
        """The path of the run directory."""
        return self.directory.path

    @property
    def throughput(self) -> Throughput:
        """Training speed, read from the log of the run."""
        return Throughput.from_log(self.directory.read_log())

    def load(self, context: Context | None = None, *, device: str | torch.device | None = None) -> ImageMetric:
        """Load the adapted metric of one context, as `fastdps.load` does."""
        return load(self.directory.path, context, device=device)

    def to_dict(self) -> dict[str, Any]:
        """Return path, settings, contexts and throughput as JSON types."""
        return {
            "path": str(self.path),
            "config": self.config.to_json(),
            "rankings": [list(ranking) for ranking in self.rankings],
            "judges": list(self.judges),
            "throughput": self.throughput.to_dict(),
        }


def train(
    shards: LocationLike | WeightedSets,
    out: str | PathLike[str],
    *,
    contexts: Contexts | None = None,
    validation: LocationLike | None = None,
    config: str | TrainConfig | None = None,
    overwrite: bool = False,
    options: TrainOptions | None = None,
    **settings: Any,
) -> TrainingResult:
    """Adapt a metric to contexts, or to the judgements of a set of triplets, and save it in a run directory.

    Heads of all contexts are trained together on features that are computed once. A trained backbone (variants "tune"
    and "scratch") belongs to one context, so these are trained one after another. On a judgement set, features are
    computed once per image, and the heads are the solution of a convex problem. An interrupted run resumes from its
    last checkpoint, and a finished run is left as it is. Under `accelerate launch` each process calls this function.

    Args:
        shards: Directory or URL of the shard set to train on; several sets of images or of triplets with their weights,
            as {"shards/a/train": 0.7, "shards/b/train": 0.3} or as pairs, which are mixed in each batch; or a .csv,
            .jsonl or .parquet file of judgements, which is packed into the cache first.
        out: Run directory to create.
        contexts: "all"; a number of contexts to draw; rankings, least disruptive distortion first, as text
            "a,b,c,d,e,f" separated by ";", or as sequences of names; an empty sequence for the judgements of a set of
            triplets. None stands for "all", or for the judgements if the set holds triplets. With the
            setting `by`: "all", or names of judges separated by commas, or as a sequence.
        validation: Shard set of the same kind by which the best epoch is chosen.
        config: Name of a recipe ("fast", "paper", "lpips", "judgements"), or the complete settings. None for
            "judgements" on a judgement set, and "fast" on others.
        overwrite: Replace the run that `out` holds.
        options: Options for carrying out the run, see `TrainOptions`.
        **settings: Settings that replace those of `config`, such as epochs=10 or variant="tune", see `TrainConfig`.

    Returns:
        The finished run.

    Raises:
        ConfigError: A setting cannot be used, `out` holds a run with other settings or data, or another process trains
            in `out` or evaluates it.
        ShardError: A shard set is missing or damaged.
        WeightsNotFoundError: The weights of the backbone are not found.
        StoppedError: A signal stopped the training after it saved a checkpoint.
        TrainingError: The loss is not finite, memory is exhausted, or another process is gone.

    Example:
        >>> run = train("shards/sample/train", "runs/sample", contexts="all", epochs=10)  # doctest: +SKIP
        >>> run.load("color,darken,zoom_in,rotate,translate,blur")  # doctest: +SKIP
    """
    options, run = options or TrainOptions(), RunDirectory(Path(out))
    check_trackers(options.trackers)
    if mixture := mixture_of(shards):
        settings = mixture_settings(settings, config)
    draft = (
        config.replace(settings)
        if isinstance(config, TrainConfig)
        else get_recipe(config or default_recipe(settings.get("variant")), settings)
    )
    check_start(run, draft)
    own_contexts = options.parallel == "contexts"
    if own_contexts and isinstance(config, TrainConfig) and not draft.trains_backbone:
        raise ConfigError(_PARALLEL)
    location = _first_set(shards, mixture, draft, options.size)
    config, selection = select(contexts, location, config, settings, options.loading)
    if own_contexts and not ((selection.rankings or selection.judges) and config.trains_backbone):
        raise ConfigError(_PARALLEL)
    if selection.table is not None and config.trains_backbone and options.execution.accumulate > 1:
        raise ConfigError(
            "--accumulate divides the images of a step, but judgements of a step share images: each piece would need "
            "most of them again. To save memory, choose a smaller --batch-size, the number of images of a step."
        )
    if selection.table is not None and not config.trains_backbone and validation is not None:
        raise ConfigError("--validation chooses an epoch, and heads on a judgement set have none. Omit it.")
    chosen_by = None if validation is None else locate(validation)
    data = RunData(mixture or location, chosen_by, options.size, options.loading)
    if isinstance(shards, str | PathLike) and locate(shards) != location:
        data = replace(data, file=str(shards))
    check_data(config, selection, data)
    if options.profile:
        check_steps(config, selection)
    _run(config, selection, data, RunStart(run, overwrite, describe_start(options)), options)
    return TrainingResult(run, config, tuple(selection.rankings), tuple(selection.judges))


def _first_set(
    shards: LocationLike | WeightedSets, mixture: Mixture | None, config: TrainConfig, size: int | None
) -> Location:
    """Return the set that says what kind the data is of: of a mixture the first, of a file of judgements its set."""
    if mixture:
        mixture.check_kinds(config)
        return mixture.locations[0]
    assert isinstance(shards, str | PathLike | Store)
    return packed_judgements(shards, by=config.by, size=size)


def _run(
    config: TrainConfig,
    selection: Selection,
    data: RunData,
    start: RunStart,
    options: TrainOptions,
) -> None:
    """Join the processes of the job, and train in the run directory."""
    run = start.run
    processes = join_processes(stall_timeout_s=options.stall_timeout_s, trackers=options.trackers, directory=run.path)
    with processes, ExitStack() as stack, deterministic_algorithms(options.execution.deterministic):
        processes.broadcast(lambda: stack.enter_context(run.locked("training")))
        if options.resume == "never" and not start.overwrite and processes.broadcast(lambda: run.holds_run):
            raise ConfigError(
                f"{run.path} already holds a run. Choose another --out, pass --overwrite to replace it, or resume it "
                "with --resume auto."
            )
        if selection.table is not None and not config.trains_backbone:
            _fit_heads(config, selection, data, processes, start, options)
            return
        if len(selection.rankings) == MAX_CONTEXTS < math.factorial(len(NAMES)):
            total = math.factorial(len(NAMES))
            processes.notify(f"{len(NAMES)} distortions have {total:,} contexts; {MAX_CONTEXTS} of them are drawn")
        own_contexts = options.parallel == "contexts"
        trainings: Trainings
        if selection.table is not None:
            trainings = JudgedTrainings(
                config,
                selection,
                data,
                processes,
                limits=options.moments,
                precision=options.execution.precision,
                own_contexts=own_contexts,
            )
        else:
            trainings = ViewTrainings(config, selection.rankings, data, processes, options=options)
        run_trainings(
            trainings,
            processes,
            start,
            execution=options.execution,
            checkpoints=options.checkpoints,
            is_profiled=options.profile,
        )


def _fit_heads(
    config: TrainConfig,
    selection: Selection,
    data: RunData,
    processes: Distributed,
    start: RunStart,
    options: TrainOptions,
) -> None:
    """Fit the heads of a judgement set, and save the metric."""
    assert selection.table is not None
    run, loader = start.run, data.open_judged(data.only, processes.device)
    names = [POOLED, *selection.judges]
    if is_left := processes.broadcast(lambda: start.lacks(run.metric)):
        with processes.one_per_node_first():
            metric = build_metric(config, (), processes.device)
        metric.judges = tuple(names)
    description = describe(config, [], data, loader, names)
    start.begin(description, processes)
    if not is_left:
        processes.notify(f"{run.path} is finished: nothing to do. --overwrite trains again from scratch.")
        return
    if config.variant != "baseline":
        training = JudgedTraining(
            config, metric, processes, run, limits=options.moments, precision=options.execution.precision
        )
        metric = training.fit(selection.table, selection.judges, loader)
    if processes.process_index == 0:
        metric.origin = origin_of(description)
        metric.save(run.metric)
    processes.wait_for_all()
