"""Results files, and the table of the README that is made of one."""

from __future__ import annotations

import pytest

import bench.__main__ as command
from bench.analyse.tables import BEGIN, END
from bench.harness.measure import Compared, Measurement
from helpers.made_up_results import results, write


def results_file(path, date, median):
    rows = [
        Measurement("load", "raw 64 px", (median,), limit=Compared("DALI", (2 * median,))),
        Measurement("load", "a detail", (1.0,), headline=False),
        Measurement("train", "lin", (300.0,), usual=Compared("the usual way", (150.0,)), triplets_per_image=15),
        Measurement("startup", "help", (0.25,), unit="s", limit=Compared("Python", (0.05,))),
        Measurement("memory", "train", (1500.0,), unit="MiB", limit=Compared("imports", (750.0,))),
    ]
    write(path, results(rows, date=date))


def test_readme_table_goes_between_the_markers_and_nowhere_else(tmp_path):
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    results_file(path, "2026-01-02T03:04:05+00:00", 123456.0)
    readme.write_bytes(f"# Title\r\n\r\n{BEGIN}\nold\n{END}\n\ntail without an end".encode())
    arguments = ["readme", "--json", str(path), "--readme", str(readme)]
    assert command.main(arguments) == 0
    written = readme.read_bytes().decode()
    before, _, rest = written.partition(BEGIN)
    table, _, after = rest.partition(END)
    assert (before, after) == ("# Title\r\n\r\n", "\n\ntail without an end")
    assert table.splitlines() == [
        "",
        "Model X, 4 cores; Python 3.12.1, torch 2.14.1; commit 012345678, 2026-01-02.",
        "",
        "| stage | what | images/s | limit | share |",
        "|---|---|---:|---:|---:|",
        "| load | raw 64 px | 123,456 | DALI: 246,912 | 50% |",
        "| train | lin (30 x the usual way) | 300 |  |  |",
        "| startup | help | 0.25 s | Python: 0.05 s | 20% |",
        "| memory | train | 1,500 MiB | imports: 750 MiB | 50% |",
    ]
    assert command.main(arguments) == 0
    assert readme.read_bytes().decode() == written


@pytest.mark.parametrize("text", ["no markers", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_readme_without_its_markers_stays_as_it_is(tmp_path, text, capsys):
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    results_file(path, "2026-01-02T03:04:05+00:00", 1.0)
    readme.write_text(text)
    assert command.main(["readme", "--json", str(path), "--readme", str(readme)]) == 1
    assert readme.read_text() == text
    assert "once each" in capsys.readouterr().err


def test_readme_takes_the_newest_results(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.analyse.results.DIRECTORY", tmp_path)
    results_file(tmp_path / "z.json", "2026-01-01T00:00:00+00:00", 111.0)
    results_file(tmp_path / "a.json", "2026-01-02T00:00:00+00:00", 222.0)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    assert command.main(["readme", "--readme", str(readme)]) == 0
    assert "| 222 |" in readme.read_text()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "other"}', '{"format": "fastdps-bench", "format_version": 9}']
)
def test_files_that_hold_no_results_are_refused(tmp_path, content, capsys):
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    path.write_text(content)
    readme.write_text(f"{BEGIN}{END}")
    assert command.main(["readme", "--json", str(path), "--readme", str(readme)]) == 1
    assert str(path) in capsys.readouterr().err
