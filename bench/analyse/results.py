"""Results files: measurements, machine, versions and settings. README.md describes the keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.harness.measure import Measurement
from fastdps.errors import ConfigError

if TYPE_CHECKING:
    from bench.harness.bench import Bench

FORMAT = "fastdps-bench"
FORMAT_VERSION = 1
DIRECTORY = Path(__file__).resolve().parent.parent / "results"


def describe_run(bench: Bench) -> dict[str, Any]:
    """Return everything of a results file except the measurements. Call it before measuring, for the load average."""
    import torch  # imported here, so that commands that only read results start fast

    from bench.harness.machine import describe_commit, describe_machine, describe_versions

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(bench.device),
        "versions": describe_versions(),
        "settings": {
            "device": bench.device.type,
            "quick": bench.quick,
            "images": bench.data.images,
            "source": bench.data.source,
            "rounds": bench.timing.rounds,
            "sample_s": bench.timing.seconds,
            "torch_threads": torch.get_num_threads(),
            "torch_interop_threads": torch.get_num_interop_threads(),
        },
    }


def with_measurements(run: dict[str, Any], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the content of a results file."""
    return {**run, "measurements": [measurement.to_json() for measurement in measurements]}


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file. Raises `ConfigError` if it is not a results file, or has another version."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as results: {error}. Write some with `--json`.") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ConfigError(f"{path} does not contain results of the bench: its format is not {FORMAT!r}.")
    if results["format_version"] != FORMAT_VERSION:
        raise ConfigError(f"{path} has version {results['format_version']}; this bench reads {FORMAT_VERSION}.")
    return results


def newest_results() -> Path:
    """Return the newest of the committed results. Raises `ConfigError` if there are none."""
    found = {file: read_results(file)["date"] for file in DIRECTORY.glob("*.json")}
    if not found:
        raise ConfigError(f"{DIRECTORY} has no results; measure with `python -m bench --json FILE`.")
    return max(found, key=lambda file: found[file])


def find_row(results: dict[str, Any], stage: str, what: str) -> dict[str, Any]:
    """Return a row of a stage.

    Args:
        results: The content of a results file.
        stage: The stage.
        what: The name of the row.

    Returns:
        The row.

    Raises:
        ConfigError: There is no such row; the message lists the existing ones.
    """
    rows = {row["what"]: row for row in results["measurements"] if row["stage"] == stage}
    if what not in rows:
        known = "; ".join(rows) if rows else "none"
        raise ConfigError(
            f"the results have no row {what!r} of {stage} (it has: {known}). Measure with `python -m bench {stage}`."
        )
    return rows[what]
