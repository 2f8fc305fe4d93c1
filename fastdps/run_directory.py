"""The run directory: the files of a training run.

RUN/config.json          settings, contexts, data and versions
RUN/log.jsonl            one record per log line; "event": "end" is the summary of a training
RUN/checkpoints/         state from which an interrupted training resumes (see `fastdps.training.checkpoints`)
RUN/metric.safetensors   the adapted metric (see `fastdps.metric.perceptual`)
RUN/metrics/             instead of it, one metric per context where each context has its own backbone
RUN/scores.json          results of `fastdps evaluate`
RUN/details.json         further results on held-out images, for the report (see `fastdps.evaluation.examples`)
RUN/examples/            pictures of wrong choices of the adapted metric, named in `details.json`
RUN/report.html          the page of `fastdps report`
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

#: Version of the format of `details.json`, which `fastdps.evaluation.examples` describes.
DETAILS_VERSION = 1


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run directory, and access to its configuration and log.

    Attributes:
        path: The directory.

    Example:
        >>> RunDirectory(Path("runs/sample")).log.name
        'log.jsonl'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The path of `config.json`."""
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        """The path of `log.jsonl`."""
        return self.path / "log.jsonl"

    @property
    def metric(self) -> Path:
        """The path of `metric.safetensors`."""
        return self.path / "metric.safetensors"

    def metric_of(self, number: int) -> Path:
        """Return the path `metrics/NNN.safetensors` of a context that has its own backbone."""
        return self.path / "metrics" / f"{number:03d}.safetensors"

    def metrics(self) -> list[Path]:
        """Return the paths of the metrics, in the order of the contexts: the files in `metrics`, or one file."""
        per_context = sorted(self.metric_of(0).parent.glob("*.safetensors"), key=lambda path: int(path.stem))
        return per_context or [self.metric]

    def checkpoints_of(self, number: int | None) -> Path:
        """Return `checkpoints`, or its subdirectory of a context if contexts are trained one after another."""
        directory = self.path / "checkpoints"
        return directory if number is None else directory / f"context-{number:03d}"

    @property
    def scores(self) -> Path:
        """The path of `scores.json`."""
        return self.path / "scores.json"

    @property
    def details(self) -> Path:
        """The path of `details.json`."""
        return self.path / "details.json"

    @property
    def examples(self) -> Path:
        """The path of `examples`."""
        return self.path / "examples"

    @property
    def report(self) -> Path:
        """The path of `report.html`."""
        return self.path / "report.html"

    def create(self, *, overwrite: bool) -> bool:
        """Create the directory, and with `overwrite` remove the files of an earlier run.

        Returns:
            True if the directory holds an earlier run.

        Raises:
            ConfigError: The directory cannot be created.
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
            raise ConfigError(f"{self.path} cannot be a run directory: {error}. Choose another --out.") from error
        return any(path.exists() for path in (self.config, self.log, self.scores, *self.metrics()))

    def read_config(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Raises:
            FastDPSError: The directory is not a run, or the file is not JSON.
        """
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FastDPSError(
                f"{self.path} is not a run: it has no {self.config.name}. Start one with `fastdps train`."
            ) from None
        except ValueError as error:
            raise FastDPSError(f"{self.config} is not JSON: {error}. Train again.") from error

    def append_log(self, record: dict[str, Any]) -> None:
        """Append a record to `log.jsonl`."""
        with write_errors(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def repair_log(self) -> None:
        """Remove an incomplete last line that an interrupted run left in `log.jsonl`."""
        if self.log.exists() and not (text := self.log.read_bytes()).endswith(b"\n"):
            os.truncate(self.log, text.rfind(b"\n") + 1)

    def read_log(self) -> list[dict[str, Any]]:
        """Return the records of `log.jsonl`, oldest first, without the steps that were repeated after a resume."""
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
        """Return the throughput recorded in the log of a run."""
        ends = [record for record in log if record["event"] == "end"]
        if not ends:
            return cls()
        return cls(**{f.name: sum(end[f.name] for end in ends) / len(ends) for f in fields(cls)})

    def to_dict(self) -> dict[str, float | None]:
        """Return the values as `scores.json` has them."""
        return asdict(self)


def _is_undone(record: dict[str, Any], resume: dict[str, Any]) -> bool:
    """Return whether a training was resumed before the step of a record, so that the step was repeated."""
    if record.get("context") != resume.get("context"):
        return False
    return record["event"] in ("end", "chosen") or record["step"] > resume["step"]
