"""The run directory: the files of a training run.

RUN/config.json          settings, contexts, data and versions
RUN/log.jsonl            one record per log line; "event": "end" is the summary of a training
RUN/checkpoints/         state from which an interrupted training resumes (see `fastdps.training.checkpoints`)
RUN/metric.safetensors   the adapted metric (see `fastdps.metric.perceptual`)
RUN/metrics/             instead of it, one metric per context where each context has its own backbone
RUN/adapted.json         of `fastdps adapt`: the base, and what to expect (see `fastdps.training.adapted_run`)
RUN/scores.json          results of `fastdps evaluate`
RUN/details.json         further results on held-out images, for the report (see `fastdps.evaluation.examples`)
RUN/examples/            pictures of wrong choices of the adapted metric, named in `details.json`
RUN/judged.json          judgements that the adapted metric gets wrong (see `fastdps.evaluation.judged_examples`)
RUN/judged/              their pictures
RUN/profile.json         of `fastdps train --profile`: time by stage (see `fastdps.training.profile`)
RUN/trace.json.gz        of it too: some steps as a trace for https://ui.perfetto.dev
RUN/report.html          the page of `fastdps report`
RUN/run.lock             held by the process that trains in the run or evaluates it, and removed when it ends
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, FastDPSError
from fastdps.run_log import read_log
from fastdps.run_schema import ADAPTED, CONFIG, DETAILS, JUDGED, PROFILE, SCORES
from fastdps.runtime.files import PARTIAL, write_errors
from fastdps.runtime.json_files import read_object
from fastdps.runtime.locks import lock_owner, locked

_EVALUATE = "Remove it and run `fastdps evaluate` again."

#: Version of the format of `details.json`, which `fastdps.evaluation.examples` describes.
DETAILS_VERSION = 1
#: Version of the format of `profile.json`, which `fastdps.training.profile` describes.
PROFILE_VERSION = 1
#: Version of the format of `judged.json`, which `fastdps.evaluation.judged_examples` describes.
JUDGED_VERSION = 1


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

    @classmethod
    def of_metric(cls, path: Path) -> RunDirectory:
        """Return the run directory that a metric file lies in, if it lies in one."""
        return cls(path.parent.parent if path.parent.name == "metrics" else path.parent)

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
        found = self.metric_of(0).parent.glob("*.safetensors")
        per_context = [path for path in found if path.stem.isdecimal() and path.stem.isascii()]
        return sorted(per_context, key=lambda path: int(path.stem)) or [self.metric]

    def checkpoints_of(self, number: int | None) -> Path:
        """Return `checkpoints`, or its subdirectory of a context if contexts are trained one after another."""
        directory = self.path / "checkpoints"
        return directory if number is None else directory / f"context-{number:03d}"

    @property
    def scores(self) -> Path:
        """The path of `scores.json`."""
        return self.path / "scores.json"

    @property
    def adapted(self) -> Path:
        """The path of `adapted.json`."""
        return self.path / "adapted.json"

    @property
    def details(self) -> Path:
        """The path of `details.json`."""
        return self.path / "details.json"

    @property
    def examples(self) -> Path:
        """The path of `examples`."""
        return self.path / "examples"

    @property
    def judged(self) -> Path:
        """The path of `judged.json`."""
        return self.path / "judged.json"

    @property
    def judged_pictures(self) -> Path:
        """The path of `judged`."""
        return self.path / "judged"

    @property
    def profile(self) -> Path:
        """The path of `profile.json`."""
        return self.path / "profile.json"

    @property
    def trace(self) -> Path:
        """The path of `trace.json.gz`."""
        return self.path / "trace.json.gz"

    @property
    def report(self) -> Path:
        """The path of `report.html`."""
        return self.path / "report.html"

    @contextmanager
    def locked(self, activity: str) -> Iterator[None]:
        """Keep all other processes from training in the run or evaluating it.

        The lock ends with its owner, also if that is killed. The directory is created if it is missing, and removed
        again if it is still empty at the end.

        Args:
            activity: What this process does in the run, such as "training", for the error of the other process.

        Raises:
            ConfigError: Another process holds the lock, or the directory cannot be created.
        """
        is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be a run directory: {error}. Choose another --out.") from error

        def conflict(owner: str) -> ConfigError:
            return ConfigError(
                f"{self.path} is in use by another {owner or 'process'}. Wait until it ends or stop it, or choose "
                "another run directory."
            )

        owner = f"{activity} (process {os.getpid()} on {socket.gethostname()})"
        try:
            with locked(self.path / "run.lock", conflict, owner=owner):
                yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it holds files
                    self.path.rmdir()

    @property
    def owner(self) -> str | None:
        """The process that trains in the run or evaluates it, None if there is no such process."""
        return lock_owner(self.path / "run.lock")

    def refuse_foreign_files(self) -> None:
        """Raise `ConfigError` if the directory holds files that do not belong to a run, and is not a run itself.

        Hidden files are ignored.
        """
        try:
            names = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be a run directory: {error.strerror}. Choose another --out."
            ) from error
        directories = (self.metric_of(0).parent, self.checkpoints_of(None), self.examples, self.judged_pictures)
        known = {path.name for path in (*self._files(), *directories, self.path / "run.lock")}
        foreign = [name for name in names if name not in known and not name.endswith(PARTIAL)]
        if foreign and not self._is_run():
            more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
            raise ConfigError(
                f"{self.path} is not a run and holds other files: {', '.join(foreign[:3])}{more}. Choose another --out."
            )

    def _is_run(self) -> bool:
        with contextlib.suppress(FastDPSError):
            return bool(self.read_config())
        return self.log.exists()

    @property
    def holds_run(self) -> bool:
        """True if the directory holds a run, finished or not."""
        return any(path.exists() for path in (self.config, self.log, self.scores, *self.metrics()))

    def clear(self) -> None:
        """Remove the files of a run. Raises `ConfigError` if they cannot be removed."""
        try:
            for path in (*self._files(), *self.metrics()):
                path.unlink(missing_ok=True)
            for directory in (self.checkpoints_of(None), self.examples, self.judged_pictures):
                shutil.rmtree(directory, ignore_errors=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be a run directory: {error}. Choose another --out.") from error

    def _files(self) -> list[Path]:
        results = [self.adapted, self.scores, self.details, self.judged, self.profile, self.trace, self.report]
        return [self.config, self.log, self.metric, *results]

    def read_config(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Raises:
            FastDPSError: The directory is not a run, or the file is damaged.
        """
        content = read_object(self.config, CONFIG, "Restore it, or train again with --overwrite.")
        if content is None:
            raise FastDPSError(
                f"{self.path} is not a run: it has no {self.config.name}. Start one with `fastdps train`."
            )
        return content

    def read_scores(self) -> dict[str, Any] | None:
        """Return the content of `scores.json`, None before the run is scored.

        Raises:
            FastDPSError: The file is damaged, or holds the scores of another run.
        """
        scores = read_object(self.scores, SCORES, _EVALUATE)
        if scores is not None:
            config = self.read_config()
            rankings, judges = config["rankings"], config.get("judges", [])
            bapps = scores["bapps"] or {}
            tests = [bapps[test].values() for test in ("2afc", "jnd", "averages") if bapps]
            subsets = [subset for test in tests for subset in test if subset]
            if bool(scores["contexts"]) != bool(scores["summary"]):
                raise FastDPSError(f"{self.scores} is damaged: it has no summary, or no contexts. {_EVALUATE}")
            if any(row["ranking"] not in rankings for row in scores["contexts"]) or any(
                len(subset["contexts"]) != max(1, len(rankings), len(judges)) for subset in subsets
            ):
                raise FastDPSError(f"{self.scores} holds the scores of another run: it has other contexts. {_EVALUATE}")
        return scores

    def read_details(self) -> dict[str, Any] | None:
        """Return the content of `details.json`, None without it or if another version of the format wrote it.

        Raises:
            FastDPSError: The file is damaged.
        """
        return _read_version(self.details, DETAILS_VERSION, DETAILS)

    def read_judged(self) -> dict[str, Any] | None:
        """Return the content of `judged.json`, None without it or if another version of the format wrote it.

        Raises:
            FastDPSError: The file is damaged.
        """
        return _read_version(self.judged, JUDGED_VERSION, JUDGED)

    def read_adapted(self) -> dict[str, Any] | None:
        """Return the content of `adapted.json`, None for a run that `fastdps train` made.

        Raises:
            FastDPSError: The file is damaged.
        """
        return read_object(self.adapted, ADAPTED, "Adapt again with --overwrite.")

    def read_profile(self) -> dict[str, Any] | None:
        """Return the content of `profile.json`, None without it or if another version of the format wrote it.

        Raises:
            FastDPSError: The file is damaged.
        """
        return _read_version(self.profile, PROFILE_VERSION, PROFILE)

    def append_log(self, record: dict[str, Any]) -> None:
        """Append a record to `log.jsonl`."""
        with write_errors(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def repair_log(self) -> None:
        """Remove an incomplete last line that an interrupted run left in `log.jsonl`."""
        if self.log.exists() and not (text := self.log.read_bytes()).endswith(b"\n"):
            os.truncate(self.log, text.rfind(b"\n") + 1)

    def read_log(self) -> list[dict[str, Any]]:
        """Return the records of `log.jsonl`, oldest first, without the steps that were repeated after a resume.

        An incomplete last line, which an interrupted run leaves, is ignored.

        Raises:
            FastDPSError: Another line is damaged.
        """
        return read_log(self.log)


def _read_version(path: Path, version: int, schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a file of `fastdps evaluate`, None if it is missing or has another format version."""
    content = read_object(path, {"format_version": int}, _EVALUATE)
    if content is None or content["format_version"] != version:
        return None
    return read_object(path, schema, _EVALUATE)
