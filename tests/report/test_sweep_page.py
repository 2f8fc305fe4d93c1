"""The page of a sweep: scores of all cases, means by setting, links that lead somewhere, and unfinished sweeps."""

import json
from statistics import fmean
from urllib.parse import unquote

import pytest

from fastdps.commands.cli import main
from fastdps.evaluation.run_scores import read_scores
from fastdps.evaluation.sweep import SweepResult, summarize, write_table
from fastdps.report.sweep_page import is_sweep, read_sweep
from fastdps.run_directory import RunDirectory
from helpers.made_up_runs import make_run, make_sweep
from helpers.pages import Page


def page_of(sweep) -> Page:
    assert main(["report", str(sweep)]) == 0
    return Page((sweep / "report.html").read_text(encoding="utf-8"))


def test_cases_are_sorted_and_lead_to_their_pages(tmp_path, capsys):
    sweep = make_sweep(tmp_path / "sweep")
    page = page_of(sweep)
    assert capsys.readouterr().out == f"{sweep / 'report.html'}\n"
    links = [unquote(link["href"]) for link in page.all("a") if not link["href"].startswith("#")]
    assert len(links) == 4
    after = []
    for link in links:
        case = (sweep / link).parent
        assert case.name in (sweep / link).read_text(encoding="utf-8")
        after.append(json.loads((case / "scores.json").read_text())["summary"]["adapted_accuracy"])
    assert after == sorted(after, reverse=True)
    assert [row["after"] for row in page.data["cases"]] == after
    assert "sweep of 4 cases over comparison, learning_rate" in page.text


def test_means_by_setting_are_those_of_the_cases(tmp_path):
    page = page_of(make_sweep(tmp_path / "sweep"))
    rows = page.data["cases"]
    for key in ("comparison", "learning_rate"):
        for value in {row["settings"][key] for row in rows}:
            of_value = [row for row in rows if row["settings"][key] == value]
            means = [fmean(row[name] for row in of_value) for name in ("before", "after", "worst")]
            assert f"{value} 2 " + " ".join(f"{mean:.3f}" for mean in means) in page.text


def test_the_summary_is_that_of_the_file(tmp_path):
    sweep = make_sweep(tmp_path / "sweep")
    scores = {case.name: read_scores(RunDirectory(case)) for case in sorted((sweep / "cases").iterdir())}
    result = SweepResult(scores, summarize(scores))
    write_table(sweep, result.scores, result.summary)
    mean = result.summary["adapted_accuracy"]
    assert f"{mean['mean']:.3f} 95 %: {mean['low']:.3f} to {mean['high']:.3f}" in page_of(sweep).text


def test_a_sweep_that_has_not_ended_says_so(tmp_path):
    sweep = make_sweep(tmp_path / "sweep")
    (sweep / "sweep.json").unlink()
    first = min((sweep / "cases").iterdir())
    (first / "scores.json").unlink()
    page = page_of(sweep)
    assert "The sweep has not ended" in page.text
    assert f"fastdps evaluate {first}" in page.text
    assert [row["after"] for row in page.data["cases"]][-1] is None


@pytest.mark.parametrize(("option", "value"), [("--out", "page.html"), ("--bench", "bench.json")])
def test_options_that_a_sweep_does_not_take_are_refused(tmp_path, capsys, option, value):
    sweep = make_sweep(tmp_path / "sweep", cases=1)
    assert main(["report", str(sweep), option, value]) == 1
    assert "takes neither --out nor --bench" in capsys.readouterr().err


def test_what_is_no_sweep_is_an_error(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "cases").mkdir()
    assert not is_sweep(run)
    (tmp_path / "empty/cases").mkdir(parents=True)
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "is a sweep without cases" in capsys.readouterr().err
    sweep = make_sweep(tmp_path / "sweep", cases=1)
    assert list(read_sweep(sweep).cases) == ["learning_rate=0.01,comparison=spatial"]
    (sweep / "sweep.json").write_text('{"summary": []}')
    assert main(["report", str(sweep)]) == 1
    assert "sweep.json is damaged" in capsys.readouterr().err
