"""A file opened for libav: tags before the audio left out, the default track chosen, its length doubted.

Imports no numpy, so that header probes start fast.
"""

import errno
import math
import os
import re
import struct
from typing import Any

import av

from stages.label.decoding.quick import read_at
from stages.label.decoding.tags import View, before_the_audio

# Streams without a table of contents: tags may stand anywhere, libav derives their length from their size.
MPEG = frozenset({"mp3", "aac"})
RAW = MPEG | {"ac3", "eac3", "dts", "loas"}
# Bits a second: fewer no encoder of this kind writes, so a header that promises a longer file is wrong.
LEAST = {"mp3": 8_000, "mp2": 8_000, "ac3": 32_000, "eac3": 32_000, "dts": 32_000}
LEAST_LOSSY, LEAST_LOSSLESS = 500, 2_000  # Opus of silence; FLAC of next to nothing
LOSSLESS = frozenset({"flac", "alac", "ape", "wavpack", "tta", "mlp", "truehd", "shorten", "tak"})
# Bits a second of music, where a header gives no length that can be: only an estimate depends on it.
USUAL = {"opus": 96_000, "vorbis": 112_000, "flac": 700_000, "alac": 700_000}
USUAL_LOSSY, USUAL_LOSSLESS = 128_000, 700_000
NO_AUDIO = "no audio that can be read"
HEADER, SIZE = "header", "size"  # what a length was taken from


class File:
    """A file for libav that remembers a read error: libav may take one for the recording's end."""

    def __init__(self, path: bytes):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 the caller closes it
        self.size = os.fstat(self._file.fileno()).st_size
        self.error: OSError | None = None
        self.close, self.tell = self._file.close, self._file.tell

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:
                self.error = error
                raise
            return -errno.EINVAL  # libav looks before the beginning of a short file


def open_audio(view: View) -> tuple[av.container.InputContainer, av.AudioStream, int]:
    """A container of these bytes, its default audio track, and how many others it has.

    Raises av.FFmpegError, or ValueError when it holds no audio that can be decoded."""
    options = {"protocol_whitelist": "none"}  # a playlist may not open other files
    # Tags in any encoding must not cost a recording.
    container = av.open(view, metadata_errors="replace", buffer_size=1 << 18, options=options)
    try:
        if not (tracks := container.streams.audio):
            raise ValueError(f"no audio stream in this {container.format.name}")
        best = container.streams.best("audio")  # as players do: None when no track says its rate
        stream = best if best is not None else tracks[0]
        if stream.codec_context is None:
            raise ValueError("no decoder for its audio stream")
        return container, stream, len(tracks) - 1
    except BaseException:
        container.close()
        raise


def whole(file: Any, size: int) -> View:
    """All of a file behind the tags that it begins with."""
    return View(file, [(before_the_audio(file, size), size)])


def header_s(container: Any, stream: Any, view: View) -> float | None:
    """The length that the header states, in seconds: None if it states none, and libav only derived it."""
    if container.format.name in RAW:
        at = view.tell()
        frames = counted_frames(read_at(view, 0, 8192))
        view.seek(at)  # where libav reads on
        rate_hz = stream.codec_context.sample_rate
        return frames * (1152 if rate_hz >= 32_000 else 576) / rate_hz if frames and rate_hz else None
    return _derived_s(container, stream)


def counted_frames(head: bytes) -> int:
    """Frames of an MPEG stream by its first one, a Xing, Info or VBRI header; 0 if that does not say."""
    for mark in (b"Xing", b"Info"):
        at = head.find(mark)
        if at >= 0 and head[at + 7 : at + 8] and head[at + 7] & 1:
            return int.from_bytes(head[at + 8 : at + 12], "big")
    at = head.find(b"VBRI")
    return int.from_bytes(head[at + 14 : at + 18], "big") if at >= 0 else 0


def likely_s(container: Any, stream: Any, view: View) -> tuple[float, str]:
    """A recording's length in seconds before it is decoded, and what it was taken from.

    A length that the file's bytes cannot hold is no length: then the size tells."""
    context, size = stream.codec_context, view.size
    codec, pcm = context.codec.canonical_name, _pcm_bits_per_s(context)
    least = pcm or LEAST.get(codec) or (LEAST_LOSSLESS if codec in LOSSLESS else LEAST_LOSSY)
    derived_s = _derived_s(container, stream)
    if derived_s is not None and derived_s <= 1.05 * 8 * size / least + 1:
        return derived_s, HEADER if header_s(container, stream, view) is not None else SIZE
    usual = USUAL.get(codec) or (USUAL_LOSSLESS if codec in LOSSLESS else USUAL_LOSSY)
    return 8 * size / (pcm or context.bit_rate or usual), SIZE


def _derived_s(container: Any, stream: Any) -> float | None:
    seconds = container.duration / av.time_base if container.duration else None
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    return seconds if seconds and math.isfinite(seconds) and seconds > 0 else None


def refuse_misread(container: Any, stream: Any, view: View) -> None:
    """Raise ValueError for a WAV whose samples have fewer valid bits than they take: libav reads these as if
    they lay side by side, and gives noise."""
    codec = stream.codec_context.codec.name
    bits = re.fullmatch(r"pcm_[suf](\d+)[lb]e", codec)
    if container.format.name != "wav" or not bits:
        return
    at, head = view.tell(), read_at(view, 0, 1 << 16)
    view.seek(at)
    form = head.find(b"fmt ") + 8
    if form < 8 or len(head) < form + 16:
        return
    _, channels, rate_hz, bytes_per_s, align = struct.unpack_from("<HHIIH", head, form)
    taken = 8 * align / channels if channels else 0
    if bytes_per_s == rate_hz * align and taken in (16, 24, 32) and taken > int(bits[1]):
        raise ValueError(f"{bits[1]} valid bits in samples of {taken:g}: save it with {taken:g} valid bits")


def _pcm_bits_per_s(context: Any) -> int:
    """Of uncompressed audio; 0 for all else."""
    name = context.codec.name
    if not name.startswith("pcm_") or not context.sample_rate or not context.channels:
        return 0
    bits = re.search(r"[usf](\d+)", name)
    return context.sample_rate * context.channels * (int(bits[1]) if bits else 8)
