"""One step of training: a batch, its gradients averaged over all processes, and the update of the model.

batch --> task: views, judgements --> [frozen backbone: moments] --> model: loss --> gradients --> Adam --> W >= 0
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdps.errors import TrainingError
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric, frozen_moments
from fastdps.metric.precision import resolve_precision
from fastdps.runtime.processes import Processes
from fastdps.runtime.stages import stage
from fastdps.training.low_rank import add_low_rank
from fastdps.training.model import TrainedModel
from fastdps.training.options import Execution
from fastdps.training.prior import Prior
from fastdps.training.recipes import TrainConfig
from fastdps.training.tasks import Task

#: Adam's term in the denominator, torch's default.
ADAM_EPS = 1e-8
#: Prefixes of the tensors in a checkpoint: names of the file format, which older checkpoints have too.
_MODEL, _OPTIMIZER = "trainee.", "optimizer."


class Stepper:
    """Takes the steps of one training, and owns the state that they change.

    Attributes:
        model: Heads, judges and, where it is trained, the backbone.
        optimizer: Adam over the parameters of `model`.
        scaler: The loss scale of a float16 backbone, disabled otherwise.
        prior: The term of the last step that holds the unadapted metric, the sum over this process's images, (); None
            without one.
    """

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
        # A copy of the backbone, so before it is compiled.
        prior = Prior(metric.backbone, metric.comparison, self._execution.precision) if config.keep else None
        if self._execution.compile:
            metric.backbone.compile(dynamic=True)  # dynamic, since the last batch of an epoch is shorter
        self.model = TrainedModel(config, task.contexts, metric.channels).to(processes.device)
        # A backbone that contexts share learns from their mean, so that it learns at the same rate from 1 and from 720.
        # Heads then have gradients smaller by that number; with eps as much smaller, Adam takes the same steps.
        self._mean_of = task.contexts if config.trains_backbone else 1
        heads = [*self.model.heads.parameters(), *self.model.judge.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": heads, "initial_lr": config.learning_rate, "eps": ADAM_EPS / self._mean_of}
        ]
        if config.trains_backbone:
            self.model.with_backbone(metric, self._execution.precision, processes)
            if prior is not None:
                self.model.with_prior(prior)
            own = list(metric.backbone.parameters())
            if config.lora:
                own = add_low_rank(metric.backbone, config.lora, config.seed)
            groups.append({"params": own, "initial_lr": config.backbone_learning_rate})
        self.optimizer = torch.optim.Adam(groups, betas=config.adam_betas, fused=True)
        # Without a loss scale, gradients of a float16 backbone would underflow.
        scaled = config.trains_backbone and resolve_precision(self._execution.precision, processes.device) == "fp16"
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=scaled)
        self._prepared: Any = None
        self.prior: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that steps change, for `load`. The loss scale, which is not a tensor, is not included."""
        tensors = {_MODEL + name: tensor for name, tensor in self.model.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{number}.{name}": tensor for name, tensor in values.items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor], scaler: dict[str, Any]) -> None:
        """Restore the state from `tensors`, and the loss scale. To be called before `start`."""
        model = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
        self.model.load_state_dict(model)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(_OPTIMIZER):
                number, name = key.removeprefix(_OPTIMIZER).split(".")
                like = parameters[int(number)]
                # In the memory format of the parameter, maybe channels last: a fused step iterates over both at once.
                value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if scaler:
            self.scaler.load_state_dict(scaler)

    def start(self) -> None:
        """Connect the model with the other processes, after its state was loaded."""
        self._prepared = self._processes.prepare(self.model)

    def step(self, batch: Batch, epoch: int, step: int, rate_factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Take one step on one batch.

        Args:
            batch: The part of the batch on this process.
            epoch: Number of the epoch, which decides the distortions.
            step: Number of the step, which decides the dropout noise.
            rate_factor: Factor on the learning rates, see `learning_rate_factor`.

        Returns:
            Loss (n, K) and accuracy (n, K) of this process's part. Where every process computes all of them, they are
            divided by the number of processes, so that they add up over processes in either case.

        Raises:
            TrainingError: Memory is exhausted.
        """
        if self._prepared is None:
            self.start()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor
        rank = 0 if self._task.divides_images else self._processes.process_index
        noise = dropout_generator(self._config.seed, step, rank, self._processes.device)
        try:
            pieces = list(split(batch, self._execution.accumulate))
            results = [self._accumulate(piece, epoch, noise, last=piece is pieces[-1]) for piece in pieces]
            with stage("update"):
                self.scaler.step(self.optimizer)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise self._out_of_memory(batch) from error
        with stage("update"):
            self.scaler.update()
            self.optimizer.zero_grad()
            self.model.heads.project_()
        losses, accuracies, priors = zip(*results, strict=True)
        self.prior = torch.stack(priors).sum() if self._config.keep else None
        return torch.cat(losses), torch.cat(accuracies)

    def _accumulate(
        self, batch: Batch, epoch: int, noise: torch.Generator, *, last: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the gradients of one piece of a batch; processes exchange theirs with the last piece."""
        processes = self._processes
        with torch.no_grad(), stage("distort"):
            inputs = self._task.inputs(batch, epoch)
        judgements = self._task.judgements(batch, epoch)
        if isinstance(inputs, Tensor) and not self._config.trains_backbone:
            inputs = frozen_moments(self._metric, inputs, self._execution.precision)
        # The number of processes that compute the loss of a sample.
        copies = processes.num_processes if self._task.divides_images else 1
        held = self._task.held_views(batch, epoch) if self._config.keep else None
        with processes.no_sync(self._prepared) if not last else contextlib.nullcontext():
            with stage("heads"):
                loss, accuracy, prior = self._prepared(inputs, judgements, noise, held)
            # Gradients are averaged over processes. With this weight the average equals the gradient of the whole
            # batch, however its samples are divided. Contexts are summed, so that each learns as if it were trained by
            # itself; see `_mean_of` for those that share a trained backbone.
            share = processes.num_processes / copies / batch.loss_size
            weighted = loss.sum() * (share / self._mean_of)
            if prior is not None:  # of a group, it is the same on all processes
                weighted = weighted + self._config.keep * (prior if prior.dim() == 0 else prior.sum() * share)
            with stage("backward"):
                processes.backward(self.scaler.scale(weighted))
        if prior is not None:
            prior = (prior * batch.global_size if prior.dim() == 0 else prior.sum()).detach() / copies
        if copies > 1:
            loss, accuracy = loss / copies, accuracy / copies
        return loss.detach(), accuracy, prior

    def _out_of_memory(self, batch: Batch) -> TrainingError:
        config, pieces = self._config, self._execution.accumulate
        smaller = (
            f"Try --accumulate {2 * pieces}, which computes the same in smaller pieces, or a smaller --batch-size."
        )
        if self._task.divides_images:
            smaller = "Try a smaller --batch-size."
        return TrainingError(
            f"out of memory on {self._processes.device} with --batch-size {config.batch_size} "
            f"({len(batch)} images on this process in {pieces} pieces, {self._task.contexts} contexts, "
            f"{config.backbone}, {config.variant}). {smaller}"
        )


def learning_rate_factor(config: TrainConfig, done: float) -> float:
    """Return the factor on the learning rates after a share `done` (0 to 1) of a training, see `TrainConfig.decay`."""
    if config.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    # LPIPS lowers the rate after each epoch of the second half, so the first of these still has the full rate.
    decaying = config.epochs // 2
    lowered = math.floor(done * config.epochs + 1e-9) - (config.epochs - decaying)
    return 1 - max(0, lowered) / max(1, decaying)


def dropout_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """Return the noise generator of one step of one process, independent of all earlier steps."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def split(batch: Batch, pieces: int) -> Iterator[Batch]:
    """Split a batch into at most `pieces` batches of about equal size, at least one; `global_size` stays the same."""
    if pieces == 1:
        yield batch
        return
    size = max(1, -(-len(batch) // pieces))
    for start in range(0, max(1, len(batch)), size):
        components = {name: values[start : start + size] for name, values in batch.components.items()}
        passes = None if batch.passes is None else batch.passes[start : start + size]
        yield dataclasses.replace(batch, components=components, ids=batch.ids[start : start + size], passes=passes)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
