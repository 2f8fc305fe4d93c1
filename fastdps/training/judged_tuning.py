"""Train backbones on a judgement set: one for all judges together and one for each judge, or a shared one.

judgement set --> features once, convex fit: heads to start from --> training of the backbone of each context
                                                                 '-> training of one backbone with all heads
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdps.contexts.judgements import POOLED, JudgedPairs, image_folds, judged_pairs
from fastdps.errors import ConfigError
from fastdps.loading.spec import BatchSource
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision
from fastdps.runtime.processes import Distributed
from fastdps.shards.judgements import read_judgements
from fastdps.training.best_epoch import Validator
from fastdps.training.judge_heads import fit_judge_heads
from fastdps.training.judged_batches import JudgedBatches
from fastdps.training.judged_run import keep_judges, rows_of_rank
from fastdps.training.judged_task import JudgedTask, JudgedValidation
from fastdps.training.kept_images import KeptImages
from fastdps.training.logistic import Judged
from fastdps.training.loop import build_metric
from fastdps.training.options import MomentLimits
from fastdps.training.pair_moments import PairMoments
from fastdps.training.recipes import TrainConfig
from fastdps.training.run_config import RunData, describe
from fastdps.training.selection import Selection
from fastdps.training.tasks import Task
from fastdps.training.trainings import Trainings


class JudgedTrainings(Trainings):
    """Trainings on a judgement set: all judges together, then each of them; a single one with a shared backbone.

    Args:
        config: Settings of the run.
        selection: The judgements, and the judges that get a backbone of their own.
        data: The data of the run.
        processes: The processes of the job.
        limits: Limits of kept moments and images.
        precision: Floating-point type of the backbone.
        own_contexts: Each process trains judges of its own.

    Raises:
        ConfigError: The validation set lacks judgements of a judge.
        ShardError: A set is missing or damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        selection: Selection,
        data: RunData,
        processes: Distributed,
        *,
        limits: MomentLimits,
        precision: Precision = "auto",
        own_contexts: bool = False,
    ) -> None:
        super().__init__(config, processes, own_contexts=own_contexts)
        assert selection.table is not None
        judges = selection.judges
        self._names = (POOLED, *judges)
        self._judged = keep_judges(judged_pairs(selection.table), judges)
        self._data, self._processes = data, processes
        self._limits, self._precision = limits, precision
        self._loader = data.open_images(data.only, processes.device)
        self._validation: JudgedPairs | None = None
        if data.validation is not None:
            self._validation_loader = data.open_images(data.validation, processes.device)
            found = read_judgements(data.validation, self._validation_loader.manifest)
            self._validation = keep_judges(judged_pairs(found), judges)
            for number, name in enumerate(self._names):
                if not len(self._of(self._validation, number)):
                    raise ConfigError(
                        f"{data.validation} has no judgements of {name} to choose the best epoch by. Leave out "
                        "--validation, or name other judges with --contexts."
                    )

    def __len__(self) -> int:
        return len(self._names) if self.config.backbone_per_context else 1

    def describe(self) -> dict[str, Any]:
        """Return the content of `config.json`."""
        return describe(self.config, [], self._data, self._loader, self._names)

    def metric(self, number: int) -> PerceptualMetric:
        """Return the unadapted metric, named after its judges."""
        metric = build_metric(self.config, (), self._processes.device)
        names = self._names_of(number)
        return PerceptualMetric(
            metric.backbone, metric.weights.repeat(len(names), 1), comparison=metric.comparison, judges=names
        ).to(self._processes.device)

    def task(self, number: int) -> Task:
        """Return the task: batches hold the judgements."""
        if len(self._names_of(number)) == 1:
            return JudgedTask()
        judge, votes = self._judged.judge, self._judged.votes
        of_judges = np.bincount(judge[judge >= 0], weights=votes[judge >= 0], minlength=len(self._names) - 1)
        return JudgedTask(torch.from_numpy(of_judges / votes.sum()).float())

    def prepare(self) -> None:
        """Load the images, and fit the heads to start from."""
        self._images = KeptImages(
            self._loader,
            self._judged.ids,
            limits=self._limits,
            beat=lambda images: self._processes.beat("loads images", images),
        )
        self._heads = self._fitted_heads()

    def loader(self, number: int, metric: PerceptualMetric) -> BatchSource:  # noqa: ARG002
        """Return the judgements of a judge as batches of images."""
        return JudgedBatches(
            self._of(self._judged, number),
            self._images,
            most_images=self.config.batch_size,
            seed=self.config.seed,
            rank=self.team.process_index,
            world_size=self.team.num_processes,
            device=self.team.device,
        )

    def validation(self, number: int) -> Validator | None:
        """Return the judgements of the same judge in the validation set."""
        if self._validation is None:
            return None
        judged, judges = self._of(self._validation, number), len(self._names_of(number)) - 1
        return JudgedValidation(judged, self._validation_loader, self._limits, judges)

    def start(self, number: int) -> Tensor:
        """Return the fitted heads of a training, (K, C)."""
        return self._heads if len(self) == 1 else self._heads[number : number + 1]

    def _names_of(self, number: int) -> tuple[str, ...]:
        """Return the names of the contexts of a training."""
        return self._names if len(self) == 1 else self._names[number : number + 1]

    def _of(self, judged: JudgedPairs, number: int) -> JudgedPairs:
        """Return the judgements of a training: all of them, or those of one judge."""
        return judged if number == 0 else judged.select(judged.judge == number - 1)

    def _fitted_heads(self) -> Tensor:
        """Return the heads of all judges on the unadapted backbone, (J, C)."""
        processes, config = self._processes, self.config
        own = self._judged.select(rows_of_rank(self._judged, processes.process_index, processes.num_processes))
        moments = PairMoments(
            build_metric(config, (), processes.device),
            self._loader,
            own.ids,
            own.pairs,
            limits=self._limits,
            precision=self._precision,
            beat=lambda images: processes.beat("computes features", images),
        )
        heads = fit_judge_heads(
            own,
            Judged(own, moments, processes),
            image_folds(len(own.ids), config.folds, config.seed),
            processes,
            strength=config.prior_strength,
            by_judge=len(self._names) > 1,
            report=lambda what, number, _: processes.beat(f"fits {what}", number),
        )
        return heads.weights
