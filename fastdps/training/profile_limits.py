"""The first limit of a run, from its seconds by stage, and advice on changing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdps.runtime.stages import OTHER, STAGES, STEP_STAGES

#: What is not a stage of the training: its first step, which prepares memory and libraries, and this measurement.
FIRST_STEP, PROFILING = "first step", "profiling"
#: The time before the first step in which kept moments were computed.
PREPARATION = "preparation"
OUTSIDE_STEPS = (FIRST_STEP, PROFILING, PREPARATION)
#: Headspace from which on loading is the first limit.
LOADING_LIMITS = 1.1
#: What a step computes, as opposed to loading and to what happens between steps.
COMPUTING = (*(name for name in STEP_STAGES if name not in ("load", "copy")), OTHER)

#: What to change, by the first limit.
ADVICE: Mapping[str, str] = {
    PREPARATION: "keep fewer draws (`--draws-kept N`), use smaller images (`--size N`), or more or faster devices.",
    "load": "pack raw images of the training size (`--encoding raw --size N`), which need no decoding; read them from "
    "a local disk, or with --cache-size for all of the set; give each process more cores.",
    "copy": "pack smaller images (`--size N`), or use more processes with a device each.",
    "distort": "use smaller images (`--size N`), or more or faster devices.",
    "features": "with a frozen backbone keep some draws of the distortions (`--draws-kept 2`); use a smaller backbone "
    "(`--backbone`), smaller images (`--size N`), or more or faster devices; on a GPU try --precision bf16 and "
    "--compile.",
    "distances": "use a backbone with fewer channels, smaller images (`--size N`), or more or faster devices.",
    "heads": "train fewer contexts at a time (`--contexts N`), use the logistic judge, or more or faster devices.",
    "backward": "use more or faster devices; with a trained backbone also a smaller one or smaller images.",
    "update": "use more images per step (`--batch-size`), so that there are fewer updates.",
    "exchange": "use more images per step (`--batch-size`), so that there are fewer exchanges; fewer processes, or a "
    "faster link between them. If one process is slower than the others, they wait for it here.",
    "validation": "use a smaller validation set.",
    "checkpoint": "save checkpoints less often (`--checkpoint-every`), or to a faster disk.",
    "log": "write the run to a faster disk, and use fewer trackers (`--log-with`).",
}


class RunRates:
    """Rates of a run that follow from its seconds by stage.

    Args:
        seconds: Seconds of each stage in the run, without order.
        images: Images of the run, without those of first steps.
        slowdown: Computing time of a step over that on kept batches, which no loading disturbs; None if that was not
            measured.

    Attributes:
        seconds: Seconds of each stage in the run, in the order of the data flow.
        headspace: The time of the run over the time with all batches in memory, at least 1; None without `slowdown`.

    Example:
        >>> rates = RunRates({"load": 2.0, "features": 6.0}, images=800, slowdown=1.5)
        >>> rates.headspace  # of 8 s, 2 s are waiting, and the other 6 s would be 4 s
        2.0
    """

    def __init__(self, seconds: Mapping[str, float], images: int, slowdown: float | None) -> None:
        order = (*STAGES, OTHER, *OUTSIDE_STEPS)
        self.seconds = {name: seconds[name] for name in order if name in seconds}
        self._images = images
        self._total_s = sum(value for name, value in seconds.items() if name not in OUTSIDE_STEPS)
        self.headspace: float | None = None
        if images and slowdown is not None:
            computing_s = sum(seconds.get(name, 0.0) for name in COMPUTING)
            loading_s = seconds.get("load", 0.0) + seconds.get("copy", 0.0)
            self.headspace = self._total_s / (self._total_s - loading_s - computing_s * (1 - 1 / slowdown))

    @property
    def limit(self) -> str | None:
        """The stage that limits the run first: loading if there is headspace, or else the longest stage.

        None if there was one step only.
        """
        if not self._images:
            return None
        if self.seconds.get(PREPARATION, 0.0) >= self._total_s:
            return PREPARATION
        load_s, copy_s = self.seconds.get("load", 0.0), self.seconds.get("copy", 0.0)
        if (self.headspace or self._total_s / (self._total_s - load_s - copy_s)) >= LOADING_LIMITS:
            return "copy" if copy_s > load_s else "load"
        return max((name for name in self.seconds if name in STAGES[2:]), key=lambda name: self.seconds[name])

    def to_json(self) -> dict[str, Any]:
        """Return rates, limit and advice for `profile.json`."""
        limit = self.limit
        rate = self._images / self._total_s if self._images else None
        return {
            "images_per_s": rate,
            "headspace": self.headspace,
            "in_memory_images_per_s": rate * self.headspace if rate and self.headspace else None,
            "limit": limit,
            "advice": None if limit is None else ADVICE[limit],
        }


def share_of(seconds: Mapping[str, float], name: str) -> float:
    """Return the share of a stage in the time after the first step."""
    total = sum(value for stage, value in seconds.items() if stage not in OUTSIDE_STEPS)
    return seconds.get(name, 0.0) / total if total else 0.0
