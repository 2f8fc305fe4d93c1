"""Reports of runs on judgement sets: agreement with people, how heads were fitted, and judgements shown as pictures."""

import json
import math
import re

import numpy as np
import pytest

from fastdps.report.agreement import EACH_END, MOST, change_sentence, own_head_sentences
from fastdps.report.judge_charts import NAME_COLUMNS, IntervalRow, Mark, interval_rows, shorten
from fastdps.report.reading import read_run
from fastdps.report.write import report as write_report
from helpers.made_up_judges import fit_log, interval, judge_scores, make_judged_run, write_judged
from helpers.made_up_runs import NAMES, make_run, write_log
from helpers.pages import Page

PEOPLE = [f"person-{number:02d}" for number in range(16)]


def page_of(run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def change(run, name: str, **values) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | values))


def rows_of(page: Page) -> list[str]:
    """Return the names of the judges in the chart, from top to bottom."""
    titles = [re.match(r"(.*), before adaptation: ", text) for text in page.texts]
    return [title[1] for title in titles if title]


def test_a_page_says_what_was_adapted_and_what_the_scores_say(tmp_path):
    page = page_of(make_judged_run(tmp_path / "run", PEOPLE))
    assert "adapted to the judgements of 16 judges" in page.text
    assert "agrees with 78.0 % of the votes on 300 triplets; before adaptation it agreed with 72.0 %" in page.text
    assert "It gained 6.0 percentage points. With 95 % confidence the gain is between 4.0 and 8.0." in page.text
    assert "no metric can agree with more than 85.0 % of these votes" in page.text
    assert "agrees with the majority in 83.0 %; before adaptation in 77.0 %" in page.text
    assert (
        "A single vote agrees with the majority of its triplet in 83.0 %. 12 triplets without a majority" in page.text
    )
    assert "missing" not in [attributes.get("class") for _, attributes in page.elements]


def test_votes_of_single_people_have_no_majority_and_no_ceiling(tmp_path):
    page = page_of(make_judged_run(tmp_path / "run", PEOPLE, votes=1))
    assert "majority of its triplet" not in page.text
    assert "no metric can agree" not in page.text
    assert not [attributes for _, attributes in page.elements if attributes.get("class") == "ceiling"]


def test_hardly_any_repeated_votes_are_not_shown_as_majorities(tmp_path):
    run = make_judged_run(tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    scores["pooled"]["votes"]["ceiling"] = 0.998
    change(run, "scores.json", judgements=scores)
    assert "majority of its triplet" not in page_of(run).text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.05, "It gained 3.0 percentage points. With 95 % confidence the gain is between 1.0 and 5.0."),
        (-0.05, -0.01, "It lost 3.0 percentage points. With 95 % confidence the loss is between 1.0 and 5.0."),
        (
            -0.01,
            0.07,
            "The change of +3.0 percentage points may be chance: with 95 % confidence it is between \N{MINUS SIGN}1.0",
        ),
        (0.0, 0.06, "The change of +3.0 percentage points may be chance: with 95 % confidence it is between 0.0"),
    ],
)
def test_a_change_is_called_chance_unless_its_interval_excludes_zero(low, high, expected):
    sentence = change_sentence({"value": (low + high) / 2, "low": low, "high": high})
    assert " ".join(sentence.split()).startswith(expected)


def test_own_heads_are_compared_with_the_pooled_head_over_judges():
    from scipy.stats import ttest_1samp

    gains = np.random.default_rng(0).normal(0.02, 0.01, 12)
    judges = {f"{n}": judge_scores(0.6, 0.7, 0.7 + gain) for n, gain in enumerate(gains)}
    low, high = 100 * np.array(ttest_1samp(gains, 0).confidence_interval(0.95))
    (sentence,) = own_head_sentences(judges, set(judges))
    assert f"{100 * gains.mean():.1f} percentage points more of the judge's votes than the pooled head" in sentence
    assert f"interval +{low:.1f} to +{high:.1f})" in sentence
    assert f"better for {(gains > 0).sum()} of them and worse for {(gains < 0).sum()}" in sentence
    (worse,) = own_head_sentences({n: judge_scores(0.6, 0.7, 0.68 + 0.01 * int(n)) for n in "01"}, {"0", "1"})
    assert "1.5 percentage points fewer" in worse
    assert "which may be chance" in worse
    assert own_head_sentences(judges, set()) == []  # judges without a head of their own are not counted
    assert "for one judge" in own_head_sentences(judges, {"3"})[0]


@pytest.mark.parametrize("count", [0, 1, 16, MOST, MOST + 1, 200])
def test_the_chart_has_the_judges_by_gain_and_says_how_many_it_leaves_out(tmp_path, count):
    names = [f"judge {number}" for number in range(count)]
    run = make_judged_run(tmp_path / "run", names)
    scores = json.loads((run / "scores.json").read_text())["judgements"]["judges"]
    by_gain = sorted(names, key=lambda name: -scores[name]["votes"]["change"]["value"])
    page = page_of(run)
    shown, hidden = by_gain, 0
    if count > MOST:
        shown, hidden = by_gain[:EACH_END] + by_gain[-EACH_END:], count - 2 * EACH_END
    assert rows_of(page) == ["all together", *shown]
    assert (f"{hidden} judges not shown" in page.texts) == bool(hidden)
    in_table = [text for text in page.texts if re.fullmatch(r"judge \d+", text)]
    assert set(in_table) == set(names)
    assert len(page.all("details")) == bool(names)


def test_marks_lie_at_their_values_within_the_chart():
    marks = [Mark("before", 60, 58, 62, "a"), Mark("own", 66, 64, 68, "b")]
    chart = str(interval_rows([IntervalRow("one", marks, 72.0), IntervalRow("far", marks, 100.0)], "x", "text"))
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    lines = re.findall(r'class="interval" x1="([\d.]+)" x2="([\d.]+)"', chart)
    ends = [[float(x) for x in line] for line in lines]
    assert centres[:2] == centres[2:]
    scale = (centres[1] - centres[0]) / 6
    assert ends[0] == pytest.approx([centres[0] - 2 * scale, centres[0] + 2 * scale], abs=0.2)
    (ceiling,) = re.findall(r'class="ceiling" x1="([\d.]+)"', chart)
    assert float(ceiling) == pytest.approx(centres[0] + 12 * scale, abs=0.2)
    assert chart.count("<polygon") == 1  # a far ceiling is an arrow: it would squeeze the values
    assert all(0 <= x <= 360 for line in ends for x in line)


def test_names_are_cut_by_their_width():
    assert shorten("person-01") == "person-01"
    assert shorten("x" * 50) == "x" * (NAME_COLUMNS - 1) + "…"
    assert (
        shorten("日" * 50) == "日" * (NAME_COLUMNS // 2 - 1) + "…" or len(shorten("日" * 50)) <= NAME_COLUMNS // 2 + 1
    )
    assert shorten("\u202egnp.exe") == "gnp.exe"


def test_calibration_has_a_dot_for_each_bin(tmp_path):
    run = make_judged_run(tmp_path / "run")
    page = page_of(run)
    bins = json.loads((run / "scores.json").read_text())["judgements"]["calibration"]
    for one in bins:
        text = f"predicted {100 * one['predicted']:.1f} %, observed {100 * one['observed']:.1f} %, 400 votes"
        assert page.texts.count(text) == 1
    assert "mean error 2.0 points" in page.text
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    change(run, "scores.json", judgements=scores | {"calibration": []})
    assert "Calibration" not in page_of(run).text


def test_how_the_heads_were_fitted(tmp_path):
    page = page_of(make_judged_run(tmp_path / "run", PEOPLE))
    assert "Pooled head: loss on held-out judgements; strength 0.1 chosen" in page.texts
    assert "Heads of judges: loss on held-out judgements; strength 1 chosen" in page.texts
    assert {"0.1: 0.6400, chosen", "1: 0.6500", "∞: 0.6600"} <= set(page.texts)
    assert "features of 90 images and moments of their pairs 3.2 s" in page.text
    assert "fit: 355 passes over 18,241 judgements 9.2 s" in page.text
    assert "moments kept in memory" in page.text


def test_a_given_strength_and_losses_that_are_nan(tmp_path):
    run = make_judged_run(tmp_path / "run")
    *fit, end = fit_log(own_heads=False)
    write_log(run, [*fit, end | {"pooled": {"strength": "3", "held_out_loss": {}}}])
    assert "The strength of the pull is 3; it was not chosen by cross-validation." in page_of(run).text
    write_log(run, [*fit, end | {"pooled": {"strength": "1", "held_out_loss": {"inf": math.nan, "1": 0.5}}}])
    page = page_of(run)
    assert "1: 0.5000, chosen" in page.texts
    assert not [text for text in page.texts if text.startswith("∞:")]


def test_layers_of_the_pooled_head_and_of_the_judges_that_gain_the_most(tmp_path):
    run = make_judged_run(tmp_path / "run", PEOPLE)
    assert read_run(run).layers().shares.shape == (17, 5)
    scores = json.loads((run / "scores.json").read_text())["judgements"]["judges"]
    best = max(PEOPLE, key=lambda name: scores[name]["votes"]["after"]["value"])
    page = page_of(run)
    assert {"unadapted: equal channel weights", "pooled: all judges together", f"judge {best}"} <= set(page.texts)
    assert sum(text.startswith("judge person-") for text in page.texts) == 3


def test_wrong_judgements_are_shown_with_votes_names_and_distances(tmp_path):
    run = make_judged_run(tmp_path / "run", ["anna"], names=("images/chrome.jpg", "wood.jpg", "brass.jpg"))
    page = page_of(run)
    assert [image["alt"] for image in page.all("img")] == [
        "reference: images/chrome.jpg",
        "people choose: wood.jpg",
        "metric chooses: brass.jpg",
        "reference: images/chrome.jpg",
        "people choose: wood.jpg",
        "before adapting, the metric chose: brass.jpg",
    ]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert "3,007 triplets have a clear majority" in page.text
    assert "contradicts 221 of these majorities" in page.text
    assert "3 of 4 votes for the blue image, by anna . The metric gives the orange image 91 %." in page.text
    assert "blue 3.5, orange 1.25; before adaptation 1.5 and 2.5, which was right." in page.text
    assert "agrees with 57 of the clear majorities that the unadapted one contradicts." in page.text
    assert "The metric gives the blue image 91 %." in page.text


def test_parts_that_are_missing_are_named_with_the_command(tmp_path):
    bare = make_judged_run(tmp_path / "bare", PEOPLE, scored=False, epochs=10)
    for name in ("log.jsonl", "metric.safetensors"):
        (bare / name).unlink()
    page = page_of(bare)
    assert f"fastdps evaluate {bare} --judgements HELD_OUT" in page.text
    assert page.text.count(f"fastdps train --resume {bare}") == 3
    (tmp_path / "set/val").mkdir(parents=True)
    without = make_judged_run(tmp_path / "without", PEOPLE, examples=False)
    page = page_of(without)
    assert f"No examples have been recorded. To record some: fastdps evaluate {without} --judgements" in page.text
    assert f"--judgements {tmp_path}/set/val" in page.text
    (without / "judged").mkdir()
    write_judged(without, ("a", "b", "c"), [])
    (without / "judged/1.png").unlink()
    assert "(picture missing)" in page_of(without).text


def test_the_training_set_as_the_test_is_called_that(tmp_path):
    run = make_judged_run(tmp_path / "run", sha256="ab" * 32)
    assert "These are the judgements that the run was adapted to." in page_of(run).text
    assert "These are the judgements that" not in page_of(make_judged_run(tmp_path / "other")).text


def test_the_command_to_resume_names_the_run_alone(tmp_path):
    run = make_judged_run(tmp_path / "my run", ["a", "b"], by="p")
    assert read_run(run).train_command == f"fastdps train --resume '{run}'"


def test_a_run_on_triplets_that_was_fitted_has_the_commands_of_triplets(tmp_path):
    run = make_judged_run(tmp_path / "run", scored=False)
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = {"name": "bapps"}
    (run / "config.json").write_text(json.dumps(config))
    record, page = read_run(run), page_of(run)
    assert record.train_command == f"fastdps train --resume {run}"
    assert f"fastdps evaluate {run} --bapps BAPPS" in page.text
    assert "--judgements" not in page.text
    assert "; adapted to human judgements" in page.text
    assert "strength 0.1 chosen" in page.text


def test_a_run_on_contexts_can_be_scored_on_judgements(tmp_path):
    run = make_run(tmp_path / "run", [list(NAMES)])
    scores = json.loads((make_judged_run(tmp_path / "judged") / "scores.json").read_text())["judgements"]
    pooled = judge_scores(0.7, 0.72)
    judges = {"anna": {**pooled, "votes": {**pooled["votes"], "after": interval(0.73)}}}
    change(run, "scores.json", judgements=scores | {"pooled": pooled, "judges": judges, "calibration": []})
    page = page_of(run)
    assert "The adapted metric agrees with 72.0 % of the votes" in page.text
    assert rows_of(page) == ["all together", "anna"]
    assert "1 context" in page.text
    assert "mean: all" in page.text  # BAPPS as well


def test_a_comparison_shows_agreement_only_on_one_set(tmp_path, capsys):
    a, b = (make_judged_run(tmp_path / name, ["x"] * (name == "b")) for name in "ab")
    other = make_judged_run(tmp_path / "other", sha256="12" * 32)
    unscored = make_judged_run(tmp_path / "unscored", scored=False)

    def compare(*runs):
        return Page(write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8"))

    both = compare(a, b)
    assert "a 72.0 % 78.0 % 76.0 to 80.0 +6.0 +4.0 to +8.0 85.0 % 77.0 % 83.0 %" in both.text
    assert "Not compared" not in both.text
    all_runs = compare(a, other, b, unscored)
    assert "Not compared, because no other run was scored on the same judgement set: other (sha256 12" in all_runs.text
    assert "b 72.0 % 78.0 %" in all_runs.text
    assert "other 72.0 %" not in all_runs.text
    assert f"fastdps evaluate {unscored} --judgements HELD_OUT" in all_runs.text
    different = compare(a, other)
    assert "72.0 %" not in different.text
    assert "Not compared" in different.text
    plain = compare(make_run(tmp_path / "c"), make_run(tmp_path / "d"))
    assert "Agreement with judges" not in plain.text


def test_charts_have_descriptions(tmp_path):
    page = page_of(make_judged_run(tmp_path / "run", PEOPLE))
    charts = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(charts) == 5  # judges, calibration, two fits, layers
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 40 for svg in charts)


def test_a_run_of_adapt_says_what_to_expect_and_draws_its_curve(tmp_path):
    run = make_judged_run(tmp_path / "run")
    end = {
        key: value for key, value in fit_log(own_heads=False)[-1].items() if key not in ("pooled", "judges", "passes")
    }
    write_log(run, [end])
    adapted = {
        "base": "runs/base",
        "context": None,
        "base_weights": [1.0] * 1152,
        "prior": "base",
        "strength": 1.0,
        "judge_strength": None,
        "verdict": "kept",
        "forced": False,
        "judgements": 40,
        "contradicting": 3,
        "expected": {"accuracy": interval(0.75, 0.1), "base": interval(0.8, 0.1), "gain": interval(-0.05)},
        "curve": [{"judgements": 10, "accuracy": 0.7}, {"judgements": 20, "accuracy": 0.72}],
        "forecast": None,
        "judges": {},
        "message": "40 judgements: the fit does not beat the base.",
    }
    (run / "adapted.json").write_text(json.dumps(adapted))
    page = page_of(run)
    assert adapted["message"] in page.texts
    assert "fitted to 40 judgements by fastdps adapt, on the base runs/base, and the base is kept." in page.text
    assert "agree with 75.0 % (95 %: 65.0 % to 85.0 %) of new votes, and the base with 80.0 %" in page.text
    assert "3 of the judgements contradict others" in page.text
    assert "is the base, runs/base." in page.text
    assert "There is no training log" not in page.text
    assert any("70.0 with 10, 75.0 with 40; the base has 80.0" in svg.get("aria-label", "") for svg in page.all("svg"))
    (run / "adapted.json").write_text(json.dumps(adapted | {"expected": None, "curve": [], "verdict": "too few"}))
    assert "fitted to 40 judgements" in page_of(run).text
