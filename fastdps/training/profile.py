"""`fastdps train --profile`: where the time of a run goes, what limits it first, and what to change.

    steps of the run ----------------> seconds by stage                              \
    some steps of it ----------------> RUN/trace.json.gz, for Perfetto or a browser   > RUN/profile.json
    steps on kept batches at the end -> headspace: what a perfect loader would give  /

Headspace is the time of the run over the time that it would take if its batches were in memory already. On a CPU that
is more than the time spent waiting, because loading uses the same cores. Source: the "headspace analysis" of SPDL.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.autograd import profiler

from fastdps.errors import StoppedError
from fastdps.loading.spec import Batch
from fastdps.run_directory import PROFILE_VERSION, RunDirectory
from fastdps.runtime.files import write_bytes, write_json
from fastdps.runtime.machine import MIB, peak_memory_MiB
from fastdps.runtime.processes import Processes
from fastdps.runtime.stages import RECENT_LAPS, ExchangeWatch, StageClock, whole_stage
from fastdps.training.profile_limits import COMPUTING, FIRST_STEP, PREPARATION, PROFILING, RunRates, share_of
from fastdps.training.step import Stepper

#: Steps that are traced, and the steps before them.
TRACED_STEPS, BEFORE_TRACE = 3, 5
#: Largest number and bytes of the batches that are kept for the steps at the end; one is kept in any case.
KEPT_BATCHES, KEPT_BYTES = 2, 2**28
#: Steps on kept batches, at least, at most, and as a share of those of the run.
LEAST_KEPT_STEPS, MOST_KEPT_STEPS, KEPT_SHARE = 2, 20, 1 / 200


class Trace:
    """A trace of all operations, from its construction to `write`, in the format of Chrome.

    `torch.profiler.profile` would import torch's compiler first, which takes more than a second.
    """

    def __init__(self, device: torch.device) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages are not for users
        self._profiler = profiler.profile(use_cpu=True, use_device="cuda" if device.type == "cuda" else None)
        self._profiler.__enter__()

    def write(self, path: Path) -> None:
        """End the trace, and write it to a file, compressed by gzip."""
        self.close()
        with tempfile.TemporaryDirectory() as directory:
            plain = Path(directory) / "trace.json"
            self._profiler.export_chrome_trace(str(plain))
            write_bytes(path, gzip.compress(plain.read_bytes(), compresslevel=1))

    def close(self) -> None:
        """End the trace."""
        self._profiler.__exit__(None, None, None)


class RecentSteps:
    """The last steps of a training, which a clock counts as laps, and their images."""

    def __init__(self, clock: StageClock) -> None:
        self.clock = clock
        self._images: deque[int] = deque(maxlen=RECENT_LAPS)

    def add(self, images: int) -> None:
        """Count a step."""
        self._images.append(images)
        self.clock.lap()

    def least_s_per_image(self) -> float | None:
        """Return the computing time per image in the fastest step, which other programs disturbed least."""
        self.clock.seconds()  # waits for the device
        return min(
            (
                sum(lap.get(name, 0.0) for name in COMPUTING) / images
                for lap, images in zip(self.clock.laps, self._images, strict=True)
                if images and FIRST_STEP not in lap
            ),
            default=None,
        )


class Profile:
    """Measures the trainings of a run by stages.

    Args:
        run: The run directory, for the results.
        device: The device that computes.
        traces: Also trace some steps, as one process of a job does.
    """

    def __init__(self, run: RunDirectory, device: torch.device, *, traces: bool) -> None:
        self._run, self._device = run, device
        self._clock = StageClock(device)
        self._recent = RecentSteps(self._clock)
        self._slowdown: float | None = None
        self._prepared_s = 0.0
        self._traces = traces
        self._trace: Trace | None = None
        self._stepper: Stepper | None = None
        self._watch: ExchangeWatch | None = None
        self._steps = self._images = 0
        self._batches: list[Batch] = []
        self._kept_bytes = 0

    @contextmanager
    def running(self, stepper: Stepper, prepared_s: float = 0.0) -> Iterator[None]:
        """Measure the steps of one training, taken by `stepper`, which call `stepped`, after `prepared_s` seconds."""
        self._prepared_s += prepared_s
        self._stepper = stepper
        self._clock.label = FIRST_STEP
        self._watch = ExchangeWatch(self._clock, stepper.model)
        try:
            with self._clock.running():
                yield
        finally:
            self._watch.close()

    def stepped(self, batch: Batch) -> None:
        """Count a step that was taken on a batch."""
        if self._watch:
            self._watch.begin()
        if self._clock.label == FIRST_STEP:
            self._clock.label = None
        else:
            self._steps += 1
            self._images += batch.global_images
        self._recent.add(batch.global_images)
        if (
            self._slowdown is None
            and len(self._batches) < KEPT_BATCHES
            and (not self._batches or self._kept_bytes < KEPT_BYTES)
        ):
            self._batches.append(batch)
            self._kept_bytes += sum(part.nbytes for part in batch.components.values())
        if self._traces and self._steps == BEFORE_TRACE and self._trace is None:
            with whole_stage(PROFILING):
                self._start_trace(self._clock)
        elif self._trace and self._steps == BEFORE_TRACE + TRACED_STEPS:
            with whole_stage(PROFILING):
                self._stop_trace(self._clock)

    def measure_kept(self) -> None:
        """Take steps on kept batches, with a learning rate of zero: they change nothing. All processes call this.

        A run that was too short for a trace gets a trace of these steps.
        """
        if not self._batches or self._stepper is None:
            return
        clock = StageClock(self._device)
        kept = RecentSteps(clock)
        if self._trace:
            clock.is_traced = True
        elif self._traces:
            self._start_trace(clock)
        watch = ExchangeWatch(clock, self._stepper.model)
        steps = min(MOST_KEPT_STEPS, max(LEAST_KEPT_STEPS, math.ceil(self._steps * KEPT_SHARE)))
        with clock.running():
            for number, batch in enumerate(itertools.islice(itertools.cycle(self._batches), steps)):
                watch.begin()
                self._stepper.step(batch, epoch=0, step=number, rate_factor=0.0)
                kept.add(batch.global_images)
        watch.close()
        if self._trace:
            self._stop_trace(clock)
        run_s, kept_s = self._recent.least_s_per_image(), kept.least_s_per_image()
        self._slowdown = max(1.0, run_s / kept_s) if run_s and kept_s else None
        self._batches.clear()

    @contextmanager
    def reported(self, processes: Processes) -> Iterator[None]:
        """Write the results when the training in the context ends, or is stopped by a signal."""
        try:
            yield
        except StoppedError:
            self._report(processes)
            raise
        finally:
            if self._trace:
                self._trace.close()
                self._trace = None
        self._report(processes)

    def _start_trace(self, clock: StageClock) -> None:
        self._trace = Trace(self._device)
        clock.is_traced = True

    def _stop_trace(self, clock: StageClock) -> None:
        assert self._trace is not None
        clock.is_traced = self._traces = False
        self._trace.write(self._run.trace)
        self._trace = None

    def _report(self, processes: Processes) -> None:
        """Write `profile.json`, with means over the processes that train together."""
        own = self._clock.seconds() | ({PREPARATION: self._prepared_s} if self._prepared_s else {})
        everything = processes.gather_objects((own, self._slowdown, *_peaks_MiB(self._device)))
        on_gpu = self._device.type == "cuda"
        if processes.process_index == 0:
            seconds, slowdowns, *peaks = zip(*everything, strict=True)
            slowdown = None if None in slowdowns else statistics.fmean(slowdowns)
            rates = RunRates(_mean(seconds), self._images, slowdown)
            content = {
                "format_version": PROFILE_VERSION,
                "device": torch.cuda.get_device_name(self._device) if on_gpu else self._device.type,
                "processes": processes.num_processes,
                "steps": self._steps,
                "images": self._images,
                "seconds": rates.seconds,
                "data_wait": max(share_of(each, "load") for each in seconds),
                **rates.to_json(),
                "peak_MiB": max(peaks[0]),
                "device_peak_MiB": max(peaks[1]) if on_gpu else None,
                "trace": self._run.trace.name if self._run.trace.exists() else None,
            }
            write_json(self._run.profile, content)


def _mean(seconds: tuple[Mapping[str, float], ...]) -> dict[str, float]:
    """Return the mean over processes of the seconds of each stage."""
    names = dict.fromkeys(name for each in seconds for name in each)
    return {name: sum(each.get(name, 0.0) for each in seconds) / len(seconds) for name in names}


def _peaks_MiB(device: torch.device) -> tuple[float, float]:  # noqa: N802, the unit
    """Return the peaks of memory so far of this process, and of its tensors on its GPU."""
    on_gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return peak_memory_MiB(), on_gpu / MIB
