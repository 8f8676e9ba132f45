"""The facts of one file: quick hash, container, codec, rate, channels, duration by header.

Runs in child processes of `probe_pool`. Imports neither torch nor ray nor numpy, so that they start fast.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import av

from stages.label.decoding.opening import NO_AUDIO, likely_s, open_audio, whole
from stages.label.decoding.quick import MIB, hash_ends, read_at
from stages.label.decoding.tags import OGG, View

S3 = b"s3://"
UNREADABLE = "unreadable: "  # begins reasons that the next scan tries again


def recording_id(name: bytes, size: int, quick: str, sha256: str = "") -> str:
    """16 hex digits from a recording's name below its root and its content, never from a position. The whole
    file's `sha256` is a part where the quick hash alone would give two contents one id."""
    parts = [name, str(size).encode(), quick.encode()] + ([sha256.encode()] if sha256 else [])
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def answer(probe: Callable[[bytes], dict], request: dict, send: Callable[[bytes, bytes], None]) -> None:
    """Send `probe`'s facts of each of request["paths"]: JSON in a message E. The one place where whatever a
    decoder raises becomes an outcome."""
    for path in request["paths"]:
        try:
            facts = probe(os.fsencode(path))
        except MemoryError:
            raise
        except Exception as error:
            facts = {"reason": f"decoder failed: {type(error).__name__}: {error}"}
        send(b"E", json.dumps(facts).encode())


def probe(path: bytes) -> dict[str, Any]:
    """Facts of a file, local or `s3://bucket/key`: columns of the catalog. `reason` is null, or why the file
    is rejected: the decoder's own words, or `unreadable: …`. Raises nothing about the file."""
    facts = dict(quick=None, container=None, codec=None, rate_hz=0, channels=0, duration_s=0.0, reason=None)
    try:
        with open_bytes(path) as raw:
            facts["size"] = size = raw.seek(0, os.SEEK_END)
            if not path.startswith(S3):  # whose listing has the time
                facts["mtime_ns"] = os.fstat(raw.fileno()).st_mtime_ns
            if size == 0:
                return facts | {"reason": "empty file"}
            facts["quick"], head, tail = hash_ends(raw, size)
            if len(head) != len(tail) or len(head) < min(MIB, size):
                raise OSError("file became shorter while it was read")
            source = _Source(raw, size, head, tail)
            try:
                facts |= header(source, size)
            except (av.FFmpegError, ValueError) as error:
                if source.error is not None:  # a fault of the disk, not of the file
                    raise source.error from None
                opened = isinstance(error, ValueError) and not isinstance(error, av.FFmpegError)
                facts["reason"] = words(error) if opened else f"{NO_AUDIO}: {words(error)}"
    except OSError as error:
        facts |= {"quick": None, "reason": UNREADABLE + words(error)}
    return facts


def header(source: Any, size: int) -> dict[str, Any]:
    """Container, default audio track and likely length. Raises av.FFmpegError, or ValueError when there is
    no audio."""
    view = whole(source, size)
    try:
        container, stream, _ = open_audio(view)
    except (av.FFmpegError, ValueError):
        start = size - view.size
        if read_at(source, start, len(OGG)) != OGG:
            raise
        from stages.label.decoding import ogg  # and numpy

        view = View(source, ogg.links(source, start, size)[:1])  # the first that holds sound
        container, stream, _ = open_audio(view)
    with container:
        context = stream.codec_context
        seconds, taken_from = likely_s(container, stream, view)
        return {
            "container": container.format.name,
            "codec": context.codec.canonical_name,
            "rate_hz": int(context.sample_rate or 0),
            "channels": int(context.channels or 0),
            "duration_s": seconds,
            "duration_from": taken_from,
        }


def full_sha256(path: bytes) -> str:
    """sha256 of the whole file; raises OSError."""
    digest = hashlib.sha256()
    with open_bytes(path) as raw:
        while block := raw.read(4 * MIB):
            digest.update(block)
    return digest.hexdigest()


def open_bytes(path: bytes) -> BinaryIO:
    """A seekable reader of a local path or an S3 object; raises OSError."""
    return s3().open_input_file(path[len(S3) :].decode()) if path.startswith(S3) else open(path, "rb")


@functools.cache
def s3() -> Any:
    """This process's S3 file system: opening it, and importing Arrow, take longer than a probe."""
    from stages.shards.storage import s3_filesystem

    return s3_filesystem()


def words(error: Exception) -> str:
    """An error's message without the path: one line, equal for equal faults."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


class _Source:
    """A file for FFmpeg. Its ends come from memory, so that S3 gets two requests, not dozens.

    error: a failed read, which FFmpeg would report as bad content."""

    def __init__(self, raw: BinaryIO, size: int, head: bytes, tail: bytes):
        self._raw, self._size, self._head, self._tail = raw, size, head, tail
        self._at = 0
        self.error: OSError | None = None

    def read(self, count: int) -> bytes:
        tail_at = self._size - len(self._tail)
        if self._at < len(self._head):
            block = self._head[self._at : self._at + count]
        elif self._at >= tail_at:
            block = self._tail[self._at - tail_at :][:count]
        else:
            try:
                self._raw.seek(self._at)
                block = self._raw.read(min(count, tail_at - self._at))
            except OSError as error:
                self.error = error
                raise
        self._at += len(block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            return -1
        self._at = at
        return at

    def tell(self) -> int:
        return self._at
