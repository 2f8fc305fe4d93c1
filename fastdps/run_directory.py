"""The run directory: what a training run leaves behind, and where.

RUN/config.json          settings, contexts, data and versions
RUN/log.jsonl            one record per log line; "event": "end" sums a training up
RUN/checkpoints/         what an interrupted training goes on from (see `fastdps.training.checkpoints`)
RUN/metric.safetensors   the adapted metric (see `fastdps.metric.perceptual`)
RUN/scores.json          what `fastdps evaluate` found
RUN/details.json         what it found besides on held-out images, for the report; see `fastdps.evaluation.examples`
RUN/examples/            pictures of choices that the adapted metric gets wrong, named in `details.json`
RUN/report.html          what `fastdps report` made of all that
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, FastDPSError
from fastdps.runtime.files import write_errors


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """`config.json`."""
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        """`log.jsonl`."""
        return self.path / "log.jsonl"

    @property
    def metric(self) -> Path:
        """`metric.safetensors`."""
        return self.path / "metric.safetensors"

    def metric_of(self, number: int) -> Path:
        """`metrics/NNN.safetensors`: the metric of one of several contexts with a backbone each."""
        return self.path / "metrics" / f"{number:03d}.safetensors"

    def metrics(self) -> list[Path]:
        """The files of the run's metric or metrics, in the order of its contexts."""
        several = sorted(self.metric_of(0).parent.glob("*.safetensors"), key=lambda path: int(path.stem))
        return several or [self.metric]

    def checkpoints_of(self, number: int | None) -> Path:
        """`checkpoints`, or the directory in it of one of several contexts that are trained one after another."""
        directory = self.path / "checkpoints"
        return directory if number is None else directory / f"context-{number:03d}"

    @property
    def scores(self) -> Path:
        """`scores.json`."""
        return self.path / "scores.json"

    @property
    def details(self) -> Path:
        """`details.json`."""
        return self.path / "details.json"

    @property
    def examples(self) -> Path:
        """`examples`."""
        return self.path / "examples"

    @property
    def report(self) -> Path:
        """`report.html`."""
        return self.path / "report.html"

    def create(self, *, overwrite: bool) -> bool:
        """Make the directory, empty of an earlier run if that may be overwritten. Returns whether one is there still.

        Raises `ConfigError` where it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                files = (self.config, self.log, self.scores, self.details, self.report, *self.metrics())
                for path in files:
                    path.unlink(missing_ok=True)
                for directory in (self.checkpoints_of(None), self.examples):
                    shutil.rmtree(directory, ignore_errors=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made a run directory: {error}.") from error
        return any(path.exists() for path in (self.config, self.log, self.scores, *self.metrics()))

    def read_config(self) -> dict[str, Any]:
        """The content of `config.json`; `FastDPSError` when the directory is not a run."""
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FastDPSError(
                f"{self.path} is not a run: it has no {self.config.name}. Start one with `fastdps train`."
            ) from None
        except ValueError as error:
            raise FastDPSError(f"{self.config} is not JSON: {error}. Train again.") from error

    def append_log(self, record: dict[str, Any]) -> None:
        """Add one record to `log.jsonl`."""
        with write_errors(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def repair_log(self) -> None:
        """Cut off a line that an interrupted run left unfinished."""
        if self.log.exists() and not (text := self.log.read_bytes()).endswith(b"\n"):
            os.truncate(self.log, text.rfind(b"\n") + 1)

    def read_log(self) -> list[dict[str, Any]]:
        """The records of `log.jsonl`, oldest first, without those of steps that were taken again after a resume."""
        if not self.log.exists():
            return []
        records: list[dict[str, Any]] = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["event"] == "resume":
                records = [earlier for earlier in records if not _is_undone(earlier, record)]
            records.append(record)
        return records


@dataclass(frozen=True)
class Throughput:
    """Training speed, mean over the trainings of a run; all None if nothing was trained.

    Attributes:
        images_per_s: Images per second over all processes.
        triplets_per_s: Judged triplets of all contexts per second.
        data_wait_fraction: Share of the time that the main process waited for data.
    """

    images_per_s: float | None = None
    triplets_per_s: float | None = None
    data_wait_fraction: float | None = None

    @classmethod
    def from_log(cls, log: Sequence[dict[str, Any]]) -> Throughput:
        """Return the throughput that the records of a run's log say."""
        ends = [record for record in log if record["event"] == "end"]
        if not ends:
            return cls()
        return cls(**{f.name: sum(end[f.name] for end in ends) / len(ends) for f in fields(cls)})

    def to_dict(self) -> dict[str, float | None]:
        """Return the values as `scores.json` has them."""
        return asdict(self)


def _is_undone(record: dict[str, Any], resume: dict[str, Any]) -> bool:
    """Whether what a record tells of was lost when its training was resumed at an earlier step."""
    if record.get("context") != resume.get("context"):
        return False
    return record["event"] in ("end", "chosen") or record["step"] > resume["step"]
