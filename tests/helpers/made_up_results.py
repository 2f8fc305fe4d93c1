"""Generated results of the bench, for tests of their analyses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.harness.measure import Measurement


def results(rows: list[Measurement], *, date: str = "2026-01-02T03:04:05+00:00", **changes: Any) -> dict[str, Any]:
    """Return the content of a results file with these rows. `changes` override machine, versions and settings."""
    content: dict[str, Any] = {
        "format": "fastdps-bench",
        "format_version": 1,
        "date": date,
        "commit": {"id": "0123456789abcdef", "dirty": False},
        "machine": {"cpu": "Model X", "cores": 4, "gpu": None, "load_average": 0.1},
        "versions": {"python": "3.12.1", "torch": "2.14.1", "nvidia-dali-cuda130": None},
        "settings": {"device": "cpu", "quick": False, "images": 100, "source": "deadleaves", "torch_threads": 4},
        "measurements": [row.to_json() for row in rows],
    }
    for part in ("machine", "versions", "settings"):
        content[part] |= {name: value for name, value in changes.items() if name in content[part]}
    unknown = set(changes) - {name for part in ("machine", "versions", "settings") for name in content[part]}
    assert not unknown, unknown
    return content


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write the content to a file and return its path."""
    path.write_text(json.dumps(content))
    return path
