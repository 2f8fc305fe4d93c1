"""The contract of loading, for both implementations, against `tarfile`, webdataset, DALI and torchvision."""

from __future__ import annotations

import importlib
import io
import logging
import subprocess
import sys
import tempfile
import threading
import warnings

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import functional as transforms

from fastdps.errors import ConfigError
from fastdps.loading import index_cache, segments
from fastdps.loading.loader import open_shards
from fastdps.loading.spec import Batch
from helpers.packed import encoded, noise, photo, read_set
from helpers.shard_sets import raw_samples, write_set

SIZES = (5, 1, 7, 3, 7)  # shards of uneven sizes: 23 samples


@pytest.fixture
def raw_set(tmp_path):
    ids = [id for id in range(40) if id % 4]  # some are missing, as where packing rejected a file
    return write_set(tmp_path / "raw", raw_samples(23), SIZES, ids=ids[:23])


def gather(batches) -> tuple[list[int], dict[str, torch.Tensor]]:
    """All ids and components of some batches."""
    batches = list(batches)
    names = batches[0].components
    ids = torch.cat([batch.ids for batch in batches]).tolist()
    return ids, {name: torch.cat([batch.components[name] for batch in batches]) for name in names}


def test_batches_are_what_a_tar_reader_finds(raw_set, loader):
    opened = open_shards(raw_set, batch_size=4, loader=loader)
    there = read_set(raw_set)
    assert (opened.samples, opened.steps) == (23, 6)
    batches = list(opened.epoch(0))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch), 6, 4, 3)
        assert batch.ids.dtype == torch.int64
        assert batch.global_size == len(batch)
        for sample_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
            assert image.numpy().tobytes() == there[sample_id]["bin"]
    assert sorted(gather(batches)[0]) == sorted(there)


def test_batches_are_what_webdataset_reads(raw_set):
    ids, components = gather(open_shards(raw_set, batch_size=9, shuffle=False, loader="portable").epoch(0))
    read = []
    for path in sorted(raw_set.glob("*.tar")):
        with path.open("rb") as stream:
            members = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            samples = webdataset.tariterators.group_by_keys(members)
            read += [(int(sample["__key__"]), sample["bin"]) for sample in samples]
    assert [(i, image.numpy().tobytes()) for i, image in zip(ids, components["image"], strict=True)] == read


def test_ids_are_those_of_dalis_own_source_info(raw_set):
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali.pipeline import Pipeline

    tars = [str(path) for path in sorted(raw_set.glob("*.tar"))]
    with Pipeline(batch_size=23, num_threads=1, device_id=None) as pipeline:
        data = fn.readers.webdataset(paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=["bin"])
        pipeline.set_outputs(data)
    (output,) = pipeline.run()
    by_source = {
        int(output[i].source_info().rsplit(":", 1)[1].split(".")[0]): np.asarray(output[i]).tobytes() for i in range(23)
    }
    ids, components = gather(open_shards(raw_set, batch_size=5, loader="dali", seed=3).epoch(1))
    assert {i: image.numpy().tobytes() for i, image in zip(ids, components["image"], strict=True)} == by_source


def test_both_loaders_give_the_same_batches(tmp_path):
    pytest.importorskip("nvidia.dali")
    pixels = noise(23, 6, 4, 3)
    sets = [
        write_set(tmp_path / "raw", [{"bin": p.tobytes()} for p in pixels], SIZES),
        write_set(tmp_path / "png", [{"png": encoded(p, "PNG")} for p in pixels], SIZES, encoding="png"),
    ]
    for directory in sets:
        opened = [open_shards(directory, batch_size=4, loader=name, seed=5) for name in ("dali", "portable")]
        for ours, theirs in zip(opened[0].epoch(2), opened[1].epoch(2), strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist()
            assert torch.equal(ours.images, theirs.images)
            for sample_id, image in zip(ours.ids.tolist(), ours.images, strict=True):
                np.testing.assert_array_equal(image.numpy(), pixels[sample_id])


@pytest.mark.parametrize("world_size", [1, 2, 5, 30])
def test_all_processes_together_read_each_sample_once(raw_set, loader, world_size):
    opened = [
        open_shards(raw_set, batch_size=2, loader=loader, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({one.steps for one in opened}) == 1
    by_rank = [list(one.epoch(1)) for one in opened]
    seen = [i for batches in by_rank for i in gather(batches)[0]]
    assert sorted(seen) == sorted(read_set(raw_set))
    for of_step in zip(*by_rank, strict=True):
        assert {batch.global_size for batch in of_step} == {sum(map(len, of_step))}
        for batch in of_step:
            assert batch.images.shape == (len(batch), 6, 4, 3)
            assert batch.images.dtype == torch.uint8
            assert batch.ids.dtype == torch.int64


def test_epochs_and_seeds_differ_and_repeat(raw_set, loader):
    def order(seed: int, epoch: int) -> list[int]:
        return gather(open_shards(raw_set, batch_size=8, loader=loader, seed=seed).epoch(epoch))[0]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(one) for one in orders}) == 4
    assert order(1, 1) == orders[3]
    packed = gather(open_shards(raw_set, batch_size=8, loader=loader, shuffle=False).epoch(7))[0]
    assert packed == sorted(packed)


def test_another_number_of_processes_goes_on_amid_an_epoch(raw_set, loader):
    def of(rank, world_size):
        return open_shards(raw_set, batch_size=2, loader=loader, rank=rank, world_size=world_size)

    first = [batch for rank in range(3) for batch in list(of(rank, 3).epoch(1))[:2]]
    left = of(0, 3).left_after(2)
    second = [batch for rank in range(2) for batch in list(of(rank, 2).epoch(1, left=left))[:1]]
    left = of(0, 2).left_after(1, left)
    alone = of(0, 1)
    third = list(alone.epoch(1, left=left))
    assert len(third) == alone.steps_for(left) == 4
    assert [batch.global_size for batch in third] == [2, 2, 2, 1]
    assert [batch.global_size for batch in second] == [4, 4]
    ids, _ = gather(first + second + third)
    assert sorted(ids) == sorted(gather(alone.epoch(1))[0])
    with pytest.raises(ConfigError, match="positions below 23"):
        alone.epoch(0, left=[range(24)])


@pytest.mark.parametrize("start_step", [0, 1, 3, 5, 6])
def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(raw_set, loader, start_step):
    opened = open_shards(raw_set, batch_size=2, loader=loader, rank=1, world_size=2)
    whole, rest = list(opened.epoch(4)), list(opened.epoch(4, start_step))
    assert len(rest) == opened.steps - start_step
    for expected, batch in zip(whole[start_step:], rest, strict=True):
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.images, expected.images)
        assert batch.global_size == expected.global_size


def test_segments_do_not_change_the_batches(raw_set, loader, monkeypatch):
    opened = open_shards(raw_set, batch_size=2, loader=loader)
    whole = gather(opened.epoch(0))
    for samples, shards in ((4, 64), (1, 64), (65536, 1)):
        monkeypatch.setattr(segments, "SEGMENT_SAMPLES", samples)
        monkeypatch.setattr(segments, "SEGMENT_SHARDS", shards)
        cut = gather(opened.epoch(0))
        assert cut[0] == whole[0]
        assert torch.equal(cut[1]["image"], whole[1]["image"])


def test_an_epoch_reads_only_the_indexes_it_comes_to(raw_set, loader, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 2)
    opened = []
    original = index_cache.open_index
    monkeypatch.setattr(index_cache, "open_index", lambda *args: opened.append(args[2].name) or original(*args))
    batches = open_shards(raw_set, batch_size=2, loader=loader).epoch(0)
    next(batches)
    batches.close()
    assert 1 <= len(set(opened)) <= 3  # of 5: those of the segment in use and of the next


def test_batches_stay_what_they_are_when_later_ones_come(tmp_path, loader):
    directory = write_set(tmp_path / "set", raw_samples(200), [200])
    there = read_set(directory)
    kept = [batch for epoch in range(3) for batch in open_shards(directory, batch_size=8, loader=loader).epoch(epoch)]
    for batch in kept:
        for sample_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
            assert image.numpy().tobytes() == there[sample_id]["bin"]
    kept[0].images.fill_(0)  # they may be written to, which neither changes the others nor the set
    assert {i: s["bin"] for i, s in read_set(directory).items()} == {i: s["bin"] for i, s in there.items()}
    assert kept[1].images.any()


def test_epochs_can_be_read_side_by_side(raw_set, loader):
    opened = open_shards(raw_set, batch_size=4, loader=loader)
    alone = [gather(opened.epoch(epoch))[0] for epoch in (0, 1)]
    together = list(zip(opened.epoch(0), opened.epoch(1), strict=True))
    for which in (0, 1):
        assert gather(pair[which] for pair in together)[0] == alone[which]


# --- JPEG, images in their own sizes, other kinds ---------------------------------------------------------------


@pytest.fixture(scope="module")
def jpegs(imagenet_sample):
    """Real JPEGs, in RGB and not too large."""
    found = []
    for path in sorted(imagenet_sample.glob("*/*.JPEG")):
        with Image.open(path) as image:
            if image.mode == "RGB" and max(image.size) <= 600:
                found.append(path.read_bytes())
        if len(found) == 12:
            break
    return found


def as_tensor(data: bytes) -> torch.Tensor:
    """torchvision's own decoding: uint8 (3, H, W)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # in favour of TorchCodec, which is no oracle here yet
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def test_jpegs_are_decoded_as_torchvision_does(tmp_path, jpegs, loader):
    small = [transforms.resize(as_tensor(data), [64, 64], antialias=True) for data in jpegs]
    samples = [{"jpg": encoded(image.permute(1, 2, 0).numpy(), "JPEG", quality=92)} for image in small]
    directory = write_set(tmp_path / "set", samples, [7, 5], encoding="jpeg", image_size=(64, 64))
    ids, components = gather(open_shards(directory, batch_size=5, loader=loader).epoch(0))
    for sample_id, image in zip(ids, components["image"], strict=True):
        expected = as_tensor(samples[sample_id]["jpg"]).permute(1, 2, 0)
        assert (image.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [64, (48, 80), (400, 380)])
def test_images_of_all_sizes_are_resized_as_torchvision_does(tmp_path, jpegs, loader, size):
    samples = [{"jpg": data} for data in jpegs]
    samples[3] = {"png": encoded(photo(90, 70), "PNG")}
    directory = write_set(tmp_path / "set", samples, [12], encoding="keep", image_size=None)
    ids, components = gather(open_shards(directory, batch_size=5, loader=loader, size=size).epoch(0))
    height, width = (size, size) if isinstance(size, int) else size
    assert components["image"].shape == (12, height, width, 3)
    scaled = loader == "portable" and height < 400  # decoded at less than full scale, see test_jpeg.py
    for sample_id, image in zip(ids, components["image"], strict=True):
        (data,) = samples[sample_id].values()
        expected = transforms.resize(as_tensor(data), [height, width], antialias=True).permute(1, 2, 0)
        difference = (image.int() - expected.int()).abs()
        assert difference[1:-1, 1:-1].max() <= (50 if scaled else 2)  # see fastdps.loading.loader for the border
        assert difference.float().mean() < (6 if scaled else 2)


def test_raw_images_are_resized_on_request(tmp_path, loader):
    pixels = [photo(32, 24, seed) for seed in range(3)]
    directory = write_set(tmp_path / "set", [{"bin": p.tobytes()} for p in pixels], [3], image_size=(32, 24))
    ids, components = gather(open_shards(directory, batch_size=2, loader=loader, size=(16, 16)).epoch(0))
    for sample_id, image in zip(ids, components["image"], strict=True):
        expected = Image.fromarray(pixels[sample_id]).resize((16, 16), Image.Resampling.BILINEAR)
        difference = np.abs(image.numpy().astype(int) - np.asarray(expected))
        assert difference[1:-1, 1:-1].max() <= 2
        assert difference.mean() < 1


@pytest.mark.parametrize(("form", "extension", "encoding"), [("JPEG", "jpg", "jpeg"), ("PNG", "png", "png")])
def test_grey_images_become_rgb(tmp_path, loader, form, extension, encoding):
    grey = photo(16, 16)[..., 0]
    samples = [{extension: encoded(grey, form)}]
    directory = write_set(tmp_path / "set", samples, [1], encoding=encoding, image_size=(16, 16))
    (batch,) = open_shards(directory, batch_size=2, loader=loader).epoch(0)
    with Image.open(io.BytesIO(samples[0][extension])) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(batch.images[0].numpy(), np.repeat(expected[..., None], 3, axis=2))


def test_an_exif_rotation_is_not_applied(tmp_path, loader):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    samples = [{"jpg": encoded(photo(16, 16), "JPEG", exif=exif.tobytes())}]
    directory = write_set(tmp_path / "set", samples, [1], encoding="keep", image_size=None)
    (batch,) = open_shards(directory, batch_size=2, loader=loader, size=16).epoch(0)
    with Image.open(io.BytesIO(samples[0]["jpg"])) as image:
        np.testing.assert_array_equal(batch.images[0].numpy(), np.asarray(image.convert("RGB")))


def test_dalis_decoder_is_built_once(tmp_path, monkeypatch):
    dali = pytest.importorskip("nvidia.dali") and importlib.import_module("fastdps.loading.dali")
    built = []
    original = dali._Decoder.__init__
    monkeypatch.setattr(dali._Decoder, "__init__", lambda *args: built.append(original(*args)))
    pixels = noise(23, 6, 4, 3)
    samples = [{"png": encoded(p, "PNG")} for p in pixels]
    opened = open_shards(write_set(tmp_path / "set", samples, SIZES, encoding="png"), batch_size=4, loader="dali")

    def is_right(batches) -> bool:
        ids, components = gather(batches)
        return np.array_equal(components["image"].numpy(), pixels[ids]) and len(ids) == 23

    assert all(is_right(opened.epoch(epoch)) for epoch in range(3))
    assert len(built) == 1
    both = list(zip(opened.epoch(3), opened.epoch(4), strict=True))  # a second one while the first is in use
    assert is_right(pair[0] for pair in both)
    assert is_right(pair[1] for pair in both)
    assert len(built) == 2
    assert next(opened.epoch(5)) is not None  # left early
    assert is_right(opened.epoch(6))


@pytest.mark.parametrize(
    ("kind", "images", "scalar"), [("triplets", ("ref", "p0", "p1"), "judge"), ("pairs", ("p0", "p1"), "same")]
)
@pytest.mark.parametrize(("encoding", "extension"), [("raw", "bin"), ("png", "png")])
def test_triplets_and_pairs(tmp_path, loader, kind, images, scalar, encoding, extension):
    pixels = noise(7 * len(images), 6, 4, 3).reshape(7, len(images), 6, 4, 3)
    votes = np.array([0, 0.2, 0.4, 0.6, 0.8, 1, 0.5], dtype="<f4")
    samples = [
        {
            **{
                f"{name}.{extension}": p.tobytes() if encoding == "raw" else encoded(p, "PNG")
                for name, p in zip(images, of_sample, strict=True)
            },
            f"{scalar}.f32": vote.tobytes(),
        }
        for of_sample, vote in zip(pixels, votes, strict=True)
    ]
    directory = write_set(tmp_path / "set", samples, [3, 4], kind=kind, encoding=encoding)
    batches = list(open_shards(directory, batch_size=2, loader=loader, seed=1).epoch(0))
    ids, components = gather(batches)
    assert list(components) == [*images, scalar]
    for place, name in enumerate(images):
        np.testing.assert_array_equal(components[name].numpy(), pixels[ids, place])
    assert components[scalar].dtype == torch.float32
    np.testing.assert_array_equal(components[scalar].numpy(), votes[ids])
    with pytest.raises(ConfigError, match=rf"no component 'image'.*{images[0]}"):
        _ = batches[0].images

    (some,) = open_shards(directory, batch_size=9, loader=loader, components=[scalar, "p1"]).epoch(0)
    assert list(some.components) == [scalar, "p1"]
    np.testing.assert_array_equal(some.components["p1"].numpy(), pixels[some.ids, images.index("p1")])
    np.testing.assert_array_equal(some.components[scalar].numpy(), votes[some.ids])

    empty = list(open_shards(directory, batch_size=1, loader=loader, rank=1, world_size=8).epoch(0))[-1]
    assert {name: tuple(tensor.shape) for name, tensor in empty.components.items()} == {
        **{name: (len(empty), 6, 4, 3) for name in images},
        scalar: (len(empty),),
    }


# --- choosing, closing ------------------------------------------------------------------------------------------


@pytest.fixture
def no_dali(monkeypatch):
    import fastdps.loading as loading
    from fastdps.loading import loader

    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "fastdps.loading.dali", raising=False)
    monkeypatch.delattr(loading, "dali", raising=False)
    loader._say_portable.cache_clear()


@pytest.fixture
def png_set(tmp_path):
    return write_set(tmp_path / "png", [{"png": encoded(p, "PNG")} for p in noise(23, 6, 4, 3)], SIZES, encoding="png")


def test_without_dali_auto_says_so_once_and_is_portable(png_set, no_dali, caplog):
    with caplog.at_level(logging.WARNING):
        opened = [open_shards(png_set, batch_size=4) for _ in range(2)]
    assert [record.message for record in caplog.records if "portable" in record.message] == [caplog.messages[0]]
    assert len(gather(opened[0].epoch(0))[0]) == 23


def test_without_dali_asking_for_it_is_an_error(raw_set, no_dali):
    with pytest.raises(ConfigError, match="Install nvidia-dali"):
        open_shards(raw_set, batch_size=4, loader="dali")


def test_without_dali_auto_says_nothing_where_it_would_not_take_it(raw_set, no_dali, caplog):
    with caplog.at_level(logging.WARNING):
        open_shards(raw_set, batch_size=4)
    assert not caplog.records


@pytest.mark.parametrize(
    ("encoding", "stored", "wanted", "threads", "expected"),
    [
        ("raw", (64, 64), None, 2, "PortableReader"),  # nothing to do but copy
        ("raw", (64, 64), 32, 2, "DaliReader"),
        ("png", (64, 64), None, 2, "DaliReader"),
        ("png", (256, 256), 64, 2, "DaliReader"),
        ("jpeg", (64, 64), None, 2, "DaliReader"),
        ("jpeg", (127, 256), 64, 2, "DaliReader"),  # half of it would be too small
        ("jpeg", (128, 256), 64, 2, "PortableReader"),
        ("keep", None, 64, 2, "PortableReader"),
        ("keep", None, 64, 64, "DaliReader"),
    ],
)
def test_auto_is_the_faster_one(tmp_path, encoding, stored, wanted, threads, expected):
    pytest.importorskip("nvidia.dali")
    extension = {"raw": "bin", "png": "png"}.get(encoding, "jpg")
    height, width = stored or (64, 64)
    sample = {extension: bytes(height * width * 3)}  # which nobody reads here
    directory = write_set(tmp_path / "set", [sample], [1], encoding=encoding, image_size=stored)
    opened = open_shards(directory, batch_size=4, size=wanted, num_threads=threads)
    assert type(opened._reader).__name__ == expected


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_epoch_left_early_leaves_nothing_behind(tmp_path, loader, taken, monkeypatch):
    directory = write_set(tmp_path / "set", raw_samples(300), [100, 100, 100])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 32)
    before = set(threading.enumerate())
    batches = open_shards(directory, batch_size=8, loader=loader).epoch(0)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert set(threading.enumerate()) == before
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("end", ["break", "raise SystemExit(0)"])
def test_the_interpreter_ends_quietly_in_mid_epoch(tmp_path, end):
    pytest.importorskip("nvidia.dali")
    directory = write_set(tmp_path / "set", raw_samples(300), [100, 100, 100])
    program = f"""
from fastdps.loading.loader import open_shards
both = [open_shards({str(directory)!r}, batch_size=8, loader=name).epoch(0) for name in ("dali", "portable")]
for batches in zip(*both):
    {end}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_loader_makes_no_thread_until_it_is_used(raw_set, loader):
    before = threading.active_count()
    opened = open_shards(raw_set, batch_size=4, loader=loader)
    opened.epoch(0)
    assert threading.active_count() == before


# --- a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
class TestOnGpu:
    def test_batches_are_those_of_the_cpu(self, tmp_path, loader):
        pixels = [photo(32, 24, seed) for seed in range(23)]
        for encoding, extension, tolerance in (("raw", "bin", 0), ("png", "png", 0), ("jpeg", "jpg", 8)):
            forms = [p.tobytes() if encoding == "raw" else encoded(p, encoding.upper()) for p in pixels]
            samples = [{extension: data} for data in forms]
            directory = write_set(tmp_path / encoding, samples, SIZES, encoding=encoding, image_size=(32, 24))
            on_cpu = open_shards(directory, batch_size=4, loader="portable").epoch(0)
            on_gpu = open_shards(directory, batch_size=4, loader=loader, device="cuda").epoch(0)
            for expected, batch in zip(on_cpu, on_gpu, strict=True):
                assert batch.images.device.type == "cuda"
                assert batch.ids.device.type == "cpu"
                assert torch.equal(batch.ids, expected.ids)
                assert (batch.images.cpu().int() - expected.images.int()).abs().max() <= tolerance

    def test_scalars(self, tmp_path, loader):
        pixels = noise(10, 6, 4, 3)
        samples = [
            {"p0.bin": p.tobytes(), "p1.bin": p.tobytes(), "same.f32": np.float32(i).tobytes()}
            for i, p in enumerate(pixels)
        ]
        directory = write_set(tmp_path / "set", samples, [10], kind="pairs")
        for batch in open_shards(directory, batch_size=4, loader=loader, device="cuda").epoch(0):
            assert batch.components["same"].cpu().tolist() == batch.ids.tolist()

    def test_memory_is_not_used_again_before_the_device_has_read_it(self, tmp_path, loader):
        directory = write_set(tmp_path / "set", raw_samples(4000, 32, 32), [2000, 2000], image_size=(32, 32))
        there = read_set(directory)
        totals = []
        for batch in open_shards(directory, batch_size=100, loader=loader, device="cuda").epoch(0):
            torch.cuda._sleep(20_000_000)  # the device lags behind, while the batch goes away at once
            totals.append((batch.ids, batch.images.double().sum((1, 2, 3))))
            del batch
        for ids, total in totals:
            expected = [sum(there[sample_id]["bin"]) for sample_id in ids.tolist()]
            assert total.cpu().tolist() == expected


def test_length_of_a_batch():
    batch = Batch({}, torch.arange(3), 5)
    assert len(batch) == 3
