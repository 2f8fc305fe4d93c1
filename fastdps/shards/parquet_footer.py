"""Read from the footer of a Parquet file how its columns are compressed, without pyarrow.

pyarrow 26 ends the process when a damaged footer is asked about the columns of a row group, and what it does not
refuse it decompresses to any size. The footer is a struct in Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), with the fields of `FileMetaData`
in https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from typing import Any

_MAGIC = b"PAR1"
#: Field numbers in parquet.thrift: FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data, and .codec of it.
_ROW_GROUPS, _COLUMNS, _META_DATA, _CODEC = 4, 1, 3, 4
#: The codec of data that are not compressed.
UNCOMPRESSED = 0
#: The deepest nesting of a footer is 7.
_DEEPEST = 16


def codecs(content: bytes) -> set[int]:
    """Return the codecs of all columns of a Parquet file, by their numbers in parquet.thrift.

    Args:
        content: The file.

    Raises:
        ValueError: The footer is damaged. The message follows the name of the file.
    """
    size = int.from_bytes(content[-8:-4], "little")
    if content[:4] != _MAGIC or content[-4:] != _MAGIC or not 0 < size <= len(content) - 12:
        raise ValueError("has no Parquet footer")
    try:
        footer = _Compact(content[-8 - size : -8]).struct(0)
        columns = [column for group in footer.get(_ROW_GROUPS, []) for column in group[_COLUMNS]]
        found = {column[_META_DATA][_CODEC] for column in columns}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("has a damaged footer") from error
    return found


class _Compact:
    """A reader of Thrift's compact protocol: structs become dicts by field number, numbers int, the rest bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > _DEEPEST:
            raise ValueError("has a footer that is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = divmod(header, 16)
            number = number + step if step else self._zigzag()
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # a boolean in a list, or a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            size, kind = divmod(self._byte(), 16)
            return [self._value(kind, depth + 1) for _ in range(self._varint() if size == 15 else size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"has a damaged footer, with a value of the unknown type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError("has a truncated footer")
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise ValueError("has a damaged footer, with an invalid number")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
