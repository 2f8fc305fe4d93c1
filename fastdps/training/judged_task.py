"""The task of a judgement set whose backbone is trained, and its validation.

JudgedBatch --> images of a group, with their pairs --> model --> loss of each judgement, weighted by its votes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdps.contexts.distortions import to_float
from fastdps.contexts.judgements import JudgedPairs
from fastdps.loading.loader import ShardLoader
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision
from fastdps.metric.scores import two_afc
from fastdps.runtime.processes import Processes
from fastdps.training.judged_batches import JudgedBatch
from fastdps.training.judged_run import rows_of_rank
from fastdps.training.options import MomentLimits
from fastdps.training.pair_moments import PairMoments
from fastdps.training.tasks import GroupedImages, PairJudgements, Task


class JudgedTask(Task):
    """Adapt to the judgements of one judge, or of all together; or to both at once, with a shared backbone.

    Args:
        shares: For a shared backbone: the share of the votes that each judge gave, (J,). There are 1 + J contexts, the
            pooled one first; each counts the same, however many votes its judge gave. None for one context.
    """

    kind = "judgements"
    divides_images = True
    is_calibrated = True

    def __init__(self, shares: Tensor | None = None) -> None:
        self._shares = shares

    @property
    def contexts(self) -> int:
        """The number of contexts, K."""
        return 1 if self._shares is None else 1 + len(self._shares)

    @property
    def judgements_per_image(self) -> int:
        """One per sample: samples are judgements."""
        return 1

    def inputs(self, batch: Batch, epoch: int) -> GroupedImages:  # noqa: ARG002, the same in every epoch
        """Return the images of a `JudgedBatch` with their pairs."""
        assert isinstance(batch, JudgedBatch)
        part = batch.components
        return GroupedImages(to_float(part["image"]), part["first"], part["second"], batch.images_of_all)

    def views(self, batch: Batch, epoch: int) -> Tensor:  # noqa: ARG002
        """Raise `TypeError`: images of a group are not views of references."""
        raise TypeError("judgement sets have images, not views")

    def judgements(self, batch: Batch, epoch: int) -> PairJudgements:  # noqa: ARG002
        """Return the judgements of a `JudgedBatch`, weighted by their votes."""
        part = batch.components
        weights = part["weight"]
        if self._shares is not None:
            judges = torch.arange(len(self._shares), device=weights.device)
            own = (part["judge"][:, None] == judges) / self._shares.to(weights.device)
            weights = weights[:, None] * torch.cat([torch.ones_like(own[:, :1]), own], dim=1)
        return PairJudgements(part["pair_a"], part["pair_b"], part["share"][:, None, None], weights)


@dataclass(frozen=True)
class JudgedValidation:
    """The agreement with the votes of a judgement set, by which the best epoch is chosen.

    Attributes:
        judged: The judgements.
        loader: All images of the set, in packed order.
        limits: Limits of the kept moments.
        judges: Number of judges that are contexts beside the pooled one, of a shared backbone.
    """

    judged: JudgedPairs
    loader: ShardLoader
    limits: MomentLimits
    judges: int = 0

    def scores(self, metric: PerceptualMetric, processes: Processes, precision: Precision) -> Tensor:
        """Return the share of the votes of each context that agree with the metric, (K,).

        Each process scores some judgements.
        """
        own = self.judged.select(rows_of_rank(self.judged, processes.process_index, processes.num_processes))
        processes.beat("validates")
        moments = PairMoments(
            metric,
            self.loader,
            own.ids,
            own.pairs,
            limits=self.limits,
            precision=precision,
            beat=lambda images: processes.beat("validates", images),
        )
        d = moments.distances(metric.weights)
        first, second = (torch.from_numpy(index).to(d.device) for index in (own.first, own.second))
        share, votes = (torch.from_numpy(value).to(d.device) for value in (own.share, own.votes))
        judge = torch.from_numpy(own.judge).to(d.device)[:, None]
        counted = [torch.ones_like(judge, dtype=torch.bool), judge == torch.arange(self.judges, device=d.device)]
        votes = votes[:, None] * torch.cat(counted, dim=1)
        agreed = (votes * two_afc(d[first].double(), d[second].double(), share[:, None])).sum(dim=0)
        sums = processes.reduce(torch.stack([agreed, votes.sum(dim=0)]), reduction="sum")
        return sums[0] / sums[1]
