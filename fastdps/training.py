"""The training loop, for one process or many.

loader --> batch --> task: views, judgements --> trainee: loss --> gradients over all processes --> step
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdps.backbones import Backbone
from fastdps.extraction import frozen_moments
from fastdps.loading import ShardLoader
from fastdps.meter import Meter
from fastdps.metric import PerceptualMetric
from fastdps.processes import Processes
from fastdps.recipes import TrainConfig
from fastdps.report.live import training_display
from fastdps.runs import Run
from fastdps.tasks import Task
from fastdps.trainee import Judgements, Trainee, dropout_generator, learning_rate_factor
from fastdps.validation import BestEpoch, validation_scores

#: Steps between two log lines; values on the device are read only then.
LOG_EVERY = 20


def build_metric(config: TrainConfig, task: Task, device: torch.device) -> PerceptualMetric:
    """The unadapted metric that training starts from. Raises `WeightsNotFoundError` without backbone weights."""
    pretrained = config.variant != "scratch"
    backbone = Backbone(config.backbone, taps=config.taps, pretrained=pretrained, seed=config.seed)
    return PerceptualMetric(backbone, rankings=task.rankings, comparison=config.comparison).to(device)


@dataclasses.dataclass(frozen=True)
class Validation:
    """A task on other images and a loader for them, to choose the epoch by."""

    task: Task
    loader: ShardLoader


class Training:
    """One training: a trainee, its optimizer, and where they are reported.

    `log` are fields that every log record of this training carries, such as which context it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        metric: PerceptualMetric,
        processes: Processes,
        run: Run,
        log: dict[str, Any] | None = None,
    ) -> None:
        self._config, self._task, self._metric, self._processes, self._run = config, task, metric, processes, run
        self._log = log or {}
        self._with_backbone = config.variant in ("tune", "scratch")
        trainee = Trainee(config, task.contexts, metric.channels).to(processes.device)
        self._heads = trainee.heads
        groups: list[dict[str, Any]] = [
            {"params": [*trainee.heads.parameters(), *trainee.judge.parameters()], "initial_lr": config.learning_rate}
        ]
        if self._with_backbone:
            trainee.with_backbone(metric)
            own = list(metric.backbone.parameters())
            groups.append({"params": own, "initial_lr": config.backbone_learning_rate})
        optimizer = torch.optim.Adam(groups, betas=config.adam_betas, fused=True)
        self._trainee: Any
        self._optimizer: Any
        self._trainee, self._optimizer = processes.prepare(trainee, optimizer)

    def fit(self, loader: ShardLoader, validation: Validation | None = None) -> PerceptualMetric:
        """Train for all epochs; returns the adapted metric, the same on every process.

        With a validation part each context ends with the state of its best epoch. The main process shows every log
        line and appends it to the log of the run. Raises what the loader raises.
        """
        config, processes = self._config, self._processes
        best = BestEpoch(self._task.contexts, with_backbone=self._with_backbone)
        start_meter = partial(
            Meter.start,
            processes.device,
            triplets_per_image=self._task.judgements_per_image * self._task.contexts,
        )
        whole = start_meter()
        with training_display(
            steps=config.epochs * loader.steps, epochs=config.epochs, enabled=processes.is_main_process
        ) as show:
            for epoch in range(config.epochs):
                recent = start_meter()
                for batch_number, (batch, wait_s) in enumerate(_timed(loader.epoch(epoch))):
                    step = epoch * loader.steps + batch_number
                    rate = self._set_learning_rates(step, loader.steps)
                    loss, accuracy = self._step(batch, epoch, step)
                    for meter in (whole, recent):
                        meter.add(loss, accuracy, batch, wait_s)
                    if (step + 1) % LOG_EVERY == 0 or batch_number == loader.steps - 1:
                        record = {"event": "step", "epoch": epoch + 1, "step": step + 1, "learning_rate": rate}
                        record |= recent.read(processes)
                        show(record)
                        self._append_log(record)
                        recent = start_meter()
                if validation:
                    self._validate(validation, epoch + 1, best)
        self._append_log({"event": "end", "processes": processes.num_processes, **whole.rates()})
        self._metric.weights.copy_(self._heads.weights.detach())
        if validation:
            best.restore(self._metric)
            self._append_log({"event": "chosen", "epochs": best.epochs, "accuracies": best.scores.tolist()})
        self._metric.requires_grad_(False)
        self._processes.free_memory()
        return self._metric

    def _step(self, batch: Any, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """One step on one batch: loss (n, K) and accuracy (n, K) of this process's part."""
        config, processes = self._config, self._processes
        with torch.no_grad():
            views = self._task.views(batch, epoch)
        judgements: Judgements = self._task.judgements(batch, epoch)
        noise = dropout_generator(config.seed, step, processes.process_index, processes.device)
        inputs = views if self._with_backbone else frozen_moments(self._metric, views)
        loss, accuracy = self._trainee(inputs, judgements, noise)
        # Gradients are averaged over processes; weighted so, the average is that of the whole batch however its
        # samples are spread. Contexts are summed, so that each learns as if it were alone.
        processes.backward(loss.sum() * (processes.num_processes / batch.global_size))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._heads.project_()
        return loss, accuracy

    def _set_learning_rates(self, step: int, steps_per_epoch: int) -> float:
        """Set the rates of a step; returns that of the heads."""
        factor = learning_rate_factor(self._config, step, steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self._config.learning_rate * factor

    def _validate(self, validation: Validation, epoch: int, best: BestEpoch) -> None:
        self._metric.weights.copy_(self._heads.weights.detach())
        scores = validation_scores(validation.task, self._metric, validation.loader, self._processes)
        best.update(epoch, scores, self._metric)
        self._append_log({"event": "validation", "epoch": epoch, "accuracies": scores.tolist()})

    def _append_log(self, record: dict[str, Any]) -> None:
        if self._processes.process_index == 0:
            self._run.append_log({**self._log, **record})


def _timed(batches: Iterable[Any]) -> Iterable[tuple[Any, float]]:
    """Batches, each with the seconds that were waited for it."""
    iterator = iter(batches)
    while True:
        asked_s = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield batch, time.perf_counter() - asked_s
