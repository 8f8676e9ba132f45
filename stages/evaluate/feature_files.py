"""Features on disk: a safetensors file for each recording, which says what it was made from, and the one file
into which they may be joined."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.config import require
from stages.shards.storage import Storage

TENSOR = "features"
ROW = ("path", "shape", "features", "about")
GROUP_BYTES = 64 << 20  # of a row group


def write(storage: Storage, name: str, value: Tensor, about: dict[str, str]) -> None:
    with storage.attempt(name) as path:
        save_file({TENSOR: value.contiguous()}, path, about)


def header(storage: Storage, name: str) -> tuple[list[int], dict[str, str]] | None:
    """Shape, and what `write` was told; None where there is no such file."""
    try:
        with storage.open(name) as file:
            found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return found[TENSOR]["shape"], found["__metadata__"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def remove(parts: Storage) -> None:
    parts.sweep("")
    for name in parts.names(""):
        parts.delete(name)
    if parts.is_local:
        parts.local("").rmdir()


def join_safetensors(parts: Storage, names: dict[str, str], out: Storage, to: str, about: dict) -> None:
    """A tensor a recording. Parts are mapped: a corpus's features are larger than memory."""
    with contextlib.ExitStack() as stack, out.attempt(to) as path:
        place = {name: stack.enter_context(parts.fetched(part)) for name, part in names.items()}
        save_file({name: load_file(part)[TENSOR] for name, part in place.items()}, path, about)


def join_parquet(parts: Storage, names: dict[str, str], out: Storage, to: str) -> None:
    """A row a recording: its path, shape, features as one list, and what they were made from, as JSON."""
    with out.attempt(to) as path, contextlib.ExitStack() as stack:
        writer, held, size = None, [], 0
        for left, (name, part) in zip(range(len(names) - 1, -1, -1), names.items(), strict=True):
            table = _row(parts, name, part)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
            held, size = [*held, table], size + table.nbytes
            if not left or size >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(held).combine_chunks())
                held, size = [], 0
        stack.close()  # before the attempt gets its name


def _row(parts: Storage, name: str, part: str) -> pa.Table:
    with parts.fetched(part) as place:
        value = load_file(place)[TENSOR].numpy()
    values = pa.array(value.ravel())
    row = {
        "path": pa.array([name]),
        "shape": pa.array([list(value.shape)], pa.list_(pa.int32())),
        "features": pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values),
        "about": pa.array([json.dumps(header(parts, part)[1])]),
    }
    return pa.table(row)


def split_parquet(out: Storage, name: str, parts: Storage, names: dict[str, str]) -> None:
    """The rows of a file that `join_parquet` wrote become parts again, so that they need not be made anew."""
    if not out.exists(name):
        return
    with out.fetched(name) as path, pq.ParquetFile(path) as file:
        require(
            set(ROW) <= set(file.schema_arrow.names), "--out", name, "a parquet of other columns is there"
        )
        for batch in (file.read_row_group(number) for number in range(file.num_row_groups)):
            for i, path_of in enumerate(batch["path"].to_pylist()):
                part = names.get(path_of)
                if part and not parts.exists(part):
                    values = batch["features"][i].values.to_numpy(zero_copy_only=False)
                    value = torch.from_numpy(values.copy()).view(*batch["shape"][i].as_py())
                    write(parts, part, value, json.loads(batch["about"][i].as_py()))
