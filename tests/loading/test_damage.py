"""Errors for wrong arguments and damaged shard sets: they name what is wrong and where."""

from __future__ import annotations

import io
import re
import struct
import tarfile
from pathlib import Path

import pytest
import torch

from fastdps.errors import ConfigError, SampleError, ShardError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from helpers.packed import encoded, noise, photo
from helpers.shard_sets import open_set, raw_samples, rewrite_manifest, write_index, write_set


@pytest.fixture
def raw_set(tmp_path):
    return write_set(tmp_path / "raw", raw_samples(12), [4, 4, 4])


def read_all(directory: Path, loader: str, **options) -> list[list[int]]:
    batches = open_set(directory, **{"batch_size": 4, "seed": None, "loader": loader, **options}).epoch(0)
    return [batch.ids.tolist() for batch in batches]


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": ["image", "judge"]}, "no component 'judge' in this set; it has image"),
        ({"components": []}, "name one or more of image"),
        ({"components": ["image", "image"]}, "each once"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it must be at least 0 and below 2"),
        ({"rank": -1}, "rank is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"size": 0}, "size is 0"),
        ({"size": (3, -1)}, "size is -1"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"loader": "torch"}, "it must be auto, dali or portable"),
        ({"device": "abacus"}, "device 'abacus' is not known to torch"),
        ({"device": "meta", "loader": "dali"}, "DALI does not load to meta; use loader='portable'"),
    ],
)
def test_arguments_that_cannot_be_used(raw_set, options, message):
    with pytest.raises(ConfigError, match=message):
        open_set(raw_set, **{"batch_size": 4, "loader": "portable", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_where_there_is_none(raw_set):
    with pytest.raises(ConfigError, match="use device='cpu'"):
        open_shards(raw_set, batch_size=4, device="cuda:1")


@pytest.mark.parametrize(("epoch", "start_step"), [(-1, 0), (0, -1), (0, 4)])
def test_epochs_and_steps_out_of_range_are_rejected_at_once(raw_set, epoch, start_step):
    opened = open_shards(raw_set, batch_size=4)
    with pytest.raises(ConfigError, match=r"epoch is -1|start_step is"):
        opened.epoch(epoch, start_step)


def test_images_in_their_own_sizes_need_a_size(tmp_path, loader):
    samples = [{"png": encoded(photo(8, 8), "PNG")}]
    directory = write_set(tmp_path / "set", samples, [1], encoding="keep", image_size=None)
    with pytest.raises(ConfigError, match=r"own sizes; give size"):
        open_shards(directory, batch_size=1, options=LoadOptions(loader=loader))


# --- shards and indexes -----------------------------------------------------------------------------------------


def test_a_directory_that_is_not_a_shard_set(tmp_path):
    with pytest.raises(ShardError, match=r"is not a shard set: .*Pack one with `fastdps pack`"):
        open_shards(tmp_path, batch_size=1)


def test_a_set_without_samples(tmp_path):
    with pytest.raises(ShardError, match="has no samples"):
        open_shards(write_set(tmp_path / "set", [], []), batch_size=1)


def test_raw_images_without_a_size(tmp_path):
    with pytest.raises(ShardError, match="lacks the image_size"):
        open_shards(write_set(tmp_path / "set", raw_samples(2), [2], image_size=None), batch_size=1)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx"])
def test_a_missing_file_is_found_on_opening(raw_set, name):
    (raw_set / name).unlink()
    with pytest.raises(ShardError, match=rf"lacks {name}.*fastdps check"):
        open_shards(raw_set, batch_size=4)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx"])
def test_a_file_that_vanishes_later(raw_set, loader, name):
    opened = open_shards(raw_set, batch_size=4, options=LoadOptions(loader=loader))
    (raw_set / name).unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.\w+ cannot be read.*fastdps check"):
        list(opened.epoch(0))


@pytest.mark.parametrize("change", [-512, 512])
def test_a_shard_of_another_size_than_the_manifest_states(raw_set, loader, change):
    tar = raw_set / "shard-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(ShardError, match=r"shard-000001\.tar has \d+ bytes where the manifest states \d+"):
        read_all(raw_set, loader)


def test_a_truncated_shard_whose_size_is_in_the_manifest(tmp_path, loader):
    directory = write_set(tmp_path / "large", raw_samples(4, 24, 16), [4], image_size=(24, 16))
    tar = directory / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:8192])  # what four samples take at least
    index = directory / "shard-000000.idx"
    index.write_text(swap(index.read_text(), r"bin (\d+) 1152 000000003", "bin 7168 1152 000000003"))
    rewrite_manifest(directory, bytes=8192)
    with pytest.raises(ShardError, match=r"shard-000000\.idx does not fit the shard.*outside the shard"):
        read_all(directory, loader)


def test_a_shard_that_cannot_hold_its_samples(raw_set):
    tar = raw_set / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:1600])
    rewrite_manifest(raw_set, bytes=1600)
    with pytest.raises(ShardError, match=r"bytes of shard-000000\.tar is 1600, and its 4 samples take at least 4,096"):
        read_all(raw_set, "portable")


def swap(text: str, pattern: str, to: str) -> str:
    changed = re.sub(pattern, to, text, count=1)
    assert changed != text
    return changed


LINE = r"bin (\d+) 72 000000002\.bin\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "does not begin with v1.2"),
        (lambda text: swap(text, "v1.2", "v1.1"), "does not begin with v1.2"),
        (lambda text: swap(text, "v1.2 4", "v1.2 5"), "manifest states 4"),
        (lambda text: swap(text, LINE, ""), "3 lines"),
        (lambda text: swap(text, LINE, r"bin \1 72\n"), "fields"),
        (lambda text: swap(text, LINE, r"png \1 72 000000002.png\n"), "extensions"),
        (lambda text: swap(text, LINE, r"bin \1 72 000000002.png\n"), "names"),
        (lambda text: swap(text, LINE, r"bin \1 72 000000001.bin\n"), "ids do not ascend"),
        (lambda text: swap(text, LINE, r"bin \1 72 00000000x.bin\n"), "does not fit"),
        (lambda text: swap(text, LINE, r"bin x 72 000000002.bin\n"), "does not fit"),
        (lambda text: swap(text, LINE, r"bin 1\1 72 000000002.bin\n"), "outside the shard"),
        (lambda text: swap(text, LINE, r"bin -512 72 000000002.bin\n"), "outside the shard"),
        (lambda text: swap(text, LINE, r"bin 513 72 000000002.bin\n"), "outside the shard"),
        (lambda text: swap(text, LINE, r"bin 9223372036854775296 72 000000002.bin\n"), "are not numbers"),
        (lambda text: swap(text, LINE, r"bin 999999999999999872 72 000000002.bin\n"), "outside the shard"),
        (lambda text: swap(text, LINE, r"bin 1_0 72 000000002.bin\n"), "are not numbers"),
        (lambda text: swap(text, LINE, rf"bin {'9' * 30} 72 000000002.bin\n"), "are not numbers"),
        (lambda text: swap(text, LINE, r"bin \1 73 000000002.bin\n"), "72 bytes per sample"),
        (lambda text: swap(text, LINE, r"bin 1536 72 000000002.bin\n"), "overlap"),
        (lambda text: swap(text, LINE, r"bin 8192 72 000000002.bin\n"), "no matching tar header"),
        (lambda text: swap(swap(text, "000000000", "a"), "a", "000000001"), "ids do not ascend"),
        (lambda text: swap(text, r"000000003\.bin", "000000007.bin"), "sample 7.*no matching tar header"),
    ],
)
def test_an_index_that_does_not_fit(raw_set, loader, damage, message):
    index = raw_set / "shard-000000.idx"
    index.write_text(damage(index.read_text()))
    with pytest.raises(ShardError, match=rf"shard-000000\.idx.*{message}.*fastdps check"):
        read_all(raw_set, loader)


def test_the_index_of_another_shard(raw_set, loader):
    (raw_set / "shard-000001.idx").write_bytes((raw_set / "shard-000000.idx").read_bytes())
    with pytest.raises(ShardError, match=r"shard-000001\.idx does not fit the shard: sample 0 "):
        read_all(raw_set, loader)


def test_components_of_different_samples_in_one_line(tmp_path, loader):
    samples = [{"p0.bin": bytes(72), "p1.bin": bytes(72), "same.f32": bytes(4)} for _ in range(3)]
    directory = write_set(tmp_path / "set", samples, [3], kind="pairs")
    index = directory / "shard-000000.idx"
    index.write_text(swap(index.read_text(), r"000000001\.p1\.bin", "000000002.p1.bin"))
    with pytest.raises(ShardError, match="names of p1 do not match their samples"):
        read_all(directory, loader)


@pytest.fixture
def gappy_set(tmp_path):
    """A shard with longer headers (PAX, for times in fractions of seconds), so that there are gaps between members."""
    directory = write_set(tmp_path / "set", raw_samples(5), [5])
    path = directory / "shard-000000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample_id, sample in enumerate(raw_samples(5)):
            member = tarfile.TarInfo(f"{sample_id:09d}.bin")
            member.size, member.mtime = 72, 0.5 + sample_id
            tar.addfile(member, io.BytesIO(sample["bin"]))
    write_index(path)
    rewrite_manifest(directory, bytes=path.stat().st_size)
    return directory


def test_members_may_have_gaps_between_them(gappy_set, loader):
    assert read_all(gappy_set, loader) == [[0, 1, 2, 3], [4]]


def test_an_index_that_points_into_a_gap(gappy_set, loader):
    index = gappy_set / "shard-000000.idx"
    text = index.read_text()
    offset = int(re.search(r"bin (\d+) 72 000000002", text).group(1))
    index.write_text(text.replace(f"bin {offset} ", f"bin {offset - 512} "))
    with pytest.raises(ShardError, match=r"shard-000000\.idx does not fit the shard: sample 2 "):
        read_all(gappy_set, loader)


# --- single samples ---------------------------------------------------------------------------------------------


def test_a_tar_header_destroyed_in_the_middle_is_found_by_the_portable_loader(raw_set):
    tar = raw_set / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[2 * 1024 : 2 * 1024 + 100] = bytes(100)
    tar.write_bytes(data)
    with pytest.raises(
        SampleError, match=r"sample 6 \(000000006\.bin in .*shard-000001\.tar\) has no matching tar header"
    ):
        read_all(raw_set, "portable")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_head(data: bytes) -> bytes:
    return bytes(64) + data[64:]


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def flipped(data: bytes) -> bytes:
    """Flip one bit of the checksum of a PNG's pixels."""
    place = data.rindex(b"IEND") - 8
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("sample_id", [0, 6, 11, 19])
@pytest.mark.parametrize(
    ("form", "extension", "damage"),
    [
        ("JPEG", "jpg", cut),
        ("JPEG", "jpg", without_head),
        ("JPEG", "jpg", zeroed),
        ("PNG", "png", cut),
        ("PNG", "png", zeroed),
        ("PNG", "png", flipped),
    ],
)
def test_a_damaged_image_is_named(tmp_path, loader, form, extension, damage, sample_id):
    samples = [{extension: encoded(photo(40, 40, seed), form)} for seed in range(20)]
    samples[sample_id] = {extension: damage(samples[sample_id][extension])}
    directory = write_set(
        tmp_path / "set", samples, [7, 7, 6], encoding="png" if form == "PNG" else "jpeg", image_size=(40, 40)
    )
    shard = f"shard-{sample_id // 7:06d}.tar"
    with pytest.raises(
        SampleError, match=rf"sample {sample_id} \(0*{sample_id}\.{extension} in .*{shard}\).*fastdps check"
    ):
        read_all(directory, loader)
    opened = open_shards(directory, batch_size=4, seed=None, options=LoadOptions(loader=loader)).epoch(0)
    for _ in range(sample_id // 4):
        assert len(next(opened)) == 4  # batches before the damage are returned
    with pytest.raises(SampleError):
        next(opened)


def test_a_damaged_image_among_the_components_of_a_triplet(tmp_path, loader):
    images = [encoded(p, "PNG") for p in noise(9, 6, 4, 3)]
    samples = [
        {"ref.png": images[i], "p0.png": images[i + 1], "p1.png": images[i + 2], "judge.f32": bytes(4)}
        for i in range(0, 9, 3)
    ]
    samples[1]["p1.png"] = zeroed(samples[1]["p1.png"])
    directory = write_set(tmp_path / "set", samples, [3], kind="triplets", encoding="png")
    with pytest.raises(SampleError, match=r"sample 1 \(000000001\.p1\.png in .*shard-000000\.tar\)"):
        read_all(directory, loader)
    assert read_all(directory, loader, components=["ref", "judge"]) == [[0, 1, 2]]


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("share", [2.0, -1.0, float("nan"), float("inf")])
def test_votes_that_are_not_a_share_are_named(tmp_path, loader, encoding, share):
    form = {"raw": "bin", "png": "png"}[encoding]
    images = [p.tobytes() if encoding == "raw" else encoded(p, "PNG") for p in noise(5, 6, 4, 3)]
    votes = [0.0, 1.0, 0.5, share, 1.0]
    samples = [
        {**{f"{name}.{form}": image for name in ("ref", "p0", "p1")}, "judge.f32": struct.pack("<f", vote)}
        for image, vote in zip(images, votes, strict=True)
    ]
    directory = write_set(tmp_path / "set", samples, [5], kind="triplets", encoding=encoding)
    opened = open_shards(directory, batch_size=2, seed=None, options=LoadOptions(loader=loader)).epoch(0)
    assert next(opened).components["judge"].tolist() == [0.0, 1.0]
    with pytest.raises(SampleError, match=rf"sample 3 of {directory} has {share} as judge, not a share of votes"):
        next(opened)
    assert len(read_all(directory, loader, components=["ref", "p0"])) == 2


def test_a_damaged_image_that_only_dali_rejects_is_named(tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali")
    from fastdps.loading import decoding

    monkeypatch.setattr(decoding, "decode_member", lambda *args: None)
    samples = [{"png": encoded(photo(40, 40, seed), "PNG")} for seed in range(7)]
    samples[5] = {"png": flipped(samples[5]["png"])}
    directory = write_set(tmp_path / "set", samples, [7], encoding="png", image_size=(40, 40))
    with pytest.raises(SampleError, match=r"sample 5 \(000000005\.png in .*shard-000000\.tar\).*by DALI"):
        read_all(directory, "dali")


def test_a_failure_that_no_sample_explains_is_passed_on(raw_set, monkeypatch):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali.pipeline import Pipeline

    def out_of_memory(*args, **kwargs):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Pipeline, "share_outputs", out_of_memory)
    with pytest.raises(RuntimeError, match="no memory left") as raised:
        read_all(raw_set, "dali")
    assert str(raw_set) in raised.value.__notes__[0]
