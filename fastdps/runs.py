"""The run directory: what a training run leaves behind, and where.

RUN/config.json          settings, contexts, data and versions
RUN/log.jsonl            one record per log line; the last one, "event": "end", sums the run up
RUN/metric.safetensors   the adapted metric (see `fastdps.metric`)
RUN/scores.json          what `fastdps evaluate` found
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, FastDPSError


@dataclass(frozen=True)
class Run:
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

    @property
    def scores(self) -> Path:
        """`scores.json`."""
        return self.path / "scores.json"

    def create(self, *, overwrite: bool) -> None:
        """Make the directory. Raises `ConfigError` when it holds a run already, unless that may be overwritten."""
        present = [path for path in (self.config, self.log, self.scores, *self.metrics()) if path.exists()]
        if present and not overwrite:
            raise ConfigError(
                f"{self.path} already holds a run. Choose another --out, or pass --overwrite to replace it."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made a run directory: {error}.") from error
        for path in present:
            path.unlink()

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
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """All records of `log.jsonl`, oldest first; none if there is no log."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
