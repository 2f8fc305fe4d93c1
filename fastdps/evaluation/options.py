"""Options of scoring a run. Imports no torch, so that the command line can show them without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastdps.contexts.interpolation import Interpolation
from fastdps.errors import ConfigError
from fastdps.loading.options import LoadOptions
from fastdps.shards.storage import Location
from fastdps.training.options import MomentLimits

if TYPE_CHECKING:
    from fastdps.loading.loader import ShardLoader
    from fastdps.runtime.processes import Processes

#: Default number of draws of all distortions per image.
DRAWS = 5


@dataclass(frozen=True)
class EvaluationOptions:
    """Options for scoring a run.

    Attributes:
        draws: Number of draws of all distortions per image.
        batch_size: Samples per step and process.
        interpolation: Sampling of the geometric distortions; None for that of the training, or, if that is mixed, for
            nearest, the paper's.
        size: Side in pixels to which images are resized while loading, None for their packed size.
        loading: How shards are read.
        moments: Limits of the kept moments of a judgement set.
    """

    draws: int = DRAWS
    batch_size: int = 50
    interpolation: Interpolation | None = None
    size: int | None = None
    loading: LoadOptions = field(default_factory=LoadOptions)
    moments: MomentLimits = field(default_factory=MomentLimits)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"--draws must be at least 1, not {self.draws}.")

    def interpolation_after(self, trained: Interpolation) -> Interpolation:
        """Return the interpolation to score with after a training with that of `trained`."""
        return self.interpolation or ("nearest" if trained == "mixed" else trained)

    def open(self, location: Location, processes: Processes) -> ShardLoader:
        """Return the loader of a shard set for this process, in packed order."""
        from fastdps.loading.loader import open_shards

        return open_shards(
            location,
            batch_size=self.batch_size,
            size=self.size,
            device=processes.device,
            seed=None,
            rank=processes.process_index,
            world_size=processes.num_processes,
            options=self.loading,
        )
