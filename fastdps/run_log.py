"""The log of a run, `log.jsonl`: its records, and the speed of its trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastdps.errors import FastDPSError
from fastdps.run_schema import RECORD, RECORDS
from fastdps.runtime.json_files import check, parse_json


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log, see `RunDirectory.read_log`. Raises `FastDPSError` for a damaged line."""
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = parse_json(line.decode())
            check(record, RECORD)
            check(record, RECORDS.get(record["event"], {}))
        except ValueError as error:
            raise FastDPSError(f"{path} is damaged: line {number}: {error}. Remove that line, or the file.") from error
        if record["event"] == "resume":
            records = [earlier for earlier in records if not _is_undone(earlier, record)]
        records.append(record)
    return records


def _lines(path: Path) -> list[bytes]:
    """Return the complete lines of a log."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FastDPSError(f"{path} cannot be read: {error.strerror}. Remove it.") from error


def _is_undone(record: dict[str, Any], resume: dict[str, Any]) -> bool:
    """Return whether a training was resumed before the step of a record, so that the step was repeated."""
    if record.get("context") != resume.get("context"):
        return False
    return record["event"] in ("end", "chosen") or record["step"] > resume["step"]


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
