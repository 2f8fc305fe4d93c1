"""`check_shards` on tables: damage, ids without a name, votes out of range; notes; and `--names`."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdps.commands.check_shards import check_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from helpers.judgement_files import HEADER, names_of, random_rows, write_csv, write_images
from helpers.packed import encoded, noise, write_noise_folder

A, B, C, D = (f"images/{number:03d}.png" for number in range(4))


def pack_rows(tmp_path, rows, header=HEADER, **settings):
    path = write_csv(tmp_path / "a.csv", rows, header)
    pack(open_source("judgements", path, **settings), tmp_path / "out", PackOptions(size=8), workers=1, overwrite=True)
    return tmp_path / "out/train"


@pytest.fixture
def judged(tmp_path):
    write_images(tmp_path, 12)
    return pack_rows(tmp_path, random_rows(40, 12), by="person")


def replace_table(directory, name, columns):
    """Write a table, and its size and checksum to the manifest."""
    pq.write_table(pa.table(columns), directory / name, compression="none")
    content = (directory / name).read_bytes()
    manifest = json.loads((directory / "manifest.json").read_text())
    entry = {"rows": len(next(iter(columns.values()))), "bytes": len(content)}
    manifest["tables"][name] = {**entry, "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def problems_of(capsys, directory, *options):
    status = check_shards([str(directory), "--quiet", *options])
    out = capsys.readouterr().out.splitlines()
    assert (status == 1) == bool(out)
    return [line.removeprefix(f"{directory}/") for line in out]


def test_a_sound_judgement_set_passes(capsys, judged):
    assert problems_of(capsys, judged) == []
    assert problems_of(capsys, judged, "--quick") == []


@pytest.mark.parametrize("name", ["samples.parquet", "judgements.parquet"])
@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_damaged_and_missing_tables_are_found(capsys, judged, name, options):
    content = (judged / name).read_bytes()
    (judged / name).write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    (problem,) = problems_of(capsys, judged, *options)
    assert problem.startswith(f"{name}: ")
    assert "checksum" in problem
    (judged / name).unlink()
    (problem,) = problems_of(capsys, judged, *options)
    assert problem.startswith(f"{name}: ")
    assert "No such file" in problem


def test_a_table_that_the_manifest_does_not_list_is_found(capsys, tmp_path):
    write_noise_folder(tmp_path / "in", 3)
    pack(open_source("folder", tmp_path / "in"), tmp_path / "out", PackOptions(size=8), workers=1)
    train = tmp_path / "out/train"
    (train / "judgements.parquet").write_bytes(b"")
    assert problems_of(capsys, train) == ["judgements.parquet: is not in the manifest"]
    (train / "judgements.parquet").unlink()
    manifest = json.loads((train / "manifest.json").read_text())
    (train / "manifest.json").write_text(json.dumps({**manifest, "tables": {}}))
    assert problems_of(capsys, train) == [
        "samples.parquet: is not in the manifest", "manifest.json: does not list samples.parquet",
    ]  # fmt: skip


def test_ids_and_names_are_compared_with_the_shards(capsys, judged):
    names = [str(number) for number in range(12)]
    replace_table(judged, "samples.parquet", {"id": [*range(10), 40, 41], "name": names})
    assert problems_of(capsys, judged) == [
        "samples.parquet: names the sample 40, which is not in the set (and 1 more samples)",
        "samples.parquet: has no name of the sample 10 (and 1 more samples)",
    ]
    replace_table(judged, "samples.parquet", {"id": list(range(12)), "name": [*names[:10], "3", "3"]})
    assert problems_of(capsys, judged) == ["samples.parquet: has the name '3' 3 times"]


def test_every_fault_of_the_judgements_is_found(capsys, judged):
    columns = pq.read_table(judged / "judgements.parquet").to_pydict()
    columns["ref"][3] = columns["ref"][5] = 99
    columns["votes_a"][7] = -1.0
    columns["votes_a"][8] = columns["votes_b"][8] = 0.0
    columns["a"][9] = columns["b"][9]
    replace_table(judged, "judgements.parquet", columns)
    assert problems_of(capsys, judged) == [
        "judgements.parquet: row 4 has a sample id as ref that is not in the set (and 1 more rows)",
        "judgements.parquet: row 10 names an image twice",
        "judgements.parquet: row 8 has votes that are negative, NaN or infinite",
        "judgements.parquet: row 9 has no votes",
    ]


# ---- notes ----


def notes_of(capsys, directory):
    assert check_shards([str(directory)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out.pop() == f"{directory}: sound"
    return [line.removeprefix(f"{directory}/judgements.parquet: ") for line in out]


def test_repeated_and_contradicting_judgements_are_noted_and_no_problem(capsys, tmp_path):
    write_images(tmp_path, 4)
    rows = [
        [A, B, C, 1, 1, "ann"],  # line 2
        [A, B, D, 1, 1, "ann"],
        [B, A, C, 1, 1, "ann"],
        [A, B, C, 0, 1, "bob"],  # another judge
        [A, C, B, 0, 3, "ann"],  # the same as line 2, the other way round
        [A, C, B, 1, 1, "ann"],  # line 7: contradicts line 2
        [A, B, D, 0.5, 2, "ann"],  # a tie contradicts nothing
    ]
    directory = pack_rows(tmp_path, rows, by="person")
    assert notes_of(capsys, directory) == [
        "note: 3 of 7 repeat an earlier judgement of the same judge and images, first lines 2 and 6 of the source",
        "note: 1 of 7 contradict an earlier judgement of the same judge and images, first lines 2 and 7 of the source",
    ]
    directory = pack_rows(tmp_path, rows)  # without judges, line 5 contradicts line 2 too
    assert "note: 2 of 7 contradict an earlier judgement" in notes_of(capsys, directory)[1]
    assert notes_of(capsys, pack_rows(tmp_path, rows[:4], by="person")) == []


# ---- names ----


def test_names_are_printed_by_id(capsys, judged):
    assert check_shards([str(judged), "--names"]) == 0
    assert capsys.readouterr().out == "".join(f"{key}\t{name}\n" for key, name in names_of(judged).items())


def test_names_stay_on_one_line_each(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a\tb\nc\\.png").write_bytes(encoded(noise(8, 8, 3), "PNG"))
    pack(open_source("folder", tmp_path / "in"), tmp_path / "out", PackOptions(size=8), workers=1)
    assert check_shards([str(tmp_path / "out/train"), "--names"]) == 0
    assert capsys.readouterr().out == "0\ta\\tb\\nc\\\\.png\n"


def test_a_set_of_version_1_says_that_it_has_no_names(capsys, judged, tmp_path):
    write_noise_folder(tmp_path / "in", 3)
    pack(open_source("folder", tmp_path / "in"), tmp_path / "old", PackOptions(size=8), workers=1)
    manifest = json.loads((tmp_path / "old/train/manifest.json").read_text())
    del manifest["tables"]
    (tmp_path / "old/train/manifest.json").write_text(json.dumps({**manifest, "format_version": 1}))
    (tmp_path / "old/train/samples.parquet").unlink()
    assert problems_of(capsys, tmp_path / "old/train") == []
    assert check_shards([str(tmp_path / "old/train"), "--names"]) == 1
    assert "has no names of its samples: an earlier version of fastdps packed it" in capsys.readouterr().err
