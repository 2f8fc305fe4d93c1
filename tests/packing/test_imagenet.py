"""ImageNet in small copies of its layouts on disk. Tars are read by offset, and nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.imagenet import ImageNet
from fastdps.packing.sources.source import MAX_FILE_BYTES
from fastdps.packing.sources.tars import TarImages
from fastdps.shards.images import UnreadableItemError
from helpers.packed import digests, encoded, noise, read_images, read_lines

OPTIONS = PackOptions(size=16, samples_per_shard=5, max_rejects=0.4)
CLASSES = ("n01440764", "n01443537", "n01484850")


def tar_of(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def jpeg(seed: int) -> bytes:
    return encoded(noise(16, 16, 3, seed=seed), "JPEG", quality=95)


def class_images(synset: str, count: int = 4) -> dict[str, bytes]:
    start = 100 * CLASSES.index(synset)
    return {f"{synset}_{start + number}.JPEG": jpeg(start + number) for number in range(count)}


IMAGES = {name: data for synset in CLASSES for name, data in class_images(synset).items()}
VAL_IMAGES = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(1000 + number) for number in range(6)}


def pixels_of(images: dict[str, bytes]) -> list[bytes]:
    return sorted(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tobytes() for data in images.values())


def packed_pixels(directory) -> list[bytes]:
    return sorted(pixels.tobytes() for pixels in read_images(directory, 16).values())


def write_official(root):
    """Write the two tars as they are downloaded."""
    root.mkdir(exist_ok=True)
    inner = {f"{synset}.tar": tar_of(class_images(synset)) for synset in CLASSES}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(VAL_IMAGES))
    return root


def write_folders(root, *, splits: bool):
    """Write one folder per class."""
    for synset in CLASSES:
        directory = root / "train" / synset if splits else root / synset
        directory.mkdir(parents=True)
        for name, data in class_images(synset).items():
            (directory / name).write_bytes(data)
    if splits:
        for number, (name, data) in enumerate(VAL_IMAGES.items()):
            directory = root / "val" / CLASSES[number % 3]
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
    return root


def test_the_official_tars_are_packed_completely(tmp_path):
    root = write_official(tmp_path / "in")
    before = digests(tmp_path)
    result = pack(ImageNet(root), tmp_path / "out", OPTIONS, workers=2)
    assert packed_pixels(tmp_path / "out/train") == pixels_of(IMAGES)
    assert packed_pixels(tmp_path / "out/val") == pixels_of(VAL_IMAGES)
    assert result.rejects == {"train": [], "val": []}
    assert result.manifests["train"].source["name"] == "imagenet"
    after = digests(tmp_path)
    assert {path for path in after if not path.startswith("out/")} == set(before)  # nothing was unpacked


def test_one_tar_alone_is_its_split(tmp_path):
    root = write_official(tmp_path / "in")
    for split, images in (("train", IMAGES), ("val", VAL_IMAGES)):
        result = pack(ImageNet(root / f"ILSVRC2012_img_{split}.tar"), tmp_path / split, OPTIONS, workers=1)
        assert list(result.manifests) == [split]
        assert packed_pixels(tmp_path / split / split) == pixels_of(images)


def test_folders_of_classes_are_packed(tmp_path):
    pack(ImageNet(write_folders(tmp_path / "a", splits=True)), tmp_path / "out", OPTIONS, workers=1)
    assert packed_pixels(tmp_path / "out/train") == pixels_of(IMAGES)
    assert packed_pixels(tmp_path / "out/val") == pixels_of(VAL_IMAGES)
    result = pack(ImageNet(write_folders(tmp_path / "b", splits=False)), tmp_path / "one", OPTIONS, workers=1)
    assert list(result.manifests) == ["train"]
    assert packed_pixels(tmp_path / "one/train") == pixels_of(IMAGES)
    assert result.manifests["train"].source["name"] == "imagenet"


def test_a_holdout_next_to_an_official_val_is_refused(tmp_path):
    root = write_official(tmp_path / "in")
    options = PackOptions(size=16, holdout=0.25)
    with pytest.raises(FastDPSError, match="this source has train, val"):
        pack(ImageNet(root), tmp_path / "out", options)
    result = pack(ImageNet(root), tmp_path / "out", options, splits=["train"], workers=1)
    assert {name: manifest.samples for name, manifest in result.manifests.items()} == {"train": 9, "val": 3}


def test_overwriting_one_split_leaves_the_others(tmp_path):
    root = write_official(tmp_path / "in")
    pack(ImageNet(root), tmp_path / "out", OPTIONS, workers=1)
    before = digests(tmp_path / "out")
    (tmp_path / "out/train/shard-000000.tar").write_bytes(b"left alone")
    pack(ImageNet(root), tmp_path / "out", OPTIONS, splits=["val"], workers=1, overwrite=True)
    assert (tmp_path / "out/train/shard-000000.tar").read_bytes() == b"left alone"
    pack(ImageNet(root), tmp_path / "out", OPTIONS, splits=["train"], workers=1, overwrite=True)
    assert digests(tmp_path / "out") == before


def test_the_order_mixes_the_classes(tmp_path):
    images = {f"{number:03d}.JPEG": jpeg(number) for number in range(30)}
    inner = {f"{synset}.tar": tar_of({f"{synset}_{name}": data for name, data in images.items()}) for synset in CLASSES}
    (tmp_path / "x.tar").write_bytes(tar_of(inner))
    source = TarImages(tmp_path / "x.tar", "imagenet")
    assert [source.name(item).split("/")[0] for item in source.items()] == [
        f"{synset}.tar" for synset in CLASSES for _ in range(30)
    ]  # in the order of the file, which the plan then shuffles
    pack(source, tmp_path / "out", PackOptions(size=16), workers=1)
    assert len(read_images(tmp_path / "out/train", 16)) == 90


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_tar_and_long_names_in_unicode(tmp_path, form):
    name = "ネコ/" + "long" * 20 + "/" + "x" * 60 + ".JPEG" if form != tarfile.USTAR_FORMAT else "ü.JPEG"
    (tmp_path / "x.tar").write_bytes(tar_of({"c.tar": tar_of({name: jpeg(0), "b.JPEG": jpeg(1)}, form)}, form))
    source = TarImages(tmp_path / "x.tar", "imagenet")
    items = source.items()
    assert [source.name(item) for item in items] == [f"c.tar/{name}", "c.tar/b.JPEG"]
    assert [source.read(item)["image"] for item in items] == [jpeg(0), jpeg(1)]


def rejects(directory):
    return {line["item"]: line["reason"] for line in read_lines(directory / "rejects.jsonl")}


def test_names_that_lead_out_of_the_tar_are_names_and_nothing_else(tmp_path):
    evil = {"/abs/evil.JPEG": jpeg(0), "../../evil.JPEG": jpeg(1), "./c/../../evil.JPEG": jpeg(2)}
    (tmp_path / "deep/in").mkdir(parents=True)
    (tmp_path / "deep/in/x.tar").write_bytes(tar_of({"../../c.tar": tar_of(evil), **evil}))
    before = digests(tmp_path)
    pack(ImageNet(tmp_path / "deep/in/x.tar"), tmp_path / "out", OPTIONS, workers=1)
    assert packed_pixels(tmp_path / "out/train") == sorted(2 * pixels_of(evil))
    assert {name for name in digests(tmp_path) if not name.startswith("out/")} == set(before)
    assert not os.path.exists("/abs/evil.JPEG")


@pytest.mark.parametrize("left", [0, 300, 512, 1000, "boundary", "no end"])
def test_an_inner_tar_that_is_cut_off_is_rejected_and_the_rest_packed(tmp_path, left):
    cut = tar_of(class_images(CLASSES[1]))
    with tarfile.open(fileobj=io.BytesIO(cut)) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    length = {"boundary": members[2].offset, "no end": end}.get(left, left)
    inner = {f"{synset}.tar": tar_of(class_images(synset)) for synset in CLASSES}
    inner[f"{CLASSES[1]}.tar"] = cut[:length]
    (tmp_path / "x.tar").write_bytes(tar_of(inner))
    pack(ImageNet(tmp_path / "x.tar"), tmp_path / "out", OPTIONS, workers=1)
    whole = {m.name: IMAGES[m.name] for m in members if m.offset_data + m.size <= length}
    others = {name: data for name, data in IMAGES.items() if CLASSES[1] not in name}
    assert packed_pixels(tmp_path / "out/train") == pixels_of(others | whole)
    reasons = rejects(tmp_path / "out/train")
    assert "it ends after" in reasons.pop(f"{CLASSES[1]}.tar")
    assert all("is truncated" in reason for reason in reasons.values())
    assert len(reasons) == (1 if left in (512, 1000) else 0)


def test_a_damaged_header_in_an_inner_tar_is_not_its_end(tmp_path):
    data = bytearray(tar_of(class_images(CLASSES[0])))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        data[tar.getmembers()[1].offset + 20] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(tar_of({"a.tar": bytes(data), "b.tar": tar_of(class_images(CLASSES[1]))}))
    pack(ImageNet(tmp_path / "x.tar"), tmp_path / "out", OPTIONS, workers=1)
    assert list(rejects(tmp_path / "out/train")) == ["a.tar"]
    assert len(read_images(tmp_path / "out/train", 16)) == 5


@pytest.mark.parametrize("left", [0.3, 0.5, 0.7])
def test_an_outer_tar_that_is_cut_off_is_an_error(tmp_path, left):
    path = write_official(tmp_path / "in") / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(
        FastDPSError, match=r"ILSVRC2012_img_train\.tar is not an uncompressed tar file, or is truncated"
    ):
        pack(ImageNet(tmp_path / "in"), tmp_path / "out", OPTIONS)


def test_links_and_odd_members(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (
            ("link.JPEG", tarfile.SYMTYPE),
            ("hard.JPEG", tarfile.LNKTYPE),
            ("dir.JPEG", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name, data in {"readme.txt": b"text", "a.JPEG": jpeg(0), "empty.JPEG": b""}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pack(ImageNet(tmp_path / "x.tar"), tmp_path / "out", PackOptions(size=16, max_rejects=1), workers=1)
    reasons = rejects(tmp_path / "out/train")
    assert set(reasons) == {"link.JPEG", "hard.JPEG", "empty.JPEG"}
    assert "is a link" in reasons["link.JPEG"]
    assert packed_pixels(tmp_path / "out/train") == pixels_of({"": jpeg(0)})


def test_a_member_too_large_for_an_image_is_rejected_unread(tmp_path):
    path = write_official(tmp_path / "in") / "ILSVRC2012_img_val.tar"
    source = TarImages(path, "imagenet")
    with pytest.raises(UnreadableItemError, match="an image may have at most 268,435,456"):
        source.read(source.items()[0]._replace(size=MAX_FILE_BYTES + 1))


def test_what_is_no_tar_or_has_no_images_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "gz.tar", "w:gz"):
        pass
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "none.tar").write_bytes(tar_of({"readme.txt": b"text"}))
    for name, what in (
        ("gz", "not an uncompressed tar"),
        ("text", "not an uncompressed tar"),
        ("none", "contains no images"),
    ):
        with pytest.raises(FastDPSError, match=what):
            TarImages(tmp_path / f"{name}.tar", "imagenet").items()
    with pytest.raises(FastDPSError, match="is not a directory"):
        ImageNet(tmp_path / "nowhere").splits()


def test_a_tar_that_goes_away_or_shrinks_is_an_error(tmp_path):
    path = write_official(tmp_path / "in") / "ILSVRC2012_img_val.tar"
    source = TarImages(path, "imagenet")
    items = source.items()
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FastDPSError, match="has become shorter: it no longer contains"):
        source.read(items[-1])
    path.unlink()
    with pytest.raises(FastDPSError, match="can no longer be read"):
        source.read(items[0])
