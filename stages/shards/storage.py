"""One folder of files, local or on an object store, in which no half-written file has a real name.

Locally a file is written under an attempt's name, flushed, and renamed. For S3 it is finished in a temporary
file, then uploaded (`objects.py`)."""

import contextlib
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from stages.shards import fetching, objects, scratch
from stages.shards.names import utf8_alias

T = TypeVar("T")
ATTEMPT = ".attempt-"  # prefix of unfinished files; a run that died leaves them


def s3_filesystem() -> pafs.FileSystem:
    """S3 for reading, by the usual variables (`objects.reached`), credentials by the AWS chain."""
    endpoint, region = objects.reached()
    options = {"connect_timeout": objects.CONNECT_S, "request_timeout": objects.REQUEST_S}
    options["retry_strategy"] = pafs.AwsStandardS3RetryStrategy(max_attempts=objects.ATTEMPTS)
    if endpoint:
        scheme = "http" if endpoint.startswith("http://") else "https"
        options |= {"endpoint_override": endpoint, "scheme": scheme}
    return pafs.S3FileSystem(**options, **({"region": region} if region else {}))


class Storage:
    """Files below one root: a local path or `s3://bucket/prefix`. Names are relative, with `/`.

    `standing`: the root exists; if it is deleted, a write fails and does not create it again."""

    def __init__(self, root: str | os.PathLike, standing: bool = False):
        self.root, self.standing = os.fspath(root).rstrip("/") or "/", standing
        self.is_local = "://" not in self.root
        if self.is_local:
            self.fs = pafs.LocalFileSystem()
            self.base = utf8_alias(os.path.abspath(self.root))
        elif self.root.startswith("s3://"):
            self.fs, self.base = s3_filesystem(), self.root.removeprefix("s3://")
        else:
            raise ValueError(
                f"OUT is {self.root!r}: only a local folder or s3://bucket/prefix can be written"
            )

    def __reduce__(self):
        return Storage, (self.root, self.standing)

    @property
    def place(self) -> str:
        """The root for other processes: an absolute path, or its s3:// address."""
        return os.path.abspath(self.root) if self.is_local else self.root

    @property
    def real(self) -> str:
        """The root without links, to be compared with others."""
        return os.path.realpath(self.root) if self.is_local else self.root

    def path(self, name: str) -> str:
        return f"{self.base}/{name}" if name else self.base

    def local(self, name: str) -> Path:
        return Path(self.path(name))

    def _listed(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.path(folder))  # plain: there may be hundreds of thousands of names
        except FileNotFoundError:
            return []

    def names(self, folder: str) -> set[str]:
        """File names in one folder; none where it is missing."""
        if self.is_local:
            return {name for name in self._listed(folder) if not name.startswith(ATTEMPT)}
        try:
            return objects.patiently(lambda: objects.names(self.path(folder)))
        except FileNotFoundError:  # the bucket
            return set()

    def is_gone(self) -> bool:
        """A local root that is no folder; an object store has no folders to lose."""
        return self.is_local and not os.path.isdir(self.base)

    def exists(self, name: str) -> bool:
        return self._info(name).type == pafs.FileType.File

    def _info(self, name: str) -> pafs.FileInfo:
        return self._patiently(lambda: self.fs.get_file_info(self.path(name)))

    def _patiently(self, read: Callable[[], T]) -> T:
        return read() if self.is_local else objects.patiently(read)

    def size(self, name: str) -> int:
        info = self._info(name)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(self.path(name))
        return info.size

    def read(self, name: str) -> bytes:
        def read() -> bytes:
            with self.open(name) as f:
                return f.read()

        return self._patiently(read)

    def open(self, name: str) -> pa.NativeFile:
        return self.fs.open_input_file(self.path(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self._patiently(lambda: pq.read_table(self.path(name), filesystem=self.fs, columns=columns))

    def delete(self, name: str) -> None:
        """Nothing where it is missing."""
        if self.is_local:
            self.local(name).unlink(missing_ok=True)
        else:
            objects.delete(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        with self.attempt(name) as path:
            path.write_bytes(data)

    def write_table(self, name: str, table: pa.Table) -> None:
        with self.attempt(name) as path:
            pq.write_table(table, path, compression="zstd")

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[Path]:
        """A local path to write to; its bytes get their name when the block ends without an exception."""
        unique = f"{ATTEMPT}{uuid.uuid4().hex}"
        if self.is_local:
            place = self.local(name)
            if not self.standing:
                os.makedirs(self.place, exist_ok=True)  # `base` may be a link to it
                place.parent.mkdir(parents=True, exist_ok=True)
            for folder in reversed(place.relative_to(self.base).parents[:-1]) if self.standing else ():
                Path(self.base, folder).mkdir(exist_ok=True)
            path = place.with_name(f"{unique}-{place.name}")
        else:
            path = scratch.folder() / unique
        try:
            yield path
            self._publish(path, name)
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, path: Path, name: str) -> None:
        if not self.is_local:
            objects.upload(self.path(name), path)
            return
        fsync(path)
        place = self.local(name)
        os.replace(path, place)
        fsync(place.parent)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A local path: the file itself, or a temporary copy."""
        with contextlib.ExitStack() as stack:

            def copied() -> Path:
                with contextlib.ExitStack() as attempt:
                    path, arrived = attempt.enter_context(self.arriving(name))
                    arrived(self.size(name))
                    stack.push(attempt.pop_all())
                    return path

            yield self._patiently(copied)

    @contextlib.contextmanager
    def arriving(self, name: str) -> Iterator[tuple[Path, Callable[[int], None]]]:
        """As `fetched`, without waiting: call the second value with the end of the bytes about to be read."""
        if self.is_local:
            yield self.local(name), lambda end: None
            return
        where = self.path(name)
        with self.fs.open_input_stream(where) as source, fetching.arriving(where, source) as arrival:
            yield arrival.path, arrival.wait

    def sweep(self, folder: str) -> int:
        """Remove the attempts of dead runs from one local folder; returns how many."""
        left = [n for n in self._listed(folder) if n.startswith(ATTEMPT)] if self.is_local else []
        for name in left:
            Path(self.path(folder), name).unlink(missing_ok=True)
        return len(left)

    def free_bytes(self) -> int | None:
        """Where this root is (or will be); None on an object store."""
        if not self.is_local:
            return None
        base = Path(self.base)
        return shutil.disk_usage(next(p for p in (base, *base.parents) if p.exists())).free


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def fields(kind: pa.DataType, names: str) -> list[pa.Field]:
    """Fields of one type for a schema; `names` are separated by spaces."""
    return [pa.field(name, kind) for name in names.split()]


def fetch_url(url: str) -> contextlib.AbstractContextManager[Path]:
    """A local path of one object's bytes, by its s3:// address."""
    folder, _, name = url.rpartition("/")
    return Storage(folder).fetched(name)
