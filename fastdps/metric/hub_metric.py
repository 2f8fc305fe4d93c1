"""Metrics in repositories of the hub: which files they have, and that these are the ones that were pushed.

A repository has

    metric.safetensors        the metric, or metrics/NNN.safetensors, one for each context with a backbone of its own
    fastdps.json              the contexts, the sha256 of each file, and the model card as JSON
    README.md                 the model card

Nothing else is read, and nothing that can run code.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.contexts.rankings import Ranking
from fastdps.errors import FastDPSError
from fastdps.metric.hub import HubAddress, download
from fastdps.runtime.json_files import Filled, Maybe, check, parse_json

MANIFEST, METRIC, METRICS = "fastdps.json", "metric.safetensors", "metrics"
FORMAT, FORMAT_VERSION = "fastdps-hub", 1
_FILE = re.compile(rf"{re.escape(METRIC)}|{METRICS}/\d+\.safetensors", re.ASCII)
_SCHEMA = {
    "format": str,
    "format_version": int,
    "files": Filled({"name": str, "sha256": str}),
    "contexts": Filled({"file": str, "row": int, "ranking": Maybe([str]), "judge": Maybe(str)}),
}


@dataclass(frozen=True)
class HubContext:
    """A context of a metric on the hub.

    Attributes:
        file: The name of its metric file.
        row: The row of its weights in that file.
        ranking: The ranking, or None.
        judge: The name of the judge, or None.
    """

    file: str
    row: int
    ranking: Ranking | None
    judge: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the context as JSON types."""
        ranking = None if self.ranking is None else list(self.ranking)
        return {"file": self.file, "row": self.row, "ranking": ranking, "judge": self.judge}


@dataclass(frozen=True)
class HubMetric:
    """A metric on the hub, at one commit.

    Attributes:
        address: The address, whose revision is a commit.
        contexts: The contexts.
        digests: The sha256 of each metric file.
    """

    address: HubAddress
    contexts: tuple[HubContext, ...]
    digests: dict[str, str]

    def fetch(self, file: str) -> Path:
        """Return a metric file, downloaded and compared with its sha256.

        Raises:
            ConfigError: The repository no longer exists.
            FastDPSError: The file cannot be downloaded, or is not the one that was pushed.
        """
        path, _ = download(self.address, file)
        try:
            with path.open("rb") as content:
                actual = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise FastDPSError(f"{path} cannot be read: {error.strerror}. Remove it, and load again.") from error
        if actual != self.digests[file]:
            raise FastDPSError(
                f"{self.address}: {file} is not the file that was pushed: its sha256 is {actual}, but {MANIFEST} says "
                f"{self.digests[file]}. It was not loaded. If it was changed on this machine, remove {path.resolve()}, "
                "and it is downloaded again; if not, tell the owner of the repository, or load an earlier revision."
            )
        return path

    def fetch_all(self) -> Path:
        """Return a directory with all metric files. Raises what `fetch` raises."""
        paths = [self.fetch(file) for file in self.digests]
        return paths[0].parents[next(iter(self.digests)).count("/")]


def open_hub_metric(text: str) -> HubMetric:
    """Return what a repository of the hub has, without its metric files.

    Args:
        text: "hub:user/name", or "hub:user/name@revision".

    Raises:
        ConfigError: The text has another form, or the repository or the revision does not exist.
        FastDPSError: The hub cannot be reached, or the repository is not a metric of fastdps.
    """
    path, address = download(HubAddress.parse(text), MANIFEST)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        check(content, _SCHEMA)
    except (OSError, ValueError) as error:
        raise FastDPSError(
            f"{address}: {MANIFEST} is damaged: {error}. Remove {path.resolve()}, and load again; or load an earlier "
            "revision."
        ) from error
    if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise FastDPSError(
            f"{address} has the format {content['format']}, version {content['format_version']}, but this fastdps "
            f"reads {FORMAT}, version {FORMAT_VERSION}. Update fastdps."
        )
    digests = {file["name"]: file["sha256"] for file in content["files"]}
    contexts = [
        HubContext(one["file"], one["row"], None if one["ranking"] is None else tuple(one["ranking"]), one["judge"])
        for one in content["contexts"]
    ]
    for name in [*digests, *(one.file for one in contexts)]:
        if not _FILE.fullmatch(name) or name not in digests:
            raise FastDPSError(
                f"{address}: {MANIFEST} names the file {name!r}. Only {METRIC} and {METRICS}/NNN.safetensors with a "
                "sha256 are read. Ask the owner of the repository to push the metric again."
            )
    return HubMetric(address, tuple(contexts), digests)
