"""One step of training: a batch to gradients over all processes to better heads, and for `tune` a better backbone.

batch --> task: views, judgements --> [frozen backbone: moments] --> trainee: loss --> gradients --> Adam --> W >= 0
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdps.errors import ConfigError, TrainingError
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric, frozen_moments
from fastdps.metric.precision import Precision, resolve_precision
from fastdps.runtime.processes import Processes
from fastdps.training.model import Judgements, Trainee, dropout_generator
from fastdps.training.recipes import TrainConfig
from fastdps.training.tasks import Task


@dataclass(frozen=True)
class Execution:
    """How a training is computed; what it learns depends on this by rounding only.

    precision: see `fastdps.metric.precision`. accumulate: in how many pieces each process computes its part of a step,
    one after another, which divides the memory that is needed; the gradients are those of the whole. compile: run the
    backbone through `torch.compile`, for long trainings on a GPU; on a CPU it was slower (see docs/design.md).
    """

    precision: Precision = "auto"
    accumulate: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"--accumulate is {self.accumulate}; it has to be at least 1.")


_TRAINEE, _OPTIMIZER = "trainee.", "optimizer."


class Stepper:
    """Takes the steps of one training. Owns what changes in them: `trainee`, its optimizer, the scale of its loss."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        metric: PerceptualMetric,
        processes: Processes,
        execution: Execution | None = None,
    ) -> None:
        self._config, self._task, self._metric, self._processes = config, task, metric, processes
        self._execution = execution or Execution()
        if self._execution.compile:
            metric.backbone.compile(dynamic=True)  # the last batch of an epoch is shorter
        self.with_backbone = config.variant in ("tune", "scratch")
        self.trainee = Trainee(config, task.contexts, metric.channels).to(processes.device)
        groups: list[dict[str, Any]] = [
            {
                "params": [*self.trainee.heads.parameters(), *self.trainee.judge.parameters()],
                "initial_lr": config.learning_rate,
            }
        ]
        if self.with_backbone:
            self.trainee.with_backbone(metric, self._execution.precision)
            own = list(metric.backbone.parameters())
            groups.append({"params": own, "initial_lr": config.backbone_learning_rate})
        self.optimizer = torch.optim.Adam(groups, betas=config.adam_betas, fused=True)
        # Gradients of a float16 backbone would underflow without it.
        scaled = self.with_backbone and resolve_precision(self._execution.precision, processes.device) == "fp16"
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=scaled)
        self._prepared: Any = None

    def tensors(self) -> dict[str, Tensor]:
        """All that changes in steps, which `load` goes on from; with the scale of the loss, which is no tensor."""
        tensors = {_TRAINEE + name: tensor for name, tensor in self.trainee.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{number}.{name}": tensor for name, tensor in values.items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor], scaler: dict[str, Any]) -> None:
        """Take over what `tensors` gave; before `start`."""
        trainee = {name.removeprefix(_TRAINEE): value for name, value in tensors.items() if name.startswith(_TRAINEE)}
        self.trainee.load_state_dict(trainee)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(_OPTIMIZER):
                number, name = key.removeprefix(_OPTIMIZER).split(".")
                like = parameters[int(number)]
                # In the layout of the parameter, perhaps channels last, because a fused step goes through both at once.
                value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if scaler:
            self.scaler.load_state_dict(scaler)

    def start(self) -> None:
        """Join the trainee with those of the other processes; what it was loaded with must be there by now."""
        self._prepared = self._processes.prepare(self.trainee)

    def step(self, batch: Batch, epoch: int, step: int, rate_factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """One step on one batch: loss (n, K) and accuracy (n, K) of this process's part.

        Raises `TrainingError` when the memory does not suffice.
        """
        if self._prepared is None:
            self.start()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor
        noise = dropout_generator(self._config.seed, step, self._processes.process_index, self._processes.device)
        try:
            parts = list(split(batch, self._execution.accumulate))
            results = [self._accumulate(part, epoch, noise, last=part is parts[-1]) for part in parts]
            self.scaler.step(self.optimizer)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise self._out_of_memory(batch) from error
        self.scaler.update()
        self.optimizer.zero_grad()
        self.trainee.heads.project_()
        loss, accuracy = (torch.cat(values) for values in zip(*results, strict=True))
        return loss, accuracy

    def _accumulate(self, batch: Batch, epoch: int, noise: torch.Generator, *, last: bool) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part of a batch; processes exchange theirs with the last one."""
        processes = self._processes
        with torch.no_grad():
            views = self._task.views(batch, epoch)
        judgements: Judgements = self._task.judgements(batch, epoch)
        inputs = views if self.with_backbone else frozen_moments(self._metric, views, self._execution.precision)
        with processes.no_sync(self._prepared) if not last else contextlib.nullcontext():
            loss, accuracy = self._prepared(inputs, judgements, noise)
            # Gradients are averaged over processes; weighted so, the average is that of the whole batch however its
            # samples are spread. Contexts are summed, so that each learns as if it were alone.
            weighted = loss.sum() * (processes.num_processes / batch.global_size)
            processes.backward(self.scaler.scale(weighted))
        return loss.detach(), accuracy

    def _out_of_memory(self, batch: Batch) -> TrainingError:
        config, pieces = self._config, self._execution.accumulate
        return TrainingError(
            f"out of memory on {self._processes.device} with --batch-size {config.batch_size} "
            f"({len(batch)} images on this process in {pieces} pieces, {self._task.contexts} contexts, "
            f"{config.backbone}, {config.variant}). Try --accumulate {2 * pieces}, which computes the same in smaller "
            "pieces, or a smaller --batch-size."
        )


def split(batch: Batch, pieces: int) -> Iterator[Batch]:
    """Cut a batch into at most so many parts of about the same size, at least one; `global_size` stays."""
    size = max(1, -(-len(batch) // pieces))
    for start in range(0, max(1, len(batch)), size):
        components = {name: values[start : start + size] for name, values in batch.components.items()}
        yield dataclasses.replace(batch, components=components, ids=batch.ids[start : start + size])


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
