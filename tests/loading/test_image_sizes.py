"""Images of another size than the manifest states: an error in both loaders that names sample and shard."""

import pytest

from fastdps.errors import SampleError
from fastdps.packing.verify import check_set
from fastdps.shards.images import header_fault
from helpers.packed import encoded, photo
from helpers.shard_sets import open_set, write_set

SIZE = (24, 32)
FORMS = {"JPEG": ("jpg", "jpeg"), "PNG": ("png", "png")}


def write(directory, form: str, other: bytes):
    extension, encoding = FORMS[form]
    samples = [{extension: encoded(photo(*SIZE, seed), form)} for seed in range(6)]
    samples[4] = {extension: other}
    return write_set(directory, samples, [3, 3], encoding=encoding, image_size=SIZE)


@pytest.mark.parametrize("size", [None, (16, 16), (48, 64)])
@pytest.mark.parametrize("other", [(24, 33), (25, 32), (32, 24), (8, 8)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_another_size_is_an_error(tmp_path, loader, form, other, size):
    directory = write(tmp_path / "set", form, encoded(photo(*other), form))
    batches = open_set(directory, batch_size=2, seed=None, size=size, loader=loader).epoch(0)
    assert [next(batches).ids.tolist() for _ in range(2)] == [[0, 1], [2, 3]]  # what comes before is delivered
    sample = rf"sample 4 \(000000004\.{FORMS[form][0]} in .*shard-000001\.tar\)"
    with pytest.raises(
        SampleError, match=rf"{sample} .* {other[1]} x {other[0]} pixels, and the manifest states 32 x 24"
    ):
        next(batches)
    assert any(f"{other[1]} x {other[0]} pixels, not 32 x 24" in str(problem) for problem in check_set(directory))


def test_jpegs_that_pillow_decodes_are_checked(tmp_path, loader):
    directory = write(tmp_path / "set", "JPEG", encoded(photo(24, 33), "JPEG", mode="CMYK"))
    with pytest.raises(SampleError, match=r"sample 4 .* 33 x 24 pixels"):
        list(open_set(directory, batch_size=2, seed=None, loader=loader).epoch(0))


def test_sets_without_a_size_take_any(tmp_path, loader):
    samples = [{"jpg": encoded(photo(20 + number, 30 - number), "JPEG")} for number in range(6)]
    directory = write_set(tmp_path / "set", samples, [6], encoding="keep", image_size=None)
    (batch,) = open_set(directory, batch_size=6, size=16, loader=loader).epoch(0)
    assert batch.images.shape == (6, 16, 16, 3)


def test_the_header_of_an_image_of_the_stated_size_has_no_fault():
    for form in FORMS:
        data = encoded(photo(*SIZE), form)
        assert header_fault(data, SIZE) is header_fault(data) is None
        assert "32 x 24 pixels, and the manifest states 24 x 32" in (header_fault(data, SIZE[::-1]) or "")
