"""The tables of a set: their entries in the manifest, damage, deterministic bytes, and bounded reading."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdps.errors import ShardError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.shards import tables
from fastdps.shards.format import COMPONENTS, JUDGEMENTS, SAMPLES, component_extensions, read_manifest
from fastdps.shards.judgements import JudgementTable, read_judgements, read_names, samples_bytes
from fastdps.shards.parquet_footer import codecs
from fastdps.shards.tables import GROUP_ROWS, Texts, parquet_bytes
from helpers.judgement_files import random_rows, write_csv, write_images
from helpers.servers import web_server

IMAGES, ROWS = 20, 60


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    write_images(root, IMAGES)
    path = write_csv(root / "a.csv", random_rows(ROWS, IMAGES))
    pack(open_source("judgements", path, by="person"), root / "out", PackOptions(size=8), workers=1)
    return root / "out/train"


@pytest.fixture
def judged(packed, tmp_path):
    """A copy of a judgement set of 60 judgements of 20 images."""
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(directory, change):
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_table(directory, name, table, **options):
    """Write a table with pyarrow, and its size and checksum to the manifest."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "none", **options})
    content = sink.getvalue().to_pybytes()
    (directory / name).write_bytes(content)
    entry = {"rows": table.num_rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(directory, lambda manifest: manifest["tables"].update({name: entry}))


# ---- the manifest ----


def test_a_judgement_set_has_the_components_of_an_image_set():
    assert COMPONENTS["judgements"] == COMPONENTS["images"] == ("image",)
    for encoding in ("raw", "jpeg", "png", "keep"):
        assert component_extensions("judgements", encoding) == component_extensions("images", encoding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": 3}, "tables is 3, not an object"),
        ({"tables": []}, r"tables is \[\], not an object"),
        ({"tables": {}}, "tables lacks samples.parquet, judgements.parquet"),
        ({"kind": "images"}, r"tables has \['judgements.parquet'\], and a set of images may have samples.parquet"),
        ({"format_version": 1}, r"unknown keys \['tables'\]"),
        ({"format_version": 3}, "format version 3, but this fastdps reads 1 to 2; update fastdps"),
        ({"format_version": 0}, "format version 0"),
    ],
)
def test_invalid_tables_are_rejected(judged, change, message):
    rewrite(judged, lambda content: content.update(change))
    with pytest.raises(ShardError, match=message):
        read_manifest(judged)


def test_version_1_has_no_judgement_sets_and_version_2_has_tables(judged):
    def to_version_1(content):
        content["format_version"] = 1
        del content["tables"]

    rewrite(judged, to_version_1)
    with pytest.raises(ShardError, match="unknown kind 'judgements'"):
        read_manifest(judged)
    rewrite(judged, lambda content: content.update(format_version=2))
    with pytest.raises(ShardError, match=r"keys \['tables'\] are missing"):
        read_manifest(judged)


@pytest.mark.parametrize("name", [SAMPLES, JUDGEMENTS])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (3, "is 3, not an object"),
        ({"rows": True}, "rows of .* is True, not within"),
        ({"rows": -1}, "rows of .* is -1, not within"),
        ({"rows": 10**12}, "rows of .* is 1000000000000, not within"),
        ({"bytes": 5.0}, r"bytes of .* is 5\.0, not within"),
        ({"bytes": 1 << 50}, "bytes of .* is 1125899906842624, not within"),
        ({"sha256": "x" * 64}, "sha256 of .* is 'x+', not 64 hexadecimal"),
        ({"sha256": "0" * 63}, "sha256 of .* not 64 hexadecimal"),
        ({"sha256": 1}, "sha256 of .* is 1, not 64"),
        ({"colour": 1}, r"unknown keys \['colour'\] of"),
        ({"DROP": "bytes"}, r"keys \['bytes'\] of .* are missing"),
    ],
)
def test_each_value_of_a_table_is_checked(judged, name, change, message):
    def apply(content):
        if isinstance(change, int):
            content["tables"][name] = change
            return
        entry = content["tables"][name]
        entry.update(change)
        if dropped := entry.pop("DROP", None):
            del entry[dropped]

    rewrite(judged, apply)
    with pytest.raises(ShardError, match=rf"manifest\.json is not a manifest.*{message}"):
        read_manifest(judged)


def test_there_is_a_name_for_each_sample(judged):
    rewrite(judged, lambda content: content["tables"][SAMPLES].update(rows=19))
    with pytest.raises(ShardError, match=r"rows of samples\.parquet is 19, and the set has 20 samples"):
        read_manifest(judged)


def test_unknown_tables_are_rejected(judged):
    rewrite(judged, lambda content: content["tables"].update({"../x.parquet": content["tables"][SAMPLES]}))
    with pytest.raises(ShardError, match=r"tables has \['\.\./x\.parquet'\]"):
        read_manifest(judged)


# ---- damage ----


def damaged(judged, name):
    """Read a table, and return the error."""
    with pytest.raises(ShardError) as found:
        (read_names if name == SAMPLES else read_judgements)(judged)
    assert name in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("name", [SAMPLES, JUDGEMENTS])
def test_damaged_files_are_named(judged, name):
    content = (judged / name).read_bytes()
    (judged / name).write_bytes(content[:-1])
    assert "the manifest says" in damaged(judged, name)
    (judged / name).write_bytes(content + b"x")
    assert "the manifest says" in damaged(judged, name)
    (judged / name).write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    assert "does not have the checksum of the manifest" in damaged(judged, name)
    (judged / name).unlink()
    assert "cannot be read: No such file" in damaged(judged, name)


def columns_of(judged):
    return pq.read_table(judged / JUDGEMENTS).to_pydict()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ref", 999, "row 4 has a sample id as ref that is not in the set"),
        ("a", -1, "row 4 has a sample id as a that is not in the set"),
        ("votes_a", -1.0, "row 4 has votes that are negative, NaN or infinite"),
        ("votes_b", float("nan"), "row 4 has votes that are negative, NaN or infinite"),
        ("votes_b", float("inf"), "row 4 has votes that are negative, NaN or infinite"),
        ("row", 0, "row 4 has an invalid line number"),
    ],
)
def test_a_bad_judgement_is_named_by_its_row(judged, column, value, message):
    columns = columns_of(judged)
    columns[column][3] = value
    replace_table(judged, JUDGEMENTS, pa.table(columns))
    assert message in damaged(judged, JUDGEMENTS)
    assert "fastdps pack judgements" in damaged(judged, JUDGEMENTS)


def test_judgements_without_votes_or_of_the_same_image_are_errors(judged):
    columns = columns_of(judged)
    columns["votes_a"][7] = columns["votes_b"][7] = 0.0
    replace_table(judged, JUDGEMENTS, pa.table(columns))
    assert "row 8 has no votes" in damaged(judged, JUDGEMENTS)
    columns["votes_a"][7] = 1.0
    columns["b"][5] = columns["ref"][5]
    replace_table(judged, JUDGEMENTS, pa.table(columns))
    assert "row 6 names an image twice" in damaged(judged, JUDGEMENTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["votes_a"]), "lacks the column votes_a"),
        (lambda t: t.set_column(0, "ref", t["ref"].cast(pa.float64())), "has double in the column ref, expected int64"),
        (lambda t: t.set_column(5, "judge", t["row"]), "has int64 in the column judge, expected string"),
        (
            lambda t: t.set_column(6, "row", pa.array([None] * len(t), pa.int64())),
            "has 60 rows without row",
        ),
    ],
)
def test_another_schema_is_an_error(judged, change, message):
    replace_table(judged, JUDGEMENTS, change(pq.read_table(judged / JUDGEMENTS)))
    assert message in damaged(judged, JUDGEMENTS)


def test_other_rows_than_the_manifest_says_are_an_error(judged):
    rewrite(judged, lambda content: content["tables"][JUDGEMENTS].update(rows=59))
    assert "has 60 rows, and the manifest says 59" in damaged(judged, JUDGEMENTS)


def test_compressed_tables_are_refused_before_they_are_decoded(judged):
    """A few bytes could become gigabytes. Tables are written without compression."""
    table = pa.table({"id": pa.array(range(20)), "name": pa.array(["x" * 1_000_000] * 20)})
    replace_table(judged, SAMPLES, table, compression="zstd", use_dictionary=False)
    assert "is compressed, and tables of shard sets are not" in damaged(judged, SAMPLES)


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd"])
def test_the_codecs_of_a_footer_are_those_that_pyarrow_reads(codec):
    numbers = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "ZSTD": 6}
    table = pa.table({"a": pa.array([1, None, 3] * 50), "b": [["x", "y"]] * 150, "c": [{"d": 1.5, "e": True}] * 150})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=codec, row_group_size=40)
    metadata = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    columns = [metadata.row_group(g).column(c) for g in range(4) for c in range(metadata.num_columns)]
    assert codecs(sink.getvalue().to_pybytes()) == {numbers[column.compression] for column in columns}


@pytest.mark.parametrize("ids", [[5, *range(1, 20)], [0, *range(19)], [-1, *range(1, 20)]])
def test_ids_that_do_not_ascend_are_an_error(judged, ids):
    replace_table(judged, SAMPLES, pa.table({"id": ids, "name": [str(n) for n in range(20)]}))
    assert "ids that do not ascend" in damaged(judged, SAMPLES)


def test_other_kinds_have_no_judgements(judged, tmp_path):
    write_images(tmp_path / "in", 3)
    pack(open_source("folder", tmp_path / "in"), tmp_path / "out", PackOptions(size=8), workers=1)
    with pytest.raises(ShardError, match=r"is a set of images, without judgements\..*fastdps pack judgements"):
        read_judgements(tmp_path / "out/train")


# ---- reading by URL ----


def test_tables_are_read_from_a_web_server(judged):
    with web_server(judged) as port:
        url = f"http://127.0.0.1:{port}"
        found, expected = read_judgements(url), read_judgements(judged)
        for field in dataclasses.fields(JudgementTable):
            assert np.array_equal(getattr(found, field.name), getattr(expected, field.name))
        assert read_names(url) == read_names(judged)
        content = (judged / JUDGEMENTS).read_bytes()
        (judged / JUDGEMENTS).write_bytes(content[::-1])
        assert "checksum" in damaged_at(url)
        (judged / JUDGEMENTS).unlink()
        assert "does not exist" in damaged_at(url)


def damaged_at(url):
    with pytest.raises(ShardError) as found:
        read_judgements(url)
    return str(found.value)


# ---- bytes ----


def test_names_are_read_back_as_pyarrow_reads_them(tmp_path):
    names = ["a/\u00fc.png", "b c.png", "", "x" * 1000, "\n"]
    (tmp_path / "t").write_bytes(samples_bytes(np.array([0, 3, 4, 7, 9]), names))
    table = pq.read_table(tmp_path / "t")
    assert table.to_pydict() == {"id": [0, 3, 4, 7, 9], "name": names}
    assert [(field.type, field.nullable) for field in table.schema] == [(pa.int64(), False), (pa.string(), False)]


def test_a_table_of_several_row_groups_is_read_whole(tmp_path):
    n = GROUP_ROWS + 5
    judge = Texts(np.arange(n) % 3 - 1, ("x", "y"))
    (tmp_path / "t").write_bytes(
        parquet_bytes({"row": np.arange(n), "judge": judge}, {"row": "int64", "judge": "text?"})
    )
    assert pq.read_metadata(tmp_path / "t").num_row_groups == 2
    table = pq.read_table(tmp_path / "t")
    assert table["row"].to_pylist() == list(range(n))
    assert table["judge"].to_pylist() == judge.to_list()
    assert table["judge"].to_pylist()[:3] == [None, "x", "y"]


def test_the_reader_joins_row_groups_with_different_judges(judged, monkeypatch):
    expected = read_judgements(judged)
    which = np.argsort(expected.judge, kind="stable")
    monkeypatch.setattr(tables, "GROUP_ROWS", 7)
    content = expected.select(which).to_bytes()
    (judged / JUDGEMENTS).write_bytes(content)
    entry = {"rows": ROWS, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(judged, lambda manifest: manifest["tables"].update({JUDGEMENTS: entry}))
    assert pq.read_metadata(judged / JUDGEMENTS).num_row_groups == 9
    found = read_judgements(judged)
    for field in dataclasses.fields(JudgementTable):
        if field.name != "judges":
            assert np.array_equal(getattr(found, field.name), getattr(expected, field.name)[which])
    assert found.judges == expected.judges


def test_tables_store_no_metadata_that_could_differ(packed):
    for name in (SAMPLES, JUDGEMENTS):
        assert pq.read_metadata(packed / name).metadata is None


def test_the_same_content_gives_the_same_bytes(packed):
    table = read_judgements(packed)
    assert table.to_bytes() == table.to_bytes() == (packed / JUDGEMENTS).read_bytes()
    assert table.select(np.arange(len(table))).to_bytes() == table.to_bytes()
    assert table.select(np.arange(len(table))[::-1]).to_bytes() != table.to_bytes()


def test_an_empty_table_is_a_table(tmp_path, packed):
    empty = read_judgements(packed).select(np.zeros(ROWS, bool))
    (tmp_path / "t").write_bytes(empty.to_bytes())
    assert pq.read_table(tmp_path / "t").num_rows == 0
