"""Results files, and the tables of the READMEs made from one."""

from __future__ import annotations

import pytest

import bench.__main__ as command
from bench.analyse.tables import BEGIN, END, SUMMARY_BEGIN, SUMMARY_END
from bench.harness.measure import Compared, Measurement
from helpers.made_up_results import results, write


def results_file(path, date, median):
    usual = Compared("the usual way", (150.0,))
    rows = [
        Measurement("load", "raw 64 px", (median,), limit=Compared("DALI", (2 * median,))),
        Measurement("load", "a detail", (1.0,), headline=False),
        Measurement("train", "lin, 1 context", (300.0,), usual=usual, triplets_per_image=15),
        Measurement("train", "lin, 24 contexts", (280.0,)),
        Measurement("startup", "help", (0.25,), unit="s", limit=Compared("Python", (0.05,))),
        Measurement("memory", "train", (1500.0,), unit="MiB", limit=Compared("imports", (750.0,))),
    ]
    write(path, results(rows, date=date))


@pytest.fixture
def files(tmp_path):
    """The two files with markers, and the options that name them."""
    readme, table = tmp_path / "README.md", tmp_path / "bench.md"
    readme.write_bytes(f"# Title\r\n\r\n{SUMMARY_BEGIN}\nold\n{SUMMARY_END}\n\ntail without an end".encode())
    table.write_bytes(f"# Bench\r\n{BEGIN}old{END}".encode())
    return readme, table, ["--readme", str(readme), "--table", str(table)]


HEAD = [
    "",
    "Model X, 4 cores; Python 3.12.1, torch 2.14.1; commit 012345678, 2026-01-02.",
    "",
    "| stage | what | images/s | limit | share |",
    "|---|---|---:|---:|---:|",
    "| load | raw 64 px | 123,456 | DALI: 246,912 | 50% |",
    "| train | lin, 1 context (30 x the usual way) | 300 |  |  |",
]


def test_tables_go_between_the_markers_and_nowhere_else(tmp_path, files):
    readme, table, options = files
    path = tmp_path / "r.json"
    results_file(path, "2026-01-02T03:04:05+00:00", 123456.0)
    arguments = ["readme", "--json", str(path), *options]
    assert command.main(arguments) == 0
    written = readme.read_bytes().decode(), table.read_bytes().decode()
    before, _, rest = written[0].partition(SUMMARY_BEGIN)
    rows, _, after = rest.partition(SUMMARY_END)
    assert (before, after) == ("# Title\r\n\r\n", "\n\ntail without an end")
    assert rows.splitlines() == HEAD
    before, _, rest = written[1].partition(BEGIN)
    rows, _, after = rest.partition(END)
    assert (before, after) == ("# Bench\r\n", "")
    assert rows.splitlines() == [
        *HEAD,
        "| train | lin, 24 contexts | 280 |  |  |",
        "| startup | help | 0.25 s | Python: 0.05 s | 20% |",
        "| memory | train | 1,500 MiB | imports: 750 MiB | 50% |",
    ]
    assert command.main(arguments) == 0
    assert (readme.read_bytes().decode(), table.read_bytes().decode()) == written


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("order", ["", "{1} {0}", "{0} {0} {1}"])
def test_without_its_markers_neither_file_changes(tmp_path, files, order, damaged, capsys):
    path = tmp_path / "r.json"
    results_file(path, "2026-01-02T03:04:05+00:00", 1.0)
    markers = [(SUMMARY_BEGIN, SUMMARY_END), (BEGIN, END)][damaged]
    files[damaged].write_text(f"text {order.format(*markers)}")
    before = [file.read_bytes() for file in files[:2]]
    assert command.main(["readme", "--json", str(path), *files[2]]) == 1
    assert [file.read_bytes() for file in files[:2]] == before
    assert "once each" in capsys.readouterr().err


def test_results_without_the_rows_of_the_summary_are_refused(tmp_path, files, capsys):
    path = tmp_path / "r.json"
    write(path, results([Measurement("startup", "help", (0.25,), unit="s")], date="2026-01-02T03:04:05+00:00"))
    before = [file.read_bytes() for file in files[:2]]
    assert command.main(["readme", "--json", str(path), *files[2]]) == 1
    assert [file.read_bytes() for file in files[:2]] == before
    assert "Measure load and train" in capsys.readouterr().err


def test_readme_takes_the_newest_results(tmp_path, files, monkeypatch):
    monkeypatch.setattr("bench.analyse.results.DIRECTORY", tmp_path)
    results_file(tmp_path / "z.json", "2026-01-01T00:00:00+00:00", 111.0)
    results_file(tmp_path / "a.json", "2026-01-02T00:00:00+00:00", 222.0)
    assert command.main(["readme", *files[2]]) == 0
    assert "| 222 |" in files[0].read_text()
    assert "| 222 |" in files[1].read_text()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "other"}', '{"format": "fastdps-bench", "format_version": 9}']
)
def test_files_that_hold_no_results_are_refused(tmp_path, files, content, capsys):
    path = tmp_path / "r.json"
    path.write_text(content)
    assert command.main(["readme", "--json", str(path), *files[2]]) == 1
    assert str(path) in capsys.readouterr().err
