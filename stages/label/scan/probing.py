"""What one file says of itself: quick hash, container, codec, rate, channels, duration by header.

Runs in processes of its own (`prober`), where a header that crashes or hangs the decoder costs one
file. Imports neither torch nor ray: such a process starts in a fraction of a second.
"""

import hashlib
import math
import os
from typing import Any, BinaryIO

import av

MIB = 1 << 20
UNREADABLE = "unreadable: "  # begins the reasons that say nothing of the content; tried again next scan


def recording_id(name: bytes, size: int, quick: str, sha256: str = "") -> str:
    """16 hex digits from a recording's name below its root and its content, never from a position.

    `sha256` of the whole file joins when the quick hash alone would give two contents one id.
    """
    parts = [name, str(size).encode(), quick.encode()] + ([sha256.encode()] if sha256 else [])
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def probe(path: bytes) -> dict[str, Any]:
    """Facts of one file, local or `s3://bucket/key`: columns of the catalog.

    `reason` is null, or why the file is rejected: the decoder's own words, or `unreadable: …` when
    the bytes could not be read. Raises nothing about the file.
    """
    facts: dict[str, Any] = {"quick": None, "container": None, "codec": None}
    facts |= {"rate_hz": 0, "channels": 0, "duration_s": 0.0, "reason": None}
    try:
        with open_bytes(path) as raw:
            facts |= stat_of(path, raw)
            if facts["size"] == 0:
                return facts | {"reason": "empty file"}
            head, tail = read_ends(raw, facts["size"])
            facts["quick"] = quick_hash(head, tail, facts["size"])
            source = _Source(raw, facts["size"], head, tail)
            try:
                facts |= header(source)
            except (av.FFmpegError, ValueError) as error:
                if source.error is not None:  # the disk's fault, not the file's
                    raise source.error from None
                facts["reason"] = words(error)
    except OSError as error:
        facts |= {"quick": None, "reason": UNREADABLE + words(error)}
    return facts


def header(source: Any) -> dict[str, Any]:
    """Container and first audio stream. Raises av.FFmpegError, or ValueError when there is no audio."""
    # The container is sniffed: names lie, and bytes reach FFmpeg without one. No protocol is allowed,
    # so a playlist cannot open other files; tags in any encoding must not cost a recording.
    options = {"protocol_whitelist": "none"}
    with av.open(source, metadata_errors="replace", container_options=options) as container:
        if not container.streams.audio:
            raise ValueError("no audio stream")
        stream = container.streams.audio[0]
        context = stream.codec_context
        if context is None:
            raise ValueError("no decoder for its audio stream")
        seconds = 0.0
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / av.time_base
        return {
            "container": container.format.name,
            "codec": context.codec.canonical_name,
            "rate_hz": int(context.sample_rate or 0),
            "channels": int(context.channels or 0),
            "duration_s": seconds if math.isfinite(seconds) and seconds > 0 else 0.0,
        }


def read_ends(raw: BinaryIO, size: int) -> tuple[bytes, bytes]:
    """The first and the last MiB; they overlap in files under 2 MiB. Raises OSError."""
    ends = []
    for start in (0, max(0, size - MIB)):
        raw.seek(start)
        ends.append(raw.read(min(MIB, size)))
        if len(ends[-1]) != min(MIB, size):
            raise OSError("file became shorter while it was read")
    return ends[0], ends[1]


def quick_hash(head: bytes, tail: bytes, size: int) -> str:
    """sha256 of the first MiB, the last MiB and the size."""
    digest = hashlib.sha256(head)
    digest.update(tail)
    digest.update(str(size).encode())
    return digest.hexdigest()


def full_sha256(path: bytes) -> str:
    """sha256 of the whole file; raises OSError."""
    digest = hashlib.sha256()
    with open_bytes(path) as raw:
        while block := raw.read(4 * MIB):
            digest.update(block)
    return digest.hexdigest()


def open_bytes(path: bytes) -> BinaryIO:
    """A seekable reader of a local path or an S3 object; raises OSError."""
    if path.startswith(b"s3://"):
        return s3().open_input_file(path[len(b"s3://") :].decode())
    return open(path, "rb")


def stat_of(path: bytes, raw: Any) -> dict[str, int]:
    """Size of what is open, and the mtime where the handle knows it (S3: the listing knows it)."""
    if path.startswith(b"s3://"):
        return {"size": raw.size()}
    stat = os.fstat(raw.fileno())
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


_s3: list = []  # one connection pool a process: opening one takes longer than a probe


def s3() -> Any:
    """This process's S3 file system. Arrow is imported only where it is needed."""
    if not _s3:
        from stages.shards.storage import s3_filesystem

        _s3.append(s3_filesystem())
    return _s3[0]


def words(error: Exception) -> str:
    """What an error says, without the path: one line, equal for equal faults."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


class _Source:
    """A nameless file for FFmpeg: its ends from memory, so that S3 is asked twice, not dozens of times.

    `error` keeps a failed read: FFmpeg would report it as if the content were bad.
    """

    name = ""

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
        place = offset + (0, self._at, self._size)[whence]
        if place < 0:
            return -1
        self._at = place
        return place

    def tell(self) -> int:
        return self._at
