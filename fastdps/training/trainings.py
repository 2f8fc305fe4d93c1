"""The trainings of a run, one after another: a single one, or one for each context that has a backbone of its own.

Trainings: task, loader, validation, start of each --> TrainingLoop --> RUN/metric.safetensors or RUN/metrics/NNN
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastdps.contexts.rankings import Ranking
from fastdps.loading.mixed import MixedLoader
from fastdps.loading.spec import BatchSource
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import Distributed, Processes, SingleProcess
from fastdps.training.best_epoch import VALIDATION_SEED, Validation, Validator
from fastdps.training.kept_draws import KeptDraws, pays
from fastdps.training.loop import TrainingLoop, build_metric
from fastdps.training.options import CheckpointPolicy, Execution, TrainOptions
from fastdps.training.profile import Profile
from fastdps.training.recipes import TrainConfig
from fastdps.training.run_config import RunData, RunStart, describe, origin_of
from fastdps.training.tasks import JudgementTask, RankingTask, Task


class Trainings(ABC):
    """The trainings of a run.

    Attributes:
        config: Settings of the run.
        team: The processes that train together.
    """

    def __init__(self, config: TrainConfig, processes: Distributed, *, own_contexts: bool) -> None:
        self.config = config
        self.team: Processes = SingleProcess(processes) if own_contexts else processes

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of trainings."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the content of `config.json`."""

    @abstractmethod
    def metric(self, number: int) -> PerceptualMetric:
        """Return the unadapted metric that a training starts from."""

    @abstractmethod
    def task(self, number: int) -> Task:
        """Return the task of a training."""

    @abstractmethod
    def loader(self, number: int, metric: PerceptualMetric) -> BatchSource:
        """Return the data of a training, which starts from `metric`."""

    @abstractmethod
    def validation(self, number: int) -> Validator | None:
        """Return what chooses the best epoch of a training."""

    def prepare(self) -> None:  # noqa: B027, most trainings share nothing
        """Prepare what the trainings share. All processes call this once, before the first training."""

    def start(self, number: int) -> Tensor | None:  # noqa: ARG002
        """Return calibrated heads (K, C) to start a training from, None for equal weights."""
        return None


class ViewTrainings(Trainings):
    """Trainings on rankings, or on triplets.

    Args:
        config: Settings of the run.
        rankings: The contexts; empty for triplets.
        data: The data of the run.
        processes: The processes of the job.
        options: How the run is carried out.
    """

    def __init__(
        self,
        config: TrainConfig,
        rankings: Sequence[Ranking],
        data: RunData,
        processes: Distributed,
        *,
        options: TrainOptions,
    ) -> None:
        super().__init__(config, processes, own_contexts=options.parallel == "contexts")
        self._rankings, self._data, self._device, self._options = rankings, data, processes.device, options
        whole = RankingTask(rankings, config, self._device) if rankings else JudgementTask(config, self._device)
        self._tasks: list[Task] = [whole]
        if config.backbone_per_context and rankings:
            self._tasks = [RankingTask([ranking], config, self._device) for ranking in rankings]
        self._keeps = bool(rankings) and pays(config, data.samples)
        self._loader = data.open(data.shards, whole, config, self.team, shuffle=not self._keeps)

    def __len__(self) -> int:
        return len(self._tasks)

    def describe(self) -> dict[str, Any]:
        """Return the content of `config.json`."""
        return describe(self.config, self._rankings, self._data, self._loader)

    def metric(self, number: int) -> PerceptualMetric:
        """Return the unadapted metric that a training starts from."""
        return build_metric(self.config, self._tasks[number].rankings, self._device)

    def task(self, number: int) -> Task:
        """Return the task of a training."""
        return self._tasks[number]

    def loader(self, number: int, metric: PerceptualMetric) -> BatchSource:
        """Return the shard set, which all trainings read, or the moments of its images that are kept."""
        if not self._keeps or isinstance(self._loader, MixedLoader):
            return self._loader
        limits, precision = self._options.moments, self._options.execution.precision
        kept = KeptDraws(
            self._tasks[number], metric, self._loader, self.config, self.team, limits=limits, precision=precision
        )
        self.team.notify(
            f"{self.config.draws_kept} draws of each image are kept"
            + (" as images: the moments exceed the limits" if kept.place == "computed" else f" in {kept.place}")
            + f" ({kept.prepared_s:.1f} s)"
        )
        return kept

    def validation(self, number: int) -> Validator | None:
        """Return the validation set with its task, on whole images and other draws than the training."""
        if self._data.validation is None:
            return None
        task, whole = self._tasks[number], replace(self.config, augment="none", crop_size=None)
        if isinstance(task, RankingTask):
            other_draws = replace(whole, seed=VALIDATION_SEED, pairs="all")
            task = RankingTask(task.rankings, other_draws, self._device)
        else:
            task = JudgementTask(whole, self._device)
        data = replace(self._data, size=self.config.crop_size or self._data.size)
        return Validation(task, data.open(self._data.validation, task, self.config, self.team))


def run_trainings(
    trainings: Trainings,
    processes: Distributed,
    start: RunStart,
    *,
    execution: Execution,
    checkpoints: CheckpointPolicy,
    is_profiled: bool = False,
) -> None:
    """Carry out the trainings of a run that have not ended, and save their metrics."""
    config, team, several, run = trainings.config, trainings.team, len(trainings) > 1, start.run
    paths = [run.metric_of(number) if several else run.metric for number in range(len(trainings))]
    left: list[int] = processes.broadcast(lambda: [number for number, path in enumerate(paths) if start.lacks(path)])
    if left:  # before anything is written, since weights may be missing
        with processes.one_per_node_first():  # one process downloads the weights, the others read the cache
            metric = trainings.metric(left[0])
    description = trainings.describe()
    settings = start.begin(description, processes)
    if not left:
        processes.notify(f"{run.path} is finished: nothing to do. --overwrite trains again from scratch.")
        return
    trainings.prepare()
    profile = Profile(run, processes.device, traces=processes.is_main_process) if is_profiled else None
    for number in left:
        if team is not processes and number % processes.num_processes != processes.process_index:
            continue
        if number != left[0]:
            metric = trainings.metric(number)
        if config.variant != "baseline":
            loop = TrainingLoop(
                config,
                trainings.task(number),
                metric,
                team,
                run,
                context=number if several else None,
                execution=execution,
                checkpoints=checkpoints,
            )
            if (weights := trainings.start(number)) is not None:
                loop.start_from(weights)
            source, validation = trainings.loader(number, metric), trainings.validation(number)
            with nullcontext() if profile is None else profile.reported(team):
                loop.fit(source, validation, settings_sha256=settings, profile=profile)
        if team.process_index == 0:
            paths[number].parent.mkdir(exist_ok=True)
            metric.origin = origin_of(description)
            metric.save(paths[number], include_backbone=config.trains_backbone)
            if several:
                shutil.rmtree(run.checkpoints_of(number), ignore_errors=True)
    processes.wait_for_all()
