"""Tables in Parquet: those of a shard set, and those of users. The only module that imports pyarrow.

The tables of a set are not compressed, and columns of integers and of few different values are encoded compactly. So
the memory of a reader is bounded by the size that the manifest states, and the bytes depend on the content and the
version of pyarrow only. pyarrow is imported on first use, so that commands start fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import FastDPSError, ShardError
from fastdps.shards.format import Table
from fastdps.shards.parquet_footer import UNCOMPRESSED, codecs
from fastdps.shards.storage import Location, Store

#: Rows that are written or read at a time.
GROUP_ROWS = 1 << 20
BATCH_ROWS = 1 << 14

#: The type of a column: int64, float64, string, or a string that may be missing. Only the last one may have nulls.
Type = Literal["int64", "float64", "text", "text?"]


class Texts(NamedTuple):
    """A column of texts.

    Attributes:
        indices: For each row the index in `values`, int64; -1 where the text is missing.
        values: The different texts.
    """

    indices: NDArray[np.int64]
    values: tuple[str, ...]

    def to_list(self) -> list[str | None]:
        """Return the text of each row."""
        values: list[str | None] = [*self.values, None]
        return [values[index] for index in self.indices.tolist()]


#: The content of a column.
Column = NDArray[Any] | Texts | Sequence[str]


def parquet_bytes(columns: Mapping[str, Column], schema: Mapping[str, Type]) -> bytes:
    """Return a table as a Parquet file. The same content gives the same bytes.

    Args:
        columns: The columns by name.
        schema: The type of each column, in the order of the file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    arrays, repeated, delta = [], [], {}
    for name, kind in schema.items():
        values = columns[name]
        if isinstance(values, Texts):
            dictionary = pa.array(values.values, pa.string())
            missing = values.indices < 0
            indices = pa.array(np.where(missing, 0, values.indices), pa.int64(), mask=missing)
            arrays.append(dictionary.take(indices) if len(dictionary) else pa.nulls(len(missing), pa.string()))
        else:
            arrays.append(pa.array(values, _type(kind)))
        if kind == "int64" and _ascends(values):
            delta[name] = "DELTA_BINARY_PACKED"
        elif kind != "text":
            repeated.append(name)
    fields = [pa.field(name, _type(kind), nullable=kind == "text?") for name, kind in schema.items()]
    sink = pa.BufferOutputStream()
    parquet.write_table(
        pa.Table.from_arrays(arrays, schema=pa.schema(fields)),
        sink,
        row_group_size=GROUP_ROWS,
        version="2.6",
        data_page_version="1.0",
        compression="none",
        use_dictionary=repeated,
        column_encoding=delta,
        write_statistics=False,
        store_schema=False,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _ascends(values: Column) -> bool:
    """Return True for integers that do not descend, such as ids and row numbers."""
    return isinstance(values, np.ndarray) and bool((values[1:] >= values[:-1]).all())


def _type(kind: Type) -> Any:
    import pyarrow as pa

    return {"int64": pa.int64(), "float64": pa.float64()}.get(kind, pa.string())


def table_of(content: bytes, rows: int) -> Table:
    """Return the entry of a table in the manifest."""
    return Table(rows, len(content), hashlib.sha256(content).hexdigest())


def read_table(location: Location, name: str, table: Table, schema: Mapping[str, Type]) -> dict[str, Any]:
    """Read a table of a shard set, after its size and checksum are verified.

    Args:
        location: The directory or URL of the set.
        name: The file name.
        table: The entry in the manifest.
        schema: The columns to read, and their types. Further columns are ignored.

    Returns:
        The columns by name: arrays, and `Texts` for texts.

    Raises:
        ShardError: The file is missing, is not the one of the manifest, or does not have these columns and rows.
    """
    path = location / name
    content = _read(location, name, table)
    if (size := len(content)) != table.bytes:
        raise ShardError(f"{path} has {size:,} bytes, and the manifest says {table.bytes:,}. {_REMEDY}")
    if hashlib.sha256(content).hexdigest() != table.sha256:
        raise ShardError(f"{path} does not have the checksum of the manifest: its bytes have changed. {_REMEDY}")
    try:
        return _columns(content, schema, table.rows)
    except ValueError as error:
        raise ShardError(f"{path} {error}. {_REMEDY}") from error


_REMEDY = "Restore the file or pack the set again."


def _read(location: Location, name: str, table: Table) -> bytes:
    """Return the content of a table, of at most one byte more than the manifest says."""
    if isinstance(location, Store):
        return b"".join(location.pieces(name, table.bytes))
    path = location / name
    try:
        with path.open("rb") as file:
            return file.read(table.bytes + 1)
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}. {_REMEDY}") from error


def _columns(content: bytes, schema: Mapping[str, Type], rows: int) -> dict[str, Any]:
    """Return the columns of a Parquet file. Raises `ValueError`, whose message follows the name of the file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if codecs(content) - {UNCOMPRESSED}:
            raise ValueError("is compressed, and tables of shard sets are not")
        metadata = parquet.read_metadata(pa.BufferReader(content))
        if metadata.num_rows != rows:
            raise ValueError(f"has {metadata.num_rows:,} rows, and the manifest says {rows:,}")
        found = metadata.schema.to_arrow_schema()
        for name, kind in schema.items():
            if name not in found.names:
                raise ValueError(f"lacks the column {name}")
            if (type_ := found.field(name).type) != _type(kind):
                raise ValueError(f"has {type_} in the column {name}, expected {_type(kind)}")
        texts = [name for name, kind in schema.items() if kind.startswith("text")]
        file = parquet.ParquetFile(pa.BufferReader(content), metadata=metadata, read_dictionary=texts)
        table = file.read(columns=list(schema))
        table.validate(full=True)  # indices of texts, which pyarrow does not check when it reads them
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"is not a sound Parquet file: {error}") from error
    if table.num_rows != rows:
        raise ValueError(f"has {table.num_rows:,} rows, and its footer says {rows:,}")
    return {name: _values(table.column(name), name, kind) for name, kind in schema.items()}


def _values(column: Any, name: str, kind: Type) -> Any:
    import pyarrow as pa

    if column.null_count and kind != "text?":
        raise ValueError(f"has {column.null_count:,} rows without {name}")
    if not kind.startswith("text"):
        return column.to_numpy()
    if not column.num_chunks:
        return Texts(np.empty(0, np.int64), ())
    chunk = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    indices = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Texts(indices, tuple(chunk.dictionary.to_pylist()))


class ParquetRows:
    """The rows of a Parquet file of the user.

    Args:
        path: The file.

    Attributes:
        columns: The names of the columns.

    Raises:
        FastDPSError: The file cannot be read, or is not a Parquet file.
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        with _source_errors(path):
            self._file = parquet.ParquetFile(path)
            self.columns: list[str] = list(self._file.schema_arrow.names)
        self._path = path

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the values of some columns for each row; None where one is missing."""
        with _source_errors(self._path):
            for batch in self._file.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()


@contextmanager
def _source_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a user's file into a `FastDPSError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FastDPSError(f"the source {path} cannot be read as Parquet: {reason}.") from error
