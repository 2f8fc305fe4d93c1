"""WebDataset shards that others wrote: what is packed of them, and errors that name shard and sample."""

import io
import json
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.shards.images import UnreadableItemError
from helpers.packed import encoded, photo, read_images, read_lines, read_set

OPTIONS = PackOptions(size=16, samples_per_shard=4)
# webdataset leaves the tars open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def laion(tmp_path):
    """Shards as img2dataset writes them: three samples each, through webdataset's own writer."""
    root = tmp_path / "laion"
    root.mkdir()
    for shard in range(2):
        keys = [f"{shard:05d}{number:04d}" for number in range(3)]
        with webdataset.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for number, key in enumerate(keys):
                caption, jpg = f"photograph {key}", encoded(photo(20, 30, seed=10 * shard + number), "JPEG")
                about = json.dumps({"caption": caption, "key": key, "status": "success"}).encode()
                writer.write({"__key__": key, "jpg": jpg, "json": about, "txt": caption.encode()})
        pq.write_table(pa.table({"key": keys, "status": ["success"] * 3}), root / f"{shard:05d}.parquet")
        (root / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 3}')
    return root


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


JPEG = encoded(photo(16, 16), "JPEG")


def decoded(source):
    """The images as webdataset itself reads them."""
    urls = [str(path) for path in sorted(source.glob("*.tar"))]
    return [sample["jpg"] for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)]


def test_shards_of_img2dataset_are_packed(tmp_path, laion):
    result = pack(
        open_source("webdataset", laion), tmp_path / "out", PackOptions(size=None, encoding="keep"), workers=2
    )
    packed = [members["jpg"] for members in read_set(tmp_path / "out/train").values()]
    assert sorted(packed) == sorted(decoded(laion))
    assert result.manifests["train"].source["name"] == "webdataset"
    names = pq.read_table(tmp_path / "out/train/samples.parquet")["name"].to_pylist()
    assert sorted(names) == [f"{s:05d}.tar/{s:05d}{n:04d}.jpg" for s in range(2) for n in range(3)]


def test_one_tar_a_pattern_and_the_directory_name_the_same_samples(laion):
    one, both, all_ = (open_source("webdataset", laion / name) for name in ("00001.tar", "{00000..00001}.tar", ""))
    assert both.items() == all_.items()
    assert one.items() == all_.items()[3:]
    source, item = pickle.loads(pickle.dumps((both, both.items()[4])))  # as a worker process gets them
    assert source.read(item) == all_.read(all_.items()[4])


def test_a_component_is_chosen_among_several(tmp_path):
    other = encoded(photo(16, 16, seed=5), "PNG")
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/a.tar", [("0.jpg", JPEG), ("0.seg.png", other), ("1.JPG", JPEG), ("1.seg.png", other)])
    with pytest.raises(FastDPSError, match=r"sample 0 of the shard .*a\.tar has 2 images: jpg, seg\.png.*--component"):
        open_source("webdataset", tmp_path / "in").items()
    for component, data in (("jpg", JPEG), ("seg.png", other), ("webp;jpg", JPEG)):
        source = open_source("webdataset", tmp_path / "in", component=component)
        assert [source.read(item)["image"] for item in source.items()] == [data, data]
    pack(open_source("webdataset", tmp_path / "in", component="jpg"), tmp_path / "out", OPTIONS, workers=1)
    assert len(read_images(tmp_path / "out/train", 16)) == 2


def test_a_sample_without_a_readable_image_is_rejected_by_name(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [("0.jpg", JPEG), ("0.txt", b"x"), ("1.txt", b"gone"), ("d/2.jpg", b"no JPEG"), ("__meta__/x.jpg", JPEG)],
    )
    pack(
        open_source("webdataset", tmp_path / "a.tar"), tmp_path / "out", PackOptions(size=16, max_rejects=1), workers=1
    )
    rejects = {line["item"]: line["reason"] for line in read_lines(tmp_path / "out/train/rejects.jsonl")}
    assert set(rejects) == {"a.tar/1", "a.tar/d/2.jpg"}
    assert rejects["a.tar/1"] == "has no image: it has txt"
    source = open_source("webdataset", tmp_path / "a.tar", component="png")
    with pytest.raises(UnreadableItemError, match="has no png: it has jpg, txt"):
        source.read(source.items()[0])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("7.jpg", JPEG), ("7.jpg", JPEG)], r"a\.tar is not a WebDataset: 7\.jpg: duplicate"),
        ([("7.jpg", JPEG), ("8.jpg", JPEG), ("7.txt", b"x")], r"a\.tar has the sample 7 in two places.*--sort=name"),
        ([("README", b"x")], "contains no samples"),
    ],
)
def test_a_shard_that_is_wrong_is_named(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(FastDPSError, match=message):
        open_source("webdataset", tmp_path / "a.tar").items()


def test_a_source_without_usable_shards_says_why(tmp_path, laion):
    damaged = laion / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(FastDPSError, match=r"00001\.tar is not an uncompressed tar file, or is truncated"):
        open_source("webdataset", laion).items()
    with pytest.raises(FastDPSError, match=r"00002\.tar cannot be read: No such file"):
        open_source("webdataset", laion / "0000{0,2}.tar").items()
    (tmp_path / "gz").mkdir()
    with pytest.raises(FastDPSError, match="has no shards: no file is named"):
        open_source("webdataset", tmp_path / "gz").items()
    (tmp_path / "gz/a.tar.gz").touch()
    with pytest.raises(FastDPSError, match=r"Decompress a\.tar\.gz"):
        open_source("webdataset", tmp_path / "gz").items()
    (tmp_path / "gz/manifest.json").touch()
    with pytest.raises(FastDPSError, match="is a shard set of fastdps, packed already"):
        open_source("webdataset", tmp_path / "gz").items()
