"""How far a training has come: what a checkpoint has to know besides tensors, to go on at the very next batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdps.loading.loader import ShardLoader
from fastdps.loading.spec import Batch


@dataclass
class Progress:
    """Where a training stands.

    `step` counts the steps that are done, `epoch` the epochs, `seen` the samples of the present one. `left` are the
    positions of the epoch's order that there were to read when its present processes began with it, None for all, and
    `steps` those they have done since (see `ShardLoader.left_after`). `images` are those of all steps, `elapsed_s` and
    `wait_s` the time they took and that of waiting for data.
    """

    step: int = 0
    epoch: int = 0
    seen: int = 0
    left: list[range] | None = None
    steps: int = 0
    images: int = 0
    elapsed_s: float = 0.0
    wait_s: float = 0.0

    def add(self, batch: Batch) -> None:
        """Count a step."""
        self.step += 1
        self.steps += 1
        self.seen += batch.global_size
        self.images += batch.global_size

    def next_epoch(self) -> None:
        """Begin with the next epoch."""
        self.epoch += 1
        self.left, self.steps, self.seen = None, 0, 0

    def to_json(self, loader: ShardLoader) -> dict[str, Any]:
        """What `resumed` reads. Any number of processes can go on with `rest`."""
        return {
            **dataclasses.asdict(self),
            "left": None if self.left is None else _to_pairs(self.left),
            "rest": _to_pairs(loader.left_after(self.steps, self.left)),
        }

    @classmethod
    def resumed(cls, state: Mapping[str, Any], *, same_division: bool) -> Progress:
        """Go on from a state, with the same batches if the samples are still divided as they were."""
        known = {field.name: state[field.name] for field in dataclasses.fields(cls)}
        progress = cls(**known)
        if not same_division:
            progress.left, progress.steps = _to_ranges(state["rest"]), 0
        elif progress.left is not None:
            progress.left = _to_ranges(state["left"])
        return progress


def _to_pairs(ranges: list[range]) -> list[tuple[int, int]]:
    return [(numbers.start, numbers.stop) for numbers in ranges]


def _to_ranges(pairs: list[list[int]]) -> list[range]:
    return [range(start, stop) for start, stop in pairs]
