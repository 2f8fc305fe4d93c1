"""Write the report of a run, or a comparison of several runs, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from fastdps.errors import ConfigError
from fastdps.report.comparison import render_comparison
from fastdps.report.page import render_run
from fastdps.report.reading import read_bench, read_run
from fastdps.runtime.files import write_text

#: Default file of a comparison, in the working directory.
COMPARISON = Path("comparison.html")


def report(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str] | None = None,
    *,
    bench: str | PathLike[str] | None = None,
) -> Path:
    """Write the page of a run, or a page that compares several runs.

    Args:
        runs: One run directory or several, or results of `fastdps.train`.
        out: File to write, by default `report.html` in the run, or `comparison.html` for several runs.
        bench: File of `python -m bench --json`, to show the speed by stage; for one run only.

    Returns:
        The path of the page.

    Raises:
        ConfigError: `out` is a directory, or `bench` is given for several runs.
        FastDPSError: A directory is not a run, a file of it is damaged, or the page cannot be written.

    Example:
        >>> report("runs/sample")  # doctest: +SKIP
        PosixPath('runs/sample/report.html')
    """
    paths = [runs] if isinstance(runs, str | PathLike) else list(runs)
    records = [read_run(path) for path in dict.fromkeys(map(Path, paths))]
    if len(records) == 1:
        file = records[0].run.report if out is None else Path(out)
        page = render_run(records[0], read_bench(Path(bench)) if bench else None)
    else:
        if bench:
            raise ConfigError("--bench goes with one run; a comparison does not show it.")
        file = COMPARISON if out is None else Path(out)
        page = render_comparison(records)
    if file.is_dir():
        raise ConfigError(f"{file} is a directory. Name a file such as {file / 'report.html'} with --out.")
    write_text(file, page)
    return file
