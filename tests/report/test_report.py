"""`fastdps report`: what pages say, what they say of what is missing, and that names from data stay names."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.harness.measure import Measurement
from fastdps.commands.cli import main
from fastdps.report.contexts_part import reading
from fastdps.report.reading import read_run
from helpers.made_up_results import results, write
from helpers.made_up_runs import NAMES, judged, make_run, step, write_log, write_metric
from helpers.pages import HOSTILE, Page


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def page_of(run, *options) -> Page:
    assert report(run, *options) == 0
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_a_page_says_what_the_scores_say(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    page = page_of(run)
    summary = json.loads((run / "scores.json").read_text())["summary"]
    before, after = summary["baseline_accuracy"], summary["adapted_accuracy"]
    assert f"{before:.3f} \N{RIGHTWARDS ARROW} {after:.3f}" in page.text
    assert f"{100 * summary['improved_fraction']:.1f} % of 24" in page.text
    assert "0.700 \N{RIGHTWARDS ARROW} 0.690" in page.text  # of people, and the change
    assert "\N{MINUS SIGN}0.010" in page.text
    assert "missing" not in [attributes.get("class") for _, attributes in page.elements]
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"


def test_a_page_has_every_context_once_in_its_table_and_in_its_scatter(tmp_path):
    run = make_run(tmp_path / "run")
    contexts = json.loads((run / "scores.json").read_text())["contexts"]
    page = page_of(run)
    for context in contexts:
        ranking = " < ".join(context["ranking"])
        title = f"{ranking}: {context['baseline_accuracy']:.3f} before, {context['adapted_accuracy']:.3f} after"
        assert page.texts.count(title) == 1
        assert page.texts.count(ranking) >= 1
    assert sum(attributes.get("class") in ("better", "worse") for attributes in page.all("circle")) == len(contexts)


def test_a_page_shows_intervals_and_how_to_read_pairs(tmp_path):
    run = make_run(tmp_path / "run")
    page = page_of(run)
    contexts = json.loads((run / "scores.json").read_text())["contexts"]
    assert page.texts.count("\N{PLUS-MINUS SIGN} 0.020") == len(contexts)
    assert "over the 140 images" in page.text
    pairs = json.loads((run / "details.json").read_text())["pairs"]
    pairs[7] |= {"adapted_accuracy": 0.125, "baseline_accuracy": 0.2}
    found = f"row {pairs[7]['closer']}, column {pairs[7]['farther']} stands for the 12 contexts"
    assert found in reading(pairs)
    assert "in 12 % of the choices after adapting (\N{MINUS SIGN}8 points)" in reading(pairs)
    assert reading([]) is None


def test_runs_that_an_earlier_version_scored_have_a_page_without_what_it_did_not_record(tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("scores.json", "details.json"):
        content = json.loads((run / name).read_text())
        content.pop("legend", None)
        for entry in (*content.get("contexts", ()), *content.get("examples", ()), content.get("summary") or {}):
            entry.pop("intervals", None), entry.pop("right", None)
        (run / name).write_text(json.dumps(content))
    page = page_of(run)
    assert len(page.all("img")) == 3
    assert not {"The distortions", "Corrected by adapting"} & set(page.texts)
    assert "\N{PLUS-MINUS SIGN}" not in page.text


def test_a_page_carries_its_scores_and_a_table_of_its_contents(tmp_path):
    run = make_run(tmp_path / "run")
    page = page_of(run)
    scores = json.loads((run / "scores.json").read_text())
    assert {key: page.data[key] for key in scores} == scores
    links = [link["href"] for link in page.all("a") if link["href"] != "#main"]
    assert links == [f"#{heading['id']}" for heading in page.all("h2")]
    assert len(set(links)) == len(links) > 8


def test_a_page_loads_nothing_and_runs_no_script_but_its_own(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    assert page.scripts == 1
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or value.startswith(("data:", "#"))
            assert "url(" not in (value or "")


def test_charts_and_pictures_have_descriptions(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    charts = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(charts) == 8  # scatter, three heat maps, three curves, layers
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in charts)
    assert len(page.all("img")) == 3 + 3 + 7  # an error, a correction, the legend
    assert len({image["alt"] for image in page.all("img")}) == 13


def test_names_from_data_stay_text(tmp_path):
    names = [HOSTILE, *NAMES[1:]]
    run = make_run(tmp_path / "run", [names, names[::-1]], backbone=HOSTILE, recipe=HOSTILE)
    config = json.loads((run / "config.json").read_text())
    config["data"]["shards"] = config["machine"]["platform"] = HOSTILE
    config["config"][HOSTILE] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    scores = json.loads((run / "scores.json").read_text())
    scores["bapps"]["2afc"][HOSTILE] = scores["bapps"]["2afc"].pop("cnn")
    (run / "scores.json").write_text(json.dumps(scores))
    write_metric(run / "metric.safetensors", np.ones((2, 1152)), [names, names[::-1]], taps=json.dumps([HOSTILE] * 5))
    measured = Measurement(HOSTILE, HOSTILE, (1.0, 2.0))
    page = page_of(run, "--bench", write(tmp_path / "bench.json", results([measured])))
    plain = page_of(make_run(tmp_path / "plain", [list(NAMES), list(NAMES[::-1])]))
    assert page.text.count(HOSTILE) > 20
    assert page.scripts == 1
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert {key for _, attributes in page.elements for key in attributes} <= {
        key for _, attributes in plain.elements for key in attributes
    }


def test_a_hostile_directory_name_stays_text_in_all_pages(tmp_path):
    name = "<b onclick=x>'\"&"
    runs = [make_run(tmp_path / directory, scored=False, bapps=False) for directory in (name, "other")]
    page = page_of(runs[0])
    assert name in page.text
    assert "'\"'\"'" in page.text  # in a command it is quoted for the shell
    assert report(*runs, "--out", tmp_path / "c.html") == 0
    comparison = Page((tmp_path / "c.html").read_text(encoding="utf-8"))
    assert name in comparison.text
    assert not {attributes.get("onclick") for _, attributes in comparison.elements + page.elements} - {None}


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ({"scored": False}, "fastdps evaluate {run} --shards HELD_OUT"),
        (
            {"examples": False},
            "No examples have been recorded. To record some: fastdps evaluate {run} --shards HELD_OUT",
        ),
        ({"bapps": False}, "fastdps evaluate {run} --bapps BAPPS"),
        ({"scored": False, "bapps": False}, "The contexts have not been scored."),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_fills_it(tmp_path, missing, says):
    run = make_run(tmp_path / "run", **missing)
    assert says.format(run=run) in page_of(run).text


def test_held_out_images_beside_the_training_images_are_named(tmp_path):
    run = make_run(tmp_path / "run", scored=False)
    (tmp_path / "data/val").mkdir(parents=True)
    assert f"fastdps evaluate {run} --shards {tmp_path / 'data/val'}" in page_of(run).text


def test_a_training_that_has_not_ended(tmp_path):
    run = make_run(tmp_path / "run", scored=False, bapps=False)
    (run / "metric.safetensors").unlink()
    write_log(run, [step(20, loss=0.5, accuracy=0.6)])
    page = page_of(run)
    again = f"fastdps train --resume {run}"
    assert f"There is no metric yet. To finish the training: {again}" in page.text
    assert f"The training has not ended. To resume it: {again}" in page.text
    (run / "log.jsonl").unlink()
    assert f"There is no training log. To train, or to resume: {again}" in page_of(run).text


def test_a_run_adapted_to_judgements_has_no_contexts_to_show(tmp_path):
    run = make_run(tmp_path / "run", [], scored=False)
    page = page_of(run)
    assert "adapted to human judgements" in page.text
    assert "Hardest contexts" not in page.text
    assert "2AFC traditional 4,720" in page.text
    assert "adapted to judgements" in page.texts


def test_runs_with_a_backbone_for_each_context(tmp_path):
    rankings = [list(NAMES), list(NAMES[::-1])]
    run = make_run(tmp_path / "run", rankings, variant="tune", validation=False)
    (run / "metric.safetensors").unlink()
    for number, ranking in enumerate(rankings):
        write_metric(run / "metrics" / f"{number:03d}.safetensors", np.full((1, 1152), number + 1.0), [ranking])
    log = [step(n, loss=1 / n, accuracy=0.7, context=c) for c in (0, 1) for n in (20, 40)]
    log += [{"event": "validation", "epoch": 1, "step": 40, "accuracies": [0.7], "context": c} for c in (0, 1)]
    write_log(run, log)
    page = page_of(run)
    assert {"context 0", "context 1", "context 0, validation"} <= set(page.texts)
    shares = read_run(run).layers().shares
    assert shares == pytest.approx(np.tile(np.array([64, 192, 384, 256, 256]) / 1152, (2, 1)))


def test_an_untrained_run(tmp_path):
    run = make_run(tmp_path / "run", variant="baseline")
    (run / "log.jsonl").unlink()
    assert "Nothing was trained: this run holds the unadapted metric." in page_of(run).text


def test_shares_of_layers_are_those_of_the_file(tmp_path):
    run = make_run(tmp_path / "run")
    weights = load_file(run / "metric.safetensors")["weights"]
    layers = read_run(run).layers()
    assert layers.names[0] == "layer 1"
    assert layers.shares[3, 0] == pytest.approx(weights[3, :64].sum() / weights[3].sum())
    assert layers.shares.sum(axis=1) == pytest.approx(np.ones(24))


def test_a_comparison_of_two_kinds_has_its_layers_twice(tmp_path):
    run = make_run(tmp_path / "run", [list(NAMES)])
    channels = json.dumps([1, 2, 3, 4])
    kinds = {"comparison": "spatial+mean", "channels": channels, "taps": "[4, 7]"}
    write_metric(run / "metric.safetensors", np.ones((1, 10)), [list(NAMES)], **kinds)
    layers = read_run(run).layers()
    assert layers.names == ["layer 4, spatial", "layer 7, spatial", "layer 4, mean", "layer 7, mean"]
    assert layers.shares.tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4])]


def test_results_of_the_bench_are_shown_by_stage(tmp_path):
    rows = [
        Measurement("load", "raw 64 px", (1000.0, 1010.0, 1020.0)),
        Measurement("startup", "--help", (0.0378,), "s"),
    ]
    page = page_of(make_run(tmp_path / "run"), "--bench", write(tmp_path / "bench.json", results(rows)))
    assert "load raw 64 px 1,010 images/s" in page.text
    assert "startup --help 0.0378 s" in page.text
    assert "Model X, 4 cores" in page.text


def test_a_comparison_shows_both_runs_and_what_differs(tmp_path, capsys):
    a = make_run(tmp_path / "a", learning_rate=0.01)
    b = make_run(tmp_path / "b", learning_rate=0.02, seed=1)
    assert report(a, b, "--out", tmp_path / "c.html") == 0
    page = Page((tmp_path / "c.html").read_text(encoding="utf-8"))
    for run in (a, b):
        summary = json.loads((run / "scores.json").read_text())["summary"]
        assert f"{summary['baseline_accuracy']:.3f}" in page.texts
        assert f"{summary['adapted_accuracy']:.3f}" in page.texts
    assert "setting a b learning_rate 0.01 0.02 Settings that are the same" in page.text
    assert "cannot be compared directly" not in page.text
    assert capsys.readouterr().out == f"{tmp_path / 'c.html'}\n"


def test_a_comparison_says_which_runs_are_not_scored_and_that_others_do_not_compare(tmp_path):
    a = make_run(tmp_path / "a", scored=False, bapps=False)
    b = make_run(tmp_path / "b", [list(NAMES)], bapps=False)
    assert report(a, b, "--out", tmp_path / "c.html") == 0
    page = Page((tmp_path / "c.html").read_text(encoding="utf-8"))
    assert f"fastdps evaluate {a} --shards HELD_OUT" in page.text
    assert f"fastdps evaluate {b}" not in page.text
    assert "cannot be compared directly" in page.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "scores.json").write_text("{"), "scores.json cannot be read as JSON"),
        (lambda run: (run / "scores.json").write_text("[]"), "scores.json is damaged: the content must be an"),
        (
            lambda run: (run / "config.json").write_text("[" * 50_000),
            "config.json cannot be read as JSON: it is",
        ),
        (lambda run: change(run, "details.json", pairs=[{}]), "details.json is damaged: pairs[0].closer is missing"),
        (lambda run: change(run, "config.json", rankings=[]), "scores.json holds the scores of another run"),
        (lambda run: write_metric(run / "metric.safetensors", np.ones((1, 1152)), [NAMES[::-1]]), "of another run"),
        (lambda run: (run / "config.json").unlink(), "is not a run"),
        (lambda run: (run / "log.jsonl").write_text("{}\n"), "log.jsonl is damaged"),
        (lambda run: (run / "metric.safetensors").write_bytes(b"x"), "cannot be read as a metric"),
        (lambda run: picture_from(run, "../../secret.png"), "names a picture '../../secret.png'"),
        (lambda run: picture_from(run, "/etc/passwd"), "names a picture '/etc/passwd'"),
    ],
)
def test_damaged_runs_are_errors(tmp_path, capsys, damage, message):
    run = make_run(tmp_path / "run")
    damage(run)
    assert report(run) == 1
    assert message in capsys.readouterr().err


def change(run, name: str, **values) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | values))


def test_an_incomplete_last_line_of_the_log_is_ignored(tmp_path):
    """A run that is training may be read while it writes the line."""
    run = make_run(tmp_path / "run")
    before = read_run(run).log
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert read_run(run).log == before
    assert report(run) == 0


def picture_from(run, name: str) -> None:
    details = json.loads((run / "details.json").read_text())
    details["examples"][0]["wrong"][0]["reference"] = name
    (run / "details.json").write_text(json.dumps(details))


def test_a_picture_that_is_gone_is_no_error(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "examples/0-7.png").unlink()
    page = page_of(run)
    assert "(picture missing)" in page.text
    assert len(page.all("img")) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bench", "nothing.json"], "nothing.json does not exist"),
        (["--out", "{directory}"], "is a directory"),
        (["--out", "{directory}/no/page.html"], "cannot be written"),
    ],
)
def test_bad_options_are_errors(tmp_path, capsys, options, message):
    run = make_run(tmp_path / "run")
    assert report(run, *(option.format(directory=tmp_path) for option in options)) == 1
    assert message in capsys.readouterr().err


def test_what_is_no_result_of_the_bench_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (tmp_path / "other.json").write_text(json.dumps({"bapps": judged(1)}))
    assert report(run, "--bench", tmp_path / "other.json") == 1
    assert "does not hold results of the bench" in capsys.readouterr().err
    assert report(run, make_run(tmp_path / "b"), "--bench", tmp_path / "other.json") == 1
    assert "--bench goes with one run" in capsys.readouterr().err


def test_quiet_and_open(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = make_run(tmp_path / "run")
    assert report(run, "--open", "--quiet") == 0
    assert opened == [(run / "report.html").as_uri()]
    assert capsys.readouterr() == ("", "")
