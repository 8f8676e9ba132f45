"""A recording as the plan knows it, and the witness that its bytes are those and could all be read."""

import hashlib
import os
import stat
import threading
from dataclasses import dataclass

from stages.label.base import ReadError

MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """One recording of the plan: where it lies and how it looked when it was scanned."""

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
        return self.path_bytes.decode("utf-8", "backslashreplace")


def quick_hash(path: str | bytes | os.PathLike) -> str:
    """Hex sha256 of the first MiB, then the last MiB, then the decimal size.

    A file shorter than 1 MiB counts twice, whole. Raises `OSError`."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(_exactly(file, min(size, MIB)))
        file.seek(max(0, size - MIB))
        digest.update(_exactly(file, min(size, MIB)))
    digest.update(str(size).encode())
    return digest.hexdigest()


def _exactly(file, count: int) -> bytes:
    parts = []
    while count and (part := file.read(count)):  # network file systems give short reads
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class SourceHasher:
    """Reads the whole file in a thread, beside the decoder: its sha256, or why it cannot be read.

    Only what a witness has read to the end may be rejected: everything else is a read error."""

    def __init__(self, source: Source, path: bytes):
        self._source, self._path = source, path
        self._read, self._stop = 0, False
        self._sha256, self._error = None, None
        self._same(self._stat())  # a changed file is not worth decoding
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
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

    def stop(self) -> None:
        """Give up reading; the thread ends at its next chunk."""
        self._stop = True

    def _run(self) -> None:
        try:
            self._sha256 = self._whole()
        except ReadError as error:
            self._error = error
        except (OSError, MemoryError) as error:
            self._error = unreadable(self._source, error)

    def _whole(self) -> str:
        if quick_hash(self._path) != self._source.quick:
            raise self._changed()
        digest, chunk = hashlib.sha256(), memoryview(bytearray(MIB))
        with open(self._path, "rb", buffering=0) as file:
            while not self._stop and (count := file.readinto(chunk)):
                digest.update(chunk[:count])
                self._read += count
        if not self._stop and self._read != self._source.size:
            raise self._changed()
        self._same(self._stat())  # written to while it was decoded
        return digest.hexdigest()

    def _stat(self) -> os.stat_result:
        try:
            return os.stat(self._path)
        except OSError as error:
            raise unreadable(self._source, error) from error

    def _same(self, seen: os.stat_result) -> None:
        same = stat.S_ISREG(seen.st_mode) and seen.st_size == self._source.size
        if not self._source.remote and self._source.mtime_ns:  # a fetched copy has a time of its own
            same = same and seen.st_mtime_ns == self._source.mtime_ns
        if not same:
            raise self._changed()

    def _changed(self) -> ReadError:
        return ReadError(f"{self._source.shown}: changed since it was scanned; run the same command again")


def unreadable(source: Source, error: BaseException) -> ReadError:
    """A `ReadError` that names the path and the errno."""
    number = getattr(error, "errno", None)
    words = f"errno {number}, {os.strerror(number)}" if number else f"{type(error).__name__}: {error}"
    return ReadError(f"{source.shown}: cannot be read ({words})")
