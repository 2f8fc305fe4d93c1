"""The training loop, for one or more processes, resumed from the newest checkpoint.

checkpoint --> loader --> batch --> step --> log, validation, agreement of all processes --> checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import Tensor

from fastdps.contexts.rankings import Ranking
from fastdps.errors import StoppedError, TrainingError
from fastdps.loading.spec import Batch, BatchSource
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.runtime.console import Show, training_display
from fastdps.runtime.processes import Processes
from fastdps.runtime.signals import stop_request
from fastdps.runtime.stages import stage, staged, whole_stage
from fastdps.training.agreement import Agreement, LossGuard
from fastdps.training.best_epoch import BestEpoch, Validator
from fastdps.training.checkpoints import SETTINGS, Checkpoint, Checkpoints
from fastdps.training.low_rank import merge_low_rank
from fastdps.training.options import CheckpointPolicy, Execution
from fastdps.training.profile import Profile
from fastdps.training.progress import Meter, Progress, divide_of
from fastdps.training.recipes import TrainConfig
from fastdps.training.step import Stepper, learning_rate_factor
from fastdps.training.tasks import Task

#: Steps between two log lines; values on the device are read only then.
LOG_EVERY = 20
_BEST = "best."


def build_metric(config: TrainConfig, rankings: Sequence[Ranking], device: torch.device) -> PerceptualMetric:
    """Return the unadapted metric that training starts from. Raises `WeightsNotFoundError`."""
    pretrained = config.variant != "scratch"
    backbone = Backbone(config.backbone, taps=config.taps, pretrained=pretrained, seed=config.seed)
    return PerceptualMetric(backbone, rankings=rankings, comparison=config.comparison).to(device)


class TrainingLoop:
    """One training of a run: its steps, its log and its checkpoints.

    Args:
        config: Settings of the run.
        task: What the metric is adapted to.
        metric: The unadapted metric, which `fit` changes.
        processes: The processes that train together.
        run: The run directory.
        context: Number of the context in a run that trains contexts one after another, None otherwise.
        execution: How steps are computed.
        checkpoints: When checkpoints are written.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        metric: PerceptualMetric,
        processes: Processes,
        run: RunDirectory,
        *,
        context: int | None = None,
        execution: Execution | None = None,
        checkpoints: CheckpointPolicy | None = None,
    ) -> None:
        self._config, self._task, self._metric, self._processes, self._run = config, task, metric, processes, run
        self._execution = execution or Execution()
        self._policy = checkpoints or CheckpointPolicy()
        self._log = {} if context is None else {"context": context}
        self._checkpoints = Checkpoints(run.checkpoints_of(context), self._policy.keep)
        self._stepper = Stepper(config, task, metric, processes, self._execution)
        self._guard = LossGuard(processes.device, processes.process_index)
        self._best = BestEpoch(task.contexts, trains_backbone=config.trains_backbone)
        self._progress = Progress()
        self._saved: Path | None = None
        self._settings_sha256: str | None = None
        self._show: Show = lambda _: None
        self._profile: Profile | None = None

    def start_from(self, weights: Tensor) -> None:
        """Start with calibrated heads (K, C) instead of equal weights, unless `fit` resumes from a checkpoint."""
        self._stepper.model.start_from(weights)

    def fit(
        self,
        loader: BatchSource,
        validation: Validator | None = None,
        *,
        settings_sha256: str | None = None,
        profile: Profile | None = None,
    ) -> PerceptualMetric:
        """Train to the end, from the newest checkpoint.

        The main process shows each log line and appends it to the log of the run.

        Args:
            loader: The training set.
            validation: If given, each context ends with the state of its best epoch.
            settings_sha256: Hash of the settings of the run, recorded in checkpoints and compared on resume.
            profile: If given, measures the steps by stage.

        Returns:
            The adapted metric, the same on every process.

        Raises:
            ConfigError: The newest checkpoint belongs to a training with other settings.
            StoppedError: A signal stopped the training, after a checkpoint was saved.
            TrainingError: The loss is not finite, memory is exhausted, or another process is gone.
            ShardError: A shard cannot be read.
            SampleError: A sample cannot be decoded.
        """
        self._settings_sha256 = settings_sha256
        self._resume(loader)
        self._stepper.start()
        progress, total_steps = self._progress, self._total_steps(loader)
        progress.elapsed_s += loader.prepared_s
        is_main = self._processes.is_main_process
        with (
            closing(loader),
            stop_request() as request,
            training_display(steps=total_steps, epochs=self._config.epochs, enabled=is_main) as show,
        ):
            agreement = Agreement(self._processes, request, self._guard)
            self._show = show
            self._profile = profile
            with nullcontext() if profile is None else profile.running(self._stepper, loader.prepared_s):
                while progress.epoch < self._config.epochs and progress.step < total_steps:
                    self._finish_epoch(loader, validation, total_steps, agreement)
            if profile is not None:
                profile.measure_kept()
        return self._finish(validation)

    def _finish_epoch(
        self, loader: BatchSource, validation: Validator | None, total_steps: int, agreement: Agreement
    ) -> None:
        """Take the remaining steps of the current epoch, or of the training."""
        progress = self._progress
        epoch_steps = loader.steps if progress.left is None else loader.steps_for(progress.left)
        recent = self._start_meter()
        # Shards prefetched for the next epoch would take the cache space of the validation set.
        continues = validation is None and progress.step - progress.steps + epoch_steps < total_steps
        batches = self._batches(loader, progress.epoch + 1 if continues else None)
        for batch, wait_s in batches:
            started_s = time.perf_counter()
            rate = learning_rate_factor(self._config, self._done(loader))
            loss, accuracy = self._stepper.step(batch, progress.epoch, progress.step, rate)
            with stage("log"):
                self._guard.add(progress.step, loss, batch)
                recent.add(loss, accuracy, batch, wait_s, self._stepper.prior)
            progress.add(batch)
            ends_epoch = progress.steps == epoch_steps
            ends = ends_epoch or progress.step == total_steps
            saves = progress.step % self._policy.every_steps == 0
            logs = progress.step % LOG_EVERY == 0 or ends
            with stage("exchange"):
                stop = agreement.reach(self._last_good) if agreement.is_due() or logs or saves else 0
            if logs:
                self._log_step(recent, self._config.learning_rate * rate)
                recent = self._start_meter()
            if ends:
                batches.close()  # releases its shards, whose cache space the validation may need
            if ends and validation:
                self._validate(validation)
            if ends_epoch:
                progress.next_epoch()
            progress.elapsed_s += wait_s + time.perf_counter() - started_s
            progress.wait_s += wait_s
            if saves or stop:
                with stage("checkpoint"):
                    self._save(loader)
            if self._profile:
                self._profile.stepped(batch)
            if stop:
                raise StoppedError(
                    f"stopped by {Signals(stop).name} after step {progress.step}: run the same command again to resume",
                    stop,
                )
            if ends:
                return

    def _batches(self, loader: BatchSource, then: int | None) -> Generator[tuple[Batch, float], None, None]:
        """Yield the remaining batches of the epoch, each with the seconds spent waiting for it.

        `then` is the number of the next epoch, None after the last.
        """
        progress = self._progress
        asked_s = time.perf_counter()
        self._processes.beat("waits for data", progress.step)
        with closing(loader.epoch(progress.epoch, progress.steps, progress.left, then=then)) as batches:
            for batch in staged("load", batches):
                self._processes.beat("computes", progress.step)
                yield batch, time.perf_counter() - asked_s
                asked_s = time.perf_counter()
                self._processes.beat("waits for data", progress.step)

    def _total_steps(self, loader: BatchSource) -> int:
        """Return the number of steps of the training; it can differ if the number of processes changed in mid-epoch."""
        progress, config = self._progress, self._config
        steps = progress.step - progress.steps + (config.epochs - progress.epoch) * loader.steps
        if progress.left is not None:
            steps += loader.steps_for(progress.left) - loader.steps
        return steps if config.max_steps is None else min(steps, config.max_steps)

    def _done(self, loader: BatchSource) -> float:
        """Return the share of the training that is done, which decides the learning rate."""
        config = self._config
        if config.max_steps is not None and config.max_steps < config.epochs * loader.steps:
            return self._progress.step / config.max_steps
        return (self._progress.epoch + self._progress.seen / loader.samples) / config.epochs

    def _log_step(self, recent: Meter, learning_rate: float) -> None:
        with stage("exchange"):  # it waits for the device and for all processes
            means = recent.read(self._processes)
        record = {"event": "step", "epoch": self._progress.epoch + 1, "step": self._progress.step}
        record |= {"learning_rate": learning_rate, **means}
        with stage("log"):
            self._show(record)
            self._report(record)

    def _validate(self, validation: Validator) -> None:
        self._take_weights()
        with whole_stage("validation"):
            scores = validation.scores(self._metric, self._processes, self._execution.precision)
        epoch = self._progress.epoch + 1
        self._best.update(epoch, scores, self._metric)
        record = {"event": "validation", "epoch": epoch, "step": self._progress.step, "accuracies": scores.tolist()}
        self._show(record)
        self._report(record)

    def _finish(self, validation: Validator | None) -> PerceptualMetric:
        """Copy the result into the metric, and log a summary of the training."""
        progress = self._progress
        self._take_weights()
        self._check_finite(self._metric.state_dict().values(), everywhere=True)
        end = {"event": "end", "step": progress.step, "processes": self._processes.num_processes}
        self._report(
            {
                **end,
                "images_per_s": progress.images / progress.elapsed_s,
                "triplets_per_s": progress.samples * self._triplets_per_sample / progress.elapsed_s,
                "data_wait_fraction": progress.wait_s / progress.elapsed_s,
                "elapsed_s": progress.elapsed_s,
            }
        )
        if validation:
            self._best.restore(self._metric)
            chosen = {"epochs": self._best.epochs, "accuracies": self._best.scores.tolist()}
            self._report({"event": "chosen", "step": progress.step, **chosen})
        merge_low_rank(self._metric.backbone)
        self._metric.requires_grad_(False)
        self._processes.free_memory()
        return self._metric

    def _check_finite(self, tensors: Iterable[Tensor], *, everywhere: bool) -> None:
        """Raise `TrainingError` for NaN or infinite values; `everywhere` if all processes check the same tensors."""
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise TrainingError(
                f"training diverged: weights are not finite after step {self._progress.step}. They were not written; "
                f"{self._last_good}. Lower --learning-rate.",
                everywhere=everywhere,
            )

    def _take_weights(self) -> None:
        model = self._stepper.model
        self._metric.weights.copy_(
            model.calibrated_weights() if self._task.is_calibrated else model.heads.weights.detach()
        )

    def _start_meter(self) -> Meter:
        return Meter.start(self._processes.device, triplets_per_sample=self._triplets_per_sample)

    @property
    def _triplets_per_sample(self) -> int:
        """The number of triplets per sample over all contexts."""
        return self._task.judgements_per_image * self._task.contexts

    def _report(self, record: dict[str, Any]) -> None:
        """Append a record to the log of the run, and send its scalars to the trackers."""
        if self._processes.process_index != 0:
            return
        record = {**self._log, **record}
        self._run.append_log(record)
        if record["event"] in ("step", "validation"):
            prefix = f"context-{record['context']:03d}/" if "context" in record else ""
            scalars = {name: value for name, value in record.items() if isinstance(value, float)}
            if accuracies := record.get("accuracies"):
                scalars["validation_accuracy"] = sum(accuracies) / len(accuracies)
            self._processes.log({prefix + name: value for name, value in scalars.items()}, record["step"])

    # Checkpoints

    @property
    def _last_good(self) -> str:
        return f"the last good checkpoint is {self._saved}" if self._saved else "there is no checkpoint yet"

    def _save(self, loader: BatchSource) -> None:
        """Write a checkpoint. The state is the same on all processes, so rank 0 writes it."""
        if self._processes.process_index != 0:
            return
        tensors = self._stepper.tensors()
        self._check_finite(tensors.values(), everywhere=False)
        tensors |= {_BEST + name: tensor for name, tensor in self._best.tensors().items()}
        state = {
            "progress": self._progress.to_json(loader),
            "processes": self._processes.num_processes,
            "divide": divide_of(loader),
            "best_epochs": self._best.epochs,
            "scaler": self._stepper.scaler.state_dict(),
            SETTINGS: self._settings_sha256,
        }
        self._saved = self._checkpoints.save(self._progress.step, Checkpoint(tensors, state))

    def _resume(self, loader: BatchSource) -> None:
        """Resume from the newest checkpoint, if any; rank 0 reads it for all."""
        warn, settings = self._processes.warn, self._settings_sha256
        found: Checkpoint | None = self._processes.broadcast(lambda: self._checkpoints.newest(warn, settings))
        if found is None:
            return
        state, own = found.state, self._processes.num_processes
        same = state["processes"] == own and state.get("divide", "epoch") == divide_of(loader)
        self._progress = Progress.resumed(state["progress"], same_division=same)
        self._stepper.load(found.tensors, state["scaler"])
        best = {name.removeprefix(_BEST): value for name, value in found.tensors.items() if name.startswith(_BEST)}
        self._best.load(best, state["best_epochs"], self._processes.device)
        self._saved = next(iter(self._checkpoints.paths()), None)
        self._processes.notify(f"resuming after step {self._progress.step}")
        if state["processes"] != own:
            self._processes.notify(
                f"the run had {state['processes']} processes before and has {own} now: each sample is still used once "
                "per epoch, but the result may differ in the last bits"
            )
        self._report({"event": "resume", "step": self._progress.step, "processes": own})
