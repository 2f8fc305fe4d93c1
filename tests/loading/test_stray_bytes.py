"""JPEGs with bytes between the segments of their header, which DALI 2.4 cannot parse: named, packed anew, reported."""

import numpy as np
import pytest

from fastdps.errors import SampleError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.verify import check_set
from fastdps.shards.images import decode
from fastdps.shards.jpeg_segments import has_stray_bytes
from helpers.packed import encoded, photo
from helpers.shard_sets import write_set

SIZE = (48, 64)


def boundaries(data: bytes) -> list[int]:
    """Return the positions between the segments of a JPEG before its first scan."""
    found = [2]
    while data[found[-1] + 1] != 0xDA:
        found.append(found[-1] + 2 + int.from_bytes(data[found[-1] + 2 : found[-1] + 4], "big"))
    return found


def jpeg() -> bytes:
    return encoded(photo(*SIZE), "JPEG")


def with_bytes(data: bytes, at: int, stray: bytes = b"\0\0\0") -> bytes:
    return data[:at] + stray + data[at:]


def test_stray_bytes_are_found_at_each_boundary():
    data = jpeg()
    assert not has_stray_bytes(data)
    for at in boundaries(data):
        assert has_stray_bytes(with_bytes(data, at))
        assert not has_stray_bytes(with_bytes(data, at, b"\xff\xff"))  # fill bytes, which the standard allows


@pytest.mark.parametrize("number", [1, 2, -1])
def test_the_sample_is_named_before_dali_decodes_it(tmp_path, number):
    pytest.importorskip("nvidia.dali")
    good = jpeg()
    samples = [{"jpg": good} for _ in range(12)]
    samples[7] = {"jpg": with_bytes(good, boundaries(good)[number])}
    directory = write_set(tmp_path / "set", samples, [12], encoding="jpeg", image_size=SIZE)
    batches = open_shards(directory, batch_size=4, seed=None, options=LoadOptions(loader="dali")).epoch(0)
    assert next(batches).ids.tolist() == [0, 1, 2, 3]  # what comes before is still delivered
    with pytest.raises(SampleError, match=r"sample 7 \(000000007\.jpg in .*bytes that belong to no segment"):
        next(batches)
    assert any("between the segments" in str(problem) for problem in check_set(directory))


def test_keep_packs_such_a_jpeg_as_a_png(tmp_path):
    data = with_bytes(jpeg(), boundaries(jpeg())[1])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(data)
    (tmp_path / "in/b.jpg").write_bytes(jpeg())
    pack(tmp_path / "in", tmp_path / "out", PackOptions(encoding="keep", size=None), workers=1)
    index = (tmp_path / "out/train/shard-000000.idx").read_text()
    assert (index.count("png "), index.count("jpg ")) == (1, 1)
    assert np.array_equal(decode(data), decode(jpeg()))
