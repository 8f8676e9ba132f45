"""A recording of the plan, and the check that its bytes are those that were scanned and could all be read."""

import hashlib
import os
import stat
import threading
from dataclasses import dataclass

from stages.label.base import ReadError
from stages.label.decoding.quick import MIB, hash_ends
from stages.shards.names import printable


@dataclass(frozen=True)
class Source:
    """One recording of the plan, as it was when it was scanned."""

    recording: str  # id, the first part of every key
    path_bytes: bytes  # os.fsencode(path), or an s3:// address
    size: int  # bytes
    mtime_ns: int  # 0 where the store has none
    quick: str  # `quick_hash` at the scan

    @property
    def remote(self) -> bool:
        return self.path_bytes.startswith(b"s3://")

    @property
    def shown(self) -> str:
        """The path for people: any bytes, as printable text."""
        return printable(os.fsdecode(self.path_bytes))


def quick_hash(path: str | bytes | os.PathLike) -> str:
    """`hash_ends` of a file; one shorter than 1 MiB counts twice, whole. Raises `OSError`."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return hash_ends(file, size)[0]


class SourceHasher:
    """Reads the whole file in a thread while it is decoded: its sha256, or why it cannot be read.

    Only a file that was read to its end may be rejected: everything else is a read error."""

    def __init__(self, source: Source, path: bytes):
        self._source, self._path = source, path
        self._changed = ReadError(f"{source.shown}: changed since it was scanned; run the same command again")
        self._read, self._stop = 0, False
        self._sha256, self._error = None, None
        try:
            self._check()  # a changed file is not worth decoding
        except OSError as error:
            raise unreadable(source, error) from error
        self._thread = threading.Thread(target=self._run, name="source-hasher", daemon=True)
        self._thread.start()

    def result(self, patience_s: float) -> str:
        """The file's sha256 in hex, waiting while bytes still arrive.

        Raises `ReadError`: unreadable, changed since the scan, or no byte for `patience_s`."""
        while self._thread.is_alive():
            before = self._read
            self._thread.join(patience_s)
            if self._thread.is_alive() and self._read == before:
                raise ReadError(f"{self._source.shown}: no bytes for {patience_s:g} s")
        if self._error is not None:
            raise self._error
        return self._sha256

    def close(self) -> None:
        """Give up reading; the thread ends at its next chunk."""
        self._stop = True

    def _run(self) -> None:
        try:
            self._sha256 = self._whole()
        except (ReadError, OSError, MemoryError) as error:
            self._error = error if isinstance(error, ReadError) else unreadable(self._source, error)

    def _whole(self) -> str:
        if quick_hash(self._path) != self._source.quick:
            raise self._changed
        digest, chunk = hashlib.sha256(), memoryview(bytearray(MIB))
        with open(self._path, "rb", buffering=0) as file:
            while not self._stop and (count := file.readinto(chunk)):
                digest.update(chunk[:count])
                self._read += count
        if not self._stop and self._read != self._source.size:
            raise self._changed
        self._check()  # it may have been written to while it was decoded
        return digest.hexdigest()

    def _check(self) -> None:
        source, seen = self._source, os.stat(self._path)
        timed = source.mtime_ns and not source.remote  # a fetched copy has a time of its own
        known = (source.size, source.mtime_ns if timed else seen.st_mtime_ns)
        if not stat.S_ISREG(seen.st_mode) or (seen.st_size, seen.st_mtime_ns) != known:
            raise self._changed


def unreadable(source: Source, error: BaseException) -> ReadError:
    """A `ReadError` that names the path and the errno."""
    number = getattr(error, "errno", None)
    words = f"errno {number}, {os.strerror(number)}" if number else f"{type(error).__name__}: {error}"
    return ReadError(f"{source.shown}: cannot be read ({words})")
