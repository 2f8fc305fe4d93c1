"""Headers of tars that say what cannot be: each reader ends soon and names the file."""

import io
import tarfile

import pytest

from fastdps.commands.check_shards import check_shards
from fastdps.errors import FastDPSError, ShardError
from fastdps.packing.sources.tars import TarImages
from fastdps.shards.index import index_of
from fastdps.shards.tar_headers import MAX_EXTENDED_BYTES, parse_size, read_members
from helpers.damaged_tars import NEGATIVE, SIZE, time_limit, with_field
from helpers.shard_sets import described, raw_samples, rewrite_manifest, write_set

NAME, TYPE = slice(0, 100), slice(156, 157)
SECOND = 1024  # where the header of the second member is: members have one block


@pytest.fixture(autouse=True)
def _limit():
    with time_limit(10):
        yield


@pytest.fixture
def tar(tmp_path):
    return write_set(tmp_path / "set", raw_samples(3), [3]) / "shard-000000.tar"


def index_with(tar, at, field, value):
    tar.write_bytes(with_field(tar.read_bytes(), at, field, value))
    with tar.open("rb") as file:
        return index_of(file.fileno(), tar)


@pytest.mark.parametrize("at", [0, SECOND])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        (NEGATIVE, "not an octal number"),
        (b"-0000001000", "not an octal number"),
        (b"+110", "not an octal number"),
        (b"1_10", "not an octal number"),
        (b"118", "not an octal number"),
        (b"", "not an octal number"),
        (b"0x48", "not an octal number"),
        (b"77777777777", r"0000000\d\.bin has 8589934591 bytes, and the tar ends before"),
    ],
)
def test_no_index_of_a_shard_with_an_invalid_size(tar, at, size, message):
    with pytest.raises(ShardError, match=rf"shard-000000\.tar is not a shard: at byte {at}, .*{message}.*Pack the set"):
        index_with(tar, at, SIZE, size)


@pytest.mark.parametrize(
    "name", ["../000000001.bin", "000000001", "x.bin", "1.bin", "000000001.b in", "000000001.\xff"]
)
def test_no_index_of_a_shard_with_a_name_of_no_sample(tar, name):
    with pytest.raises(ShardError, match=r"at byte 1024, .* is not the file of a sample"):
        index_with(tar, SECOND, NAME, name.encode("latin-1"))


def test_no_index_of_a_shard_with_a_link(tar):
    with pytest.raises(ShardError, match="is not the file of a sample"):
        index_with(tar, SECOND, TYPE, tarfile.SYMTYPE)


def test_no_index_of_a_shard_whose_samples_do_not_ascend(tar):
    with pytest.raises(ShardError, match="at byte 2048, sample 2 does not come after sample 7"):
        index_with(tar, SECOND, NAME, b"000000007.bin")


@pytest.mark.parametrize("field", [b"00000000110\0", b"        110 ", b"110\0\0\0\0\0\0\0\0\0"])
def test_the_ways_to_write_a_size(field):
    assert parse_size(field) == 72


@pytest.mark.parametrize("at", [0, SECOND])
@pytest.mark.parametrize("size", [NEGATIVE, b"-0000001000", b"77777777777"])
def test_a_check_ends_at_an_invalid_size(capsys, tar, at, size):
    tar.write_bytes(with_field(tar.read_bytes(), at, SIZE, size))
    rewrite_manifest(tar.parent, **described(tar, 3))
    assert check_shards([str(tar.parent)]) == 1
    assert f"{tar}: is not a valid tar file" in capsys.readouterr().out


@pytest.mark.parametrize("size", [NEGATIVE, b"-0000001000"])
def test_a_source_ends_at_an_invalid_size(tmp_path, tar, size):
    tar.write_bytes(with_field(tar.read_bytes(), SECOND, SIZE, size))
    with pytest.raises(FastDPSError, match=r"it ends after 1 members.*a size of -512 bytes"):
        TarImages(tar, "tars").items()


def test_the_smallest_negative_size_is_refused(tar):
    with pytest.raises(tarfile.TarError, match="a size of -1 bytes"):
        members(with_field(tar.read_bytes(), SECOND, SIZE, b"\xff" * 12))


def extended(kind: bytes, content: bytes, size: bytes | None = None) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(content)
    data = header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return data if size is None else with_field(data, 0, SIZE, size)


def members(data: bytes):
    return [(info.name, info.size) for info in read_members(io.BytesIO(data))]


def test_an_extended_header_cannot_give_a_negative_size(tar):
    with pytest.raises(tarfile.TarError, match="a size of -1024 bytes"):
        members(extended(tarfile.XHDTYPE, b"14 size=-1024\n") + tar.read_bytes())


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [NEGATIVE, b"\x80" + b"\x7f" * 11, b"77777777777"])
def test_an_extended_header_cannot_ask_for_much_memory(tar, kind, size):
    with pytest.raises(tarfile.TarError, match=rf"a size of -512|bytes, more than {MAX_EXTENDED_BYTES}"):
        members(extended(kind, b"", size) + tar.read_bytes())


def test_extended_headers_may_follow_each_other_only_so_far(tar):
    with pytest.raises(tarfile.TarError, match="a header is invalid"):
        members(extended(tarfile.GNUTYPE_LONGNAME, b"name") * 2000 + tar.read_bytes())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sound_members_are_those_of_tarfile(form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{'long/' * 30 * (form != tarfile.USTAR_FORMAT)}{number}.bin")
            info.size = 600 * number
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        assert members(buffer.getvalue()) == [(info.name, info.size) for info in tar.getmembers()]


@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_of_extended_headers_is_inclusive(tar, excess):
    name = b"n" * (MAX_EXTENDED_BYTES - 1 + excess) + b"\0"
    data = extended(tarfile.GNUTYPE_LONGNAME, name) + tar.read_bytes()
    if excess:
        with pytest.raises(tarfile.TarError, match=f"{len(name)} bytes, more than {MAX_EXTENDED_BYTES}"):
            members(data)
    else:
        assert members(data)[0][0] == name[:-1].decode()


def test_the_file_is_left_at_the_header_after_the_last_member(tar):
    data = tar.read_bytes()
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    file = io.BytesIO(data)
    assert len(list(read_members(file))) == 3
    assert file.tell() == end
    assert file.read(512) == bytes(512)


def test_an_index_is_that_of_tarfile(tmp_path):
    """Members of several components and sizes; the helper writes the index from `tarfile`."""
    samples = [{"p0.bin": bytes(1 + 511 * n), "p1.bin": bytes(512), "same.f32": bytes(4)} for n in range(4)]
    tar = write_set(tmp_path / "set", samples, [4], kind="pairs") / "shard-000000.tar"
    with tar.open("rb") as file:
        assert index_of(file.fileno(), tar) == tar.with_suffix(".idx").read_text()


def test_all_twelve_digits_of_a_size_are_read(tar):
    assert index_with(tar, SECOND, SIZE, b"000000000110").splitlines()[2] == "bin 1536 72 000000001.bin"
    with pytest.raises(ShardError, match="has 32760 bytes, and the tar ends before"):
        index_with(tar, SECOND, SIZE, b"000000077770")
