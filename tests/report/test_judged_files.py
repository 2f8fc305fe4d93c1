"""Files of runs on judgement sets as a report reads them: hostile names, links, and files of other runs."""

import json

import numpy as np
import pytest

from fastdps.commands.cli import main
from fastdps.errors import FastDPSError
from fastdps.report.reading import read_run
from fastdps.report.write import report as write_report
from helpers.made_up_judges import make_judged_run, write_judged
from helpers.made_up_runs import step, write_log, write_metric
from helpers.pages import HOSTILE, Page


def page_of(run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def change(run, name: str, **values) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("heads", "message"),
    [(["pooled", "a"], "weights, rankings and taps do not fit"), (["a", "b", "c"], "is the metric of another run")],
)
def test_the_metric_of_another_run_is_an_error(tmp_path, capsys, heads, message):
    run = make_judged_run(tmp_path / "run", ["a", "b"])
    write_metric(run / "metric.safetensors", np.ones((3, 1152)), [], judges=json.dumps(heads))
    assert main(["report", str(run)]) == 1
    assert message in capsys.readouterr().err


def test_backbones_of_judges_are_shown_once_all_are_trained(tmp_path):
    run = make_judged_run(tmp_path / "run", ["a", "b"], variant="tune")
    (run / "metric.safetensors").unlink()
    for number, name in enumerate(["pooled", "a", "b"]):
        assert read_run(run).layers() is None
        write_metric(run / f"metrics/{number:03d}.safetensors", np.ones((1, 1152)), [], judges=json.dumps([name]))
    assert read_run(run).layers().shares.shape == (3, 5)
    write_log(run, [step(n, loss=1 / n, accuracy=0.7, context=0) for n in (20, 40)])
    page = page_of(run)
    assert "context 0" in page.texts
    assert "judge b" in page.texts
    write_metric(run / "metrics/002.safetensors", np.ones((1, 1152)), [], judges='["c"]')
    with pytest.raises(FastDPSError, match="metric of another run"):
        read_run(run).layers()


def test_names_of_judges_and_files_stay_text(tmp_path):
    hostile = [HOSTILE, "</text></svg><b>", "'\"`onload=x", "a\x00b\x1b[31m", "\u202eevil", "x" * 400, ""]
    plain = page_of(make_judged_run(tmp_path / "plain", list("abcdefg")))
    page = page_of(make_judged_run(tmp_path / "run", hostile, names=(HOSTILE, "../../../x", f"{HOSTILE}/{HOSTILE}")))
    assert page.text.count(HOSTILE) > 5
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert page.scripts == len(page.all("style")) == 1
    allowed = {key for _, attributes in plain.elements for key in attributes}
    assert {key for _, attributes in page.elements for key in attributes} <= allowed
    assert len(page.elements) == len(plain.elements)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "a b.png", "x.svg"])
def test_names_of_pictures_outside_their_directory_are_refused(tmp_path, capsys, name):
    run = make_judged_run(tmp_path / "run")
    content = json.loads((run / "judged.json").read_text())
    content["examples"][0]["closer"]["file"] = name
    (run / "judged.json").write_text(json.dumps(content))
    assert main(["report", str(run)]) == 1
    assert f"names a picture '{name}'" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["1.png", ""])
def test_links_to_pictures_are_refused(tmp_path, capsys, what):
    run = make_judged_run(tmp_path / "run")
    path = run / "judged" / what if what else run / "judged"
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    assert main(["report", str(run)]) == 1
    assert "is a link" in capsys.readouterr().err


def test_examples_of_another_evaluation_or_format_are_not_shown(tmp_path):
    run = make_judged_run(tmp_path / "run")
    assert read_run(run).judged is not None
    write_judged(run, ("a", "b", "c"), [], sha256="00" * 32)
    assert read_run(run).judged is None
    write_judged(run, ("a", "b", "c"), [])
    change(run, "judged.json", format_version=99)
    assert read_run(run).judged is None
    change(run, "judged.json", format_version=1, examples=[{}])
    assert main(["report", str(run)]) == 1
