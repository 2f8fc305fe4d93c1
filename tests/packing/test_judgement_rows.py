"""Judgement sets: the splits of a holdout, and rows that give no judgement."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdps.commands.make_shards import make_shards
from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.shards.format import read_manifest
from fastdps.shards.judgements import read_judgements
from helpers.judgement_files import (
    HEADER,
    assert_same,
    expected_of,
    judgements_of,
    names_of,
    random_rows,
    write_csv,
    write_images,
)
from helpers.packed import read_lines

IMAGES, ROWS = 40, 300


def options(**changes):
    return PackOptions(**{"size": 8, "samples_per_shard": 7, **changes})


@pytest.fixture
def source(tmp_path) -> Path:
    write_images(tmp_path / "in", IMAGES)
    return write_csv(tmp_path / "in/judged.csv", random_rows(ROWS, IMAGES))


def judged(source):
    return open_source("judgements", source, by="person", holdout_by="row")


# ---- splits ----


def parts_of(out):
    return {split: judgements_of(out / split) for split in ("train", "val")}


def images_of(rows):
    return {row[role] for row in rows for role in ("ref", "a", "b")}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_holdout_by_image_leaves_no_image_on_both_sides(tmp_path, source, capsys, seed):
    pack(open_source("judgements", source), tmp_path / "out", options(holdout=0.4, seed=seed), workers=1)
    parts, expected = parts_of(tmp_path / "out"), expected_of(source)
    assert not images_of(parts["train"]) & images_of(parts["val"])
    for split, rows in parts.items():
        assert set(names_of(tmp_path / "out" / split).values()) == images_of(rows)
        for row in rows:
            assert_same(row, expected[row["row"]])
    used = {row["row"] for rows in parts.values() for row in rows}
    for row in set(expected) - used:  # what is left out could be in neither
        images = images_of([expected[row]])
        assert images & images_of(parts["train"]) | (images - images_of(parts["val"]))
        assert not images <= images_of(parts["train"])
        assert not images <= images_of(parts["val"])
    counts = read_manifest(tmp_path / "out/val").source
    assert counts["rows"] == ROWS == len(used) + counts["left_out_rows"]
    assert counts["left_out_rows"] > 0


def test_a_holdout_by_row_divides_the_rows(tmp_path, source):
    result = pack(judged(source), tmp_path / "out", options(holdout=0.3), workers=1)
    parts = parts_of(tmp_path / "out")
    rows = [sorted(row["row"] for row in parts[split]) for split in ("train", "val")]
    assert [len(numbers) for numbers in rows] == [210, 90]
    assert sorted(rows[0] + rows[1]) == sorted(expected_of(source))
    assert {m.source["left_out_rows"] for m in result.manifests.values()} == {0}


def test_a_holdout_by_judge_divides_the_judges(tmp_path, source):
    file = open_source("judgements", source, by="person", holdout_by="judge")
    pack(file, tmp_path / "out", options(holdout=0.4), workers=1)
    judges = {split: {row["judge"] for row in rows} for split, rows in parts_of(tmp_path / "out").items()}
    assert [len(judges[split]) for split in ("train", "val")] == [2, 1]
    assert not judges["train"] & judges["val"]
    assert read_judgements(tmp_path / "out/val").judges == tuple(judges["val"])
    assert sum(len(rows) for rows in parts_of(tmp_path / "out").values()) == ROWS


def test_the_command_prints_what_is_left_out(tmp_path, source, capsys):
    command = ["judgements", "--source", str(source), "--out", str(tmp_path / "out"), "--size", "8"]
    assert make_shards([*command, "--holdout", "0.4", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    left_out = read_manifest(tmp_path / "out/val").source["left_out_rows"]
    assert f"{left_out} rows have images of both splits and are in neither" in out
    assert f"judgements, from a file of {ROWS} rows" in out


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"holdout_by": "judge"}, {"holdout": 0.5}, "--holdout-by judge needs --by COLUMN"),
        ({"holdout_by": "judge", "by": "person"}, {"holdout": 0.01}, "0.01 by judge leaves val without judgements"),
        ({"holdout_by": "row"}, {"holdout": 0.001}, "0.001 by row leaves val without"),
        ({}, {"holdout": 0.05}, "0.05 by image leaves val without judgements.*divide by row"),
        ({"by": "persn"}, {}, r"has no column 'persn'.*Did you mean 'person'\?"),
        ({"by": "judge"}, {}, "judge is a part of the judgement"),
        ({"by": "votes"}, {}, "votes is a part of the judgement"),
        ({"holdout_by": "person"}, {}, "must be one of image, row, judge"),
    ],
)
def test_settings_that_cannot_be_met_are_errors(tmp_path, source, settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        pack(open_source("judgements", source, **settings), tmp_path / "out", options(**changes), workers=1)
    assert not list(tmp_path.glob("out/*/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judgements", "--holdout-by", "row"], "--holdout-by says what --holdout divides"),
        (["folder", "--by", "person"], "folder takes no --by"),
        (["folder", "--holdout", "0.5", "--holdout-by", "row"], "folder takes no --holdout-by"),
    ],
)
def test_options_that_cannot_be_combined_are_errors(tmp_path, source, capsys, arguments, message):
    assert make_shards([*arguments, "--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


# ---- rejected rows ----

GOOD = ["images/000.png", "images/001.png", "images/002.png", "0.5", "2", "p"]
BAD = {
    "judge": [("", "judge is missing"), ("1.5", "not a share of votes"), ("-0.1", "not a share"),
              ("nan", "not a share"), ("yes", "judge is 'yes', not a number")],
    "votes": [("", "votes is missing"), ("0", "not a number of votes of at least 1"), ("inf", "not a number of votes"),
              ("nan", "not a number of votes"), ("many", "votes is 'many', not a number")],
    "ref": [("", "ref is missing"), ("  ", "not the path of an image"), ("images/001.png", "ref and p0 are the same"),
            ("./images/002.png", "ref and p1 are the same"), ("a\0b", "not the path of an image")],
    "p1": [("images/x/../001.png", "p0 and p1 are the same")],
    "person": [("", "person is missing")],
}  # fmt: skip


@pytest.mark.parametrize(("column", "value", "reason"), [(c, *each) for c, found in BAD.items() for each in found])
def test_a_bad_row_is_named_by_its_line_and_left_out(tmp_path, column, value, reason):
    write_images(tmp_path, 3)
    bad = [value if name == column else cell for name, cell in zip(HEADER, GOOD, strict=True)]
    path = write_csv(tmp_path / "judged.csv", [GOOD, bad, GOOD])
    source = open_source("judgements", path, by="person")
    with pytest.raises(FastDPSError, match=r"1 of 3 rows were rejected and at most 0 may be: line 3: ") as found:
        pack(source, tmp_path / "out", options(), workers=1)
    assert reason in str(found.value)
    assert not list(tmp_path.glob("out/train/*.tar"))  # before any image is packed
    assert read_lines(tmp_path / "out/train/rejected_rows.jsonl")[0]["row"] == 3
    result = pack(source, tmp_path / "out", options(max_rejects=0.4), workers=1)
    (rejected,) = read_lines(tmp_path / "out/train/rejected_rows.jsonl")
    assert rejected["row"] == 3
    assert reason in rejected["reason"]
    assert [row["row"] for row in judgements_of(tmp_path / "out/train")] == [2, 4]
    assert result.manifests["train"].source["rejected_rows"] == 1


def test_rows_with_missing_or_further_cells_are_bad_rows(tmp_path):
    write_images(tmp_path, 3)
    text = "ref,p0,p1,judge\n{0}\n\n{0},7\nimages/000.png,images/001.png\n{0}\n".format(",".join(GOOD[:4]))
    (tmp_path / "judged.csv").write_text(text)
    pack(open_source("judgements", tmp_path / "judged.csv"), tmp_path / "out", options(max_rejects=0.5), workers=1)
    rejected = read_lines(tmp_path / "out/train/rejected_rows.jsonl")
    assert [row["row"] for row in rejected] == [4, 5]
    assert rejected[0]["reason"] == "has 5 cells, and the first line names 4 columns"
    assert [row["row"] for row in judgements_of(tmp_path / "out/train")] == [2, 6]


def test_quoted_cells_may_have_line_breaks_and_rows_are_named_by_their_first_line(tmp_path):
    write_images(tmp_path, 3)
    row = ",".join(GOOD[:4])
    (tmp_path / "judged.csv").write_text(f'ref,p0,p1,judge,why\n{row},"two\nlines"\n{row},-\n', newline="\r\n")
    pack(open_source("judgements", tmp_path / "judged.csv"), tmp_path / "out", options(), workers=1)
    assert [row["row"] for row in judgements_of(tmp_path / "out/train")] == [2, 4]


def test_rows_are_lost_and_listed_with_a_rejected_image(tmp_path, source, capsys):
    (tmp_path / "in/images/005.png").write_bytes(b"not an image")
    (tmp_path / "in/images/006.png").unlink()
    expected = expected_of(source)
    lost = {r for r, row in expected.items() if images_of([row]) & {"images/005.png", "images/006.png"}}
    with pytest.raises(FastDPSError, match=rf"{len(lost)} of {ROWS} rows were rejected and at most 15 may be: line "):
        pack(open_source("judgements", source), tmp_path / "out", options(max_rejects=0.05), workers=1)
    listed = read_lines(tmp_path / "out/train/rejected_rows.jsonl")
    assert {row["row"] for row in listed} == lost
    assert not (tmp_path / "out/train/manifest.json").exists()
    result = pack(open_source("judgements", source), tmp_path / "out", options(max_rejects=0.3), workers=1)
    assert read_lines(tmp_path / "out/train/rejected_rows.jsonl") == listed
    assert {row["reason"].partition(" was rejected: ")[0] for row in listed} == {
        "its image images/005.png", "its image images/006.png",
    }  # fmt: skip
    assert {row["row"] for row in judgements_of(tmp_path / "out/train")} == set(expected) - lost
    assert result.manifests["train"].source["result"]["lost_rows"] == len(lost)
    assert len(names_of(tmp_path / "out/train")) == IMAGES - 2
    command = ["judgements", "--source", str(source), "--out", str(tmp_path / "out"), "--size", "8"]
    assert make_shards([*command, "--samples-per-shard", "7", "--max-rejects", "0.3"]) == 0
    assert f"{len(lost)} rows were rejected, {len(lost)} of them with an image: see" in capsys.readouterr().out


def test_the_limit_counts_the_rows_of_both_splits(tmp_path, source):
    (tmp_path / "in/images/005.png").unlink()
    lost = [row for row in expected_of(source).values() if "images/005.png" in images_of([row])]
    with pytest.raises(FastDPSError, match=rf"{len(lost)} of {ROWS} rows were rejected"):
        pack(judged(source), tmp_path / "out", options(holdout=0.5, max_rejects=(len(lost) - 1) / ROWS), workers=1)
    pack(judged(source), tmp_path / "out", options(holdout=0.5, max_rejects=len(lost) / ROWS), workers=1)


def test_the_numbers_add_up_over_all_that_can_happen_to_a_row(tmp_path, source):
    """Rows that are bad, left out, lost with an image and packed: each row is in one of these."""
    lines = source.read_text().splitlines()
    lines[10] = lines[10].replace("images/", "", 1).partition(",")[2]  # a cell less
    source.write_text("\n".join(lines) + "\n")
    (tmp_path / "in/images/007.png").unlink()
    file = open_source("judgements", source)
    result = pack(file, tmp_path / "out", options(holdout=0.4, max_rejects=0.5), workers=1)
    sources = [manifest.source for manifest in result.manifests.values()]
    assert {source["rejected_rows"] for source in sources} == {1}
    packed, lost = (sum(source["result"][key] for source in sources) for key in ("judgements", "lost_rows"))
    assert 1 + sources[0]["left_out_rows"] + packed + lost == ROWS
    listed = {
        row["row"] for split in ("train", "val") for row in read_lines(tmp_path / "out" / split / "rejected_rows.jsonl")
    }
    assert len(listed) == 1 + lost
    assert not listed & {row["row"] for rows in parts_of(tmp_path / "out").values() for row in rows}
