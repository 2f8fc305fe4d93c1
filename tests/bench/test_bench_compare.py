"""`bench compare`: changes, noise, and warnings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import bench.__main__ as command
from bench.analyse.compare import Change, Value, compare
from bench.harness.measure import Compared, Measurement
from helpers.made_up_results import results, write

SAMPLES = (100.0, 101.0, 102.0, 103.0, 104.0)


def row(what="a", samples=SAMPLES, factor=1.0, **options):
    return Measurement("load", what, tuple(factor * sample for sample in samples), **options)


def verdicts(before, after, **options):
    return {change.key[1]: change.verdict for change in compare(before, after, **options).changes}


def test_a_file_did_not_move_against_itself(tmp_path, capsys):
    path = write(tmp_path / "a.json", results([row(), row("b", (3.0,)), row("c", unit="s")]))
    assert command.main(["compare", str(path), str(path), "--fail-on-regression"]) == 0
    shown = capsys.readouterr().out
    assert "0 rows better, 0 worse, 3 within the noise." in shown
    assert "warning" not in shown


@pytest.mark.parametrize(("unit", "slower"), [("images/s", 0.7), ("s", 1.4), ("MiB", 1.4)])
def test_a_regression_fails_if_asked_to(tmp_path, unit, slower, capsys):
    before = write(tmp_path / "a.json", results([row(unit=unit), row("b", unit=unit)]))
    after = write(tmp_path / "b.json", results([row(unit=unit, factor=slower), row("b", unit=unit)]))
    assert command.main(["compare", str(before), str(after)]) == 0
    shown = capsys.readouterr().out
    assert "0 rows better, 1 worse, 1 within the noise." in shown
    assert f"{slower - 1:+.0%}" in shown
    assert command.main(["compare", str(before), str(after), "--fail-on-regression"]) == 1
    assert "1 of 2 rows became worse beyond the noise: load, a." in capsys.readouterr().err
    assert command.main(["compare", str(after), str(before), "--fail-on-regression"]) == 0
    assert "1 rows better, 0 worse" in capsys.readouterr().out


def test_rows_that_did_not_move_are_shown_if_asked_for(tmp_path, capsys):
    path = str(write(tmp_path / "a.json", results([row("quiet")])))
    assert command.main(["compare", path, path]) == 0
    assert "quiet" not in capsys.readouterr().out
    assert command.main(["compare", path, path, "--all"]) == 0
    assert "quiet" in capsys.readouterr().out


def test_wide_quartiles_and_small_changes_are_noise():
    wide = (60.0, 80.0, 100.0, 120.0, 140.0)  # its quartiles are 40 % of the median apart
    tight = (99.9, 100.0, 100.1)
    before = results([row("wide", wide), row("tight", tight)])
    assert verdicts(before, results([row("wide", wide, 1.7), row("tight", tight, 1.04)])) == {
        "wide": "same",
        "tight": "same",
    }
    assert verdicts(before, results([row("wide", wide, 1.9), row("tight", tight, 1.06)])) == {
        "wide": "better",
        "tight": "better",
    }
    after = results([row("wide", wide), row("tight", tight, 1.04)])
    assert verdicts(before, after, floor=0.03) == {"wide": "same", "tight": "better"}


def test_few_samples_need_a_larger_change():
    before, after = results([row(samples=(100.0,))]), results([row(samples=(115.0,))])
    assert verdicts(before, after) == {"a": "same"}
    assert verdicts(before, results([row(samples=(125.0,))])) == {"a": "better"}


def test_the_rule_is_symmetric_and_what_moved_has_disjoint_quartiles():
    generator = np.random.default_rng(0)
    opposite = {"better": "worse", "worse": "better", "same": "same"}
    seen = set()
    for _ in range(300):
        values = []
        for _ in range(2):
            low, median, high = np.percentile(generator.normal(generator.uniform(80, 120), 5, size=5), [25, 50, 75])
            values.append(Value(median, low, high, 5))
        change = Change(("a", "b"), "images/s", *values)
        assert Change(("a", "b"), "images/s", *values[::-1]).verdict == opposite[change.verdict]
        if change.verdict != "same":
            assert values[0].high < values[1].low or values[1].high < values[0].low
        seen.add(change.verdict)
    assert seen == set(opposite)


def test_false_alarms_are_as_rare_as_the_readme_says():
    """Five samples per run of one normal distribution, with a standard deviation of 2 and 10 % of the mean."""
    generator = np.random.default_rng(0)
    for spread, at_most in ((0.02, 0.002), (0.1, 0.07)):
        quartiles = np.percentile(1 + spread * generator.normal(size=(2, 4000, 5)), [25, 50, 75], axis=-1)
        moved = 0
        for one, other in zip(*np.moveaxis(quartiles, 0, -1), strict=True):
            before, after = (Value(median, low, high, 5) for low, median, high in (one, other))
            moved += Change(("a", "b"), "images/s", before, after).verdict != "same"
        assert moved / 4000 < at_most


def test_rows_of_one_file_are_named(tmp_path, capsys):
    before, after = results([row("both"), row("old")]), results([row("both"), row("new")])
    comparison = compare(before, after)
    assert comparison.only_before == [("load", "old")]
    assert comparison.only_after == [("load", "new")]
    paths = [str(write(tmp_path / f"{n}.json", content)) for n, content in enumerate((before, after))]
    assert command.main(["compare", *paths]) == 0
    shown = capsys.readouterr().out
    assert "only in A: load, old" in shown
    assert "only in B: load, new" in shown


def test_files_without_a_common_row_are_refused(tmp_path, capsys):
    paths = [str(write(tmp_path / f"{name}.json", results([row(name)]))) for name in "ab"]
    assert command.main(["compare", *paths]) == 1
    assert "no row that can be compared by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"cpu": "Model Y"}, "machine differ: cpu was Model X and is Model Y"),
        ({"gpu": "Big"}, "machine differ: gpu was None and is Big"),
        ({"torch": "3.0"}, "versions differ: torch was 2.14.1 and is 3.0"),
        ({"quick": True}, "settings differ: quick was False and is True"),
        ({"load_average": 3.0}, "the machine was busy before the second run: load average 3.0"),
    ],
)
def test_what_makes_it_doubtful_is_a_warning(tmp_path, changes, warning, capsys):
    before, after = results([row()]), results([row()], **changes)
    assert compare(before, before).warnings == []
    found = compare(before, after).warnings
    assert found[0] == warning
    assert any("--by share" in text for text in found) == ("machine differ" in warning)
    paths = [str(write(tmp_path / f"{n}.json", content)) for n, content in enumerate((before, after))]
    assert command.main(["compare", *paths]) == 0
    assert f"warning: {warning}" in capsys.readouterr().out


def test_shares_say_what_rates_of_two_machines_cannot():
    """The second machine is twice as fast, and the code has lost half of its share in one row."""
    limits = [Compared("copying", tuple(factor * 2 * sample for sample in SAMPLES)) for factor in (1, 2)]
    before = results([row("kept", limit=limits[0]), row("lost", limit=limits[0]), row("bare")])
    after = results([row("kept", factor=2, limit=limits[1]), row("lost", limit=limits[1]), row("bare")], cpu="Model Y")
    assert verdicts(before, after) == {"kept": "better", "lost": "same", "bare": "same"}
    assert verdicts(before, after, by="share") == {"kept": "same", "lost": "worse"}
    assert compare(before, after, by="share").incomparable == {("load", "bare"): "it has no limit"}


def test_shares_of_different_limits_do_not_compare():
    before, after = (results([row(limit=Compared(name, SAMPLES))]) for name in ("copying", "adding"))
    comparison = compare(before, after, by="share")
    assert comparison.incomparable == {("load", "a"): "its limit was copying and is adding"}
    assert not comparison.changes
    assert [change.key for change in compare(before, after).changes] == [("load", "a")]


def test_every_verdict_is_counted_once():
    rows = [row(name, factor=factor) for name, factor in (("a", 1), ("b", 2), ("c", 0.5))]
    comparison = compare(results([row("a"), row("b"), row("c")]), results(rows))
    assert [len(comparison.of(verdict)) for verdict in ("same", "better", "worse")] == [1, 1, 1]
    keys = itertools.chain(*(comparison.of(verdict) for verdict in ("same", "better", "worse")))
    assert [change.key[1] for change in keys] == ["a", "b", "c"]
