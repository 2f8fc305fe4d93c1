"""Write the report of a run, of a sweep, or a comparison of several runs, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from fastdps.errors import ConfigError
from fastdps.report.comparison import render_comparison
from fastdps.report.page import render_run
from fastdps.report.reading import read_bench, read_run
from fastdps.report.sweep_page import PAGE, is_sweep, read_sweep, render_sweep
from fastdps.runtime.files import write_text

#: Default file of a comparison, in the working directory.
COMPARISON = Path("comparison.html")


def report(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str] | None = None,
    *,
    bench: str | PathLike[str] | None = None,
) -> Path:
    """Write the page of a run, a page that compares several runs, or the page of a sweep with those of its cases.

    Args:
        runs: One run directory or several, or results of `fastdps.train`; or the directory of one sweep.
        out: File to write, by default `report.html` in the run or the sweep, or `comparison.html` for several runs. The
            page of a sweep links to the pages of its cases by their place beside it, so it stays where it is.
        bench: File of `python -m bench --json`, to show the speed by stage; for one run only.

    Returns:
        The path of the page.

    Raises:
        ConfigError: `out` is a directory, or given for a sweep, or `bench` is given for several runs.
        FastDPSError: A directory is not a run or a sweep, a file of it is damaged, or the page cannot be written.

    Example:
        >>> report("runs/sample")  # doctest: +SKIP
        PosixPath('runs/sample/report.html')
    """
    paths = [runs] if isinstance(runs, str | PathLike) else list(runs)
    directories = list(dict.fromkeys(map(Path, paths)))
    if len(directories) == 1 and is_sweep(directories[0]):
        if out is not None or bench is not None:
            raise ConfigError(f"{directories[0]} is a sweep, which takes neither --out nor --bench. Leave them out.")
        return _report_sweep(directories[0])
    records = [read_run(path) for path in directories]
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


def _report_sweep(directory: Path) -> Path:
    """Write the pages of all cases of a sweep, and last its own."""
    sweep = read_sweep(directory)
    pages = {case.run.report: render_run(case) for case in sweep.cases.values()}
    pages[directory / PAGE] = render_sweep(sweep)
    for file, page in pages.items():
        write_text(file, page)
    return directory / PAGE
