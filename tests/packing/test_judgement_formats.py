"""The formats of judgement files: what each row means, how a file is recognised, and what is an error."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from helpers.judgement_files import HEADER, judgements_of, random_rows, write_csv, write_images
from helpers.packed import read_lines

A, B, C = (f"images/{number:03d}.png" for number in range(3))


@pytest.fixture(autouse=True)
def images(tmp_path):
    write_images(tmp_path, 10)


def packed(path, *, by=None, **changes):
    """Pack a file next to the images. Return its judgements as tuples, in order."""
    out = path.parent / "out"
    pack(open_source("judgements", path, by=by), out, PackOptions(size=8, **changes), workers=1, overwrite=True)
    keys = ("row", "ref", "a", "b", "votes_a", "votes_b", "judge")
    return [tuple(row[key] for key in keys) for row in judgements_of(out / "train")]


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rejects(tmp_path):
    return [(row["row"], row["reason"]) for row in read_lines(tmp_path / "out/train/rejected_rows.jsonl")]


# ---- the same rows in three kinds of files ----


def test_csv_jsonl_and_parquet_files_give_the_same_judgements(tmp_path):
    rows = random_rows(50, 10)
    from_csv = packed(write_csv(tmp_path / "a.csv", rows), by="person")
    numbers = [[*row[:3], float(row[3]), int(row[4]), row[5]] for row in rows]
    objects = [dict(zip(HEADER, row, strict=True)) for row in numbers]
    from_jsonl = packed(write_jsonl(tmp_path / "a.jsonl", objects), by="person")
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "a.parquet", row_group_size=7)
    from_parquet = packed(tmp_path / "a.parquet", by="person")
    assert [row[1:] for row in from_csv] == [row[1:] for row in from_jsonl] == [row[1:] for row in from_parquet]
    assert [row[0] for row in from_csv] == list(range(2, 52))  # lines: the first one is the header
    assert [row[0] for row in from_jsonl] == [row[0] for row in from_parquet] == list(range(1, 51))


def test_a_share_without_votes_is_one_vote_divided(tmp_path):
    path = write_csv(tmp_path / "a.csv", [[A, B, C, "0.3"], [B, A, C, "1"]], HEADER[:4])
    assert packed(path) == [(2, A, B, C, 0.7, 0.3, None), (3, B, A, C, 0.0, 1.0, None)]


def test_votes_multiply_the_share(tmp_path):
    path = write_csv(tmp_path / "a.csv", [[A, B, C, "0.25", "4"]], HEADER[:5])
    assert packed(path) == [(2, A, B, C, 3.0, 1.0, None)]


def test_a_judge_may_be_a_number(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"ref": A, "p0": B, "p1": C, "judge": 1, "who": 7}])
    assert packed(path, by="who")[0][-1] == "7"


def test_bad_lines_of_jsonl_are_bad_rows(tmp_path):
    good = {"ref": A, "p0": B, "p1": C, "judge": 0.5, "votes": 2}
    lines = [good, "", "{", "[1]", {**good, "judge": None}, json.dumps(good)[:-1] + ', "ref": "x"}', good, {
        key: value for key, value in good.items() if key != "votes"
    }, {**good, "ref": ["x"]}, {**good, "votes": 10**400}]  # fmt: skip
    assert [row[0] for row in packed(write_jsonl(tmp_path / "a.jsonl", lines), max_rejects=0.9)] == [1, 7]
    found = rejects(tmp_path)
    assert [row for row, _ in found] == [3, 4, 5, 6, 8, 9, 10]
    reasons = ["is not JSON", "is not a JSON object", "judge is missing", "names ref more than once",
               "votes is missing", "ref is ['x'], not the path", "votes is 1000"]  # fmt: skip
    for (_, reason), expected in zip(found, reasons, strict=True):
        assert expected in reason


def test_nulls_of_parquet_are_missing_cells(tmp_path):
    good = {"ref": A, "p0": B, "p1": C, "judge": 0.5, "votes": 2}
    rows = [good, *({**good, key: None} for key in good)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row[0] for row in packed(tmp_path / "a.parquet", max_rejects=0.9)] == [1]
    assert rejects(tmp_path) == [(number, f"{key} is missing") for number, key in enumerate(good, start=2)]


# ---- odd-one-out ----


def test_an_odd_one_out_is_two_judgements(tmp_path):
    path = write_csv(tmp_path / "a.csv", [[A, B, C, "p", "2"]], ["x", "y", "odd", "who", "votes"])
    assert packed(path, by="who") == [(2, A, B, C, 2.0, 0.0, "p"), (2, B, A, C, 2.0, 0.0, "p")]


def test_rows_of_an_odd_one_out_stay_together_in_a_holdout(tmp_path):
    rows = [row[:3] for row in random_rows(40, 10)]
    path = write_csv(tmp_path / "a.csv", rows, ["x", "y", "odd"])
    pack(open_source("judgements", path, holdout_by="row"), tmp_path / "out", PackOptions(size=8, holdout=0.25))
    found = [[row["row"] for row in judgements_of(tmp_path / "out" / split)] for split in ("train", "val")]
    assert [len(numbers) for numbers in found] == [60, 20]
    assert not set(found[0]) & set(found[1])


# ---- Salmon ----

#: The columns that Salmon 1.0 exports.
SALMON = [
    *("head", "left", "right", "winner", "sampler", "score", "puid", "response_time", "network_latency"),
    *("time_received", "loser", "left_html", "right_html", "head_html", "winner_html", "loser_html", "left_filename"),
    *("right_filename", "head_filename", "winner_filename", "loser_filename", "time_received_since_start"),
    *("datetime_received", "start_time"),
]


def salmon_row(head, left, right, winner, puid):
    files = {0: A, 1: B, 2: C}
    row = dict.fromkeys(SALMON, "0") | {"puid": puid, "sampler": "Random"}
    roles = {"head": head, "left": left, "right": right, "winner": winner, "loser": left + right - winner}
    row |= {role: str(target) for role, target in roles.items()}
    row |= {f"{role}_html": f"<img src='/static/targets/{files[target]}' />" for role, target in roles.items()}
    return row | {f"{role}_filename": files[target] for role, target in roles.items()}


ROWS = [salmon_row(0, 1, 2, 2, "ann"), salmon_row(1, 0, 2, 0, "bob")]
EXPECTED = [(2, A, C, B, 1.0, 0.0, "ann"), (3, B, A, C, 1.0, 0.0, "bob")]


@pytest.mark.parametrize(
    "without",
    [
        "nothing",
        "filename",  # the HTML names the file
        "loser",  # the winner is one of left and right
        "loser_filename",  # as in Salmon 0.5: the file of the side that lost
    ],
)
def test_responses_of_salmon(tmp_path, without):
    dropped = {
        "nothing": [],
        "loser": [name for name in SALMON if name.startswith("loser")],
        "loser_filename": ["loser_filename", "loser_html"],
        "filename": [name for name in SALMON if name.endswith("_filename")],
    }[without]
    kept = [name for name in SALMON if name not in dropped]
    path = write_csv(tmp_path / "a.csv", [[row[name] for name in kept] for row in ROWS], kept)
    assert packed(path, by="puid") == EXPECTED
    assert {row[-1] for row in packed(path)} == {None}


def test_responses_with_the_columns_of_older_versions(tmp_path):
    names = {name: name.replace("_html", "_object") for name in SALMON if not name.endswith("filename")}
    path = write_csv(tmp_path / "a.csv", [[row[name] for name in names] for row in ROWS], list(names.values()))
    assert packed(path, by="puid") == EXPECTED


def test_responses_with_paths(tmp_path):
    path = write_csv(tmp_path / "a.csv", [[A, C, B]], ["head", "winner", "loser"])
    assert packed(path) == [(2, A, C, B, 1.0, 0.0, None)]


def test_responses_with_indexes_only_say_what_is_missing(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["0", "1", "2"]], ["head", "winner", "loser"])
    with pytest.raises(FastDPSError, match="head is '0', an index; the column head_filename must name its image"):
        packed(path)


def test_responses_without_a_loser_are_bad_rows(tmp_path):
    path = write_csv(tmp_path / "a.csv", [[A, B, C, B], [A, B, C, "x"]], ["head", "left", "right", "winner"])
    assert packed(path, max_rejects=0.5) == [(2, A, B, C, 1.0, 0.0, None)]
    assert rejects(tmp_path) == [(3, "has no loser, and winner is neither left nor right")]


# ---- TPIPS ----


def tpips(*factors):
    return {"p0_path": A, "p1_path": B, "p2_path": C, "factors": list(factors)}


def test_the_factors_of_tpips_are_judges(tmp_path):
    """The label is the odd one: the other two are closer to each other than to it."""
    lines = [tpips({"name": "pose", "label": "p2", "probs": [0.0, 0.25, 0.75]}, {"name": "hue", "label": "p0"})]
    assert packed(write_jsonl(tmp_path / "a.jsonl", lines)) == [
        (1, A, B, C, 0.75, 0.25, "pose"),
        (1, B, A, C, 0.75, 0.0, "pose"),
        (1, C, A, B, 0.25, 0.0, "pose"),
        (1, B, A, C, 0.0, 1.0, "hue"),
        (1, C, A, B, 0.0, 1.0, "hue"),
    ]


def test_bad_factors_of_tpips_are_bad_rows_and_unlabelled_ones_are_counted(tmp_path):
    good = {"name": "pose", "label": "p2", "probs": [0.0, 0.25, 0.75]}
    lines = [
        tpips(good, {**good, "label": "p3"}),
        tpips({**good, "probs": [0.5, 0.5]}, {**good, "probs": [1, 1, 1]}, {**good, "probs": [True, 0, 0]}),
        tpips({**good, "label": "p0"}, {**good, "name": ""}, 3),
        {**tpips(good), "factors": "x"},
        tpips({**good, "label": None}),
        {**tpips(good), "p1_path": A},
    ]
    assert len(packed(write_jsonl(tmp_path / "a.jsonl", lines), max_rejects=0.95)) == 3
    found = rejects(tmp_path)
    assert [row for row, _ in found] == [1, 2, 2, 2, 3, 3, 3, 4, 6]
    expected = ["label is 'p3'", "probs is [0.5, 0.5]", "probs is [1, 1, 1]", "probs is [True", "label is p0, and not",
                "factor is missing", "factors has 3", "factors is not a list", "p0_path and p1_path"]  # fmt: skip
    for (_, reason), part in zip(found, expected, strict=True):
        assert part in reason
    source = json.loads((tmp_path / "out/train/manifest.json").read_text())["source"]
    assert {key: source[key] for key in ("format", "by", "rows", "rejected_rows", "unjudged_lines")} == {
        "format": "tpips", "by": "factor", "rows": 10, "rejected_rows": 9, "unjudged_lines": 1,
    }  # fmt: skip


def test_tpips_takes_no_other_judge(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [tpips({"name": "pose", "label": "p2"})])
    with pytest.raises(ConfigError, match=r"the judges of .* \(tpips\) are the values of factor; omit --by"):
        packed(path, by="p0_path")


# ---- files without judgements ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"ref,p0,p1\nx,y,z\n", r"lacks the columns judge\. It has ref, p0, p1; it must have ref, p0, p1, j"),
        ("a.csv", b"", "it is empty; its first line must name the columns, ref, p0, p1, judge"),
        ("a.csv", b"ref,p0,p1,judge\n", "lists no judgements"),
        ("a.csv", b"ref,p0,p1,judge,judge\n", "names the columns judge more than once"),
        ("a.csv", b"ref,p0,p1,judge,x,y,odd\n", "has the columns of several formats: ref, .*; x, y, odd"),
        ("a.csv", b"ref,p0,p1,judge\n\xff,y,z,1\n", "cannot be read: 'utf-8'"),
        ("a.csv", b'ref,p0,p1,judge\nx,y,z,1\n"x,y,z,1\n', "cannot be read: line 3: unexpected end of data"),
        ("a.csv", b"ref,p0,p1,judge\nx,y,z,2\nx,y,z,3\n", "lists no judgements: none of its 2 rows is valid: line 2"),
        ("a.jsonl", b"ref,p0\n", "line 1 is not JSON.*each line must be an object with ref, p0, p1, judge"),
        ("a.jsonl", b"[]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b"\n\n", "it is empty"),
        ("a.jsonl", b'{"ref": 1}\n', "lacks the columns p0, p1, judge"),
        ("a.parquet", b"PAR1 and so on", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.txt", b"ref,p0,p1,judge\n", r"must be a file \.csv, \.jsonl, \.parquet with ref"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_judgement_file_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FastDPSError, match=rf"^the source {tmp_path / name} .*{message}"):
        packed(tmp_path / name)


def test_a_missing_file_and_a_directory_are_errors(tmp_path):
    with pytest.raises(FastDPSError, match="cannot be read: No such file or directory"):
        packed(tmp_path / "nowhere.csv")
    with pytest.raises(FastDPSError, match=r"is a directory\. Give the file with the judgements, such as .*folder"):
        packed(tmp_path / "images")


def test_a_byte_order_mark_is_not_a_part_of_the_first_column(tmp_path):
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([HEADER[:4], [A, B, C, "1"]])
    assert packed(tmp_path / "a.csv") == [(2, A, B, C, 0.0, 1.0, None)]
