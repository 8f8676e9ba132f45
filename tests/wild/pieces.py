"""The pieces that odd files are made of: real encoders, known tags, Ogg pages and MPEG frames."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from stages.label.decoding.tags import frame_bytes

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
RATE_HZ = 44_100


class Music:
    """Excerpts of the quickstart's music, float32 (N, 2) at 44.1 kHz; each call gives another."""

    def __init__(self):
        waves = [
            soundfile.read(path, dtype="float32", always_2d=True)[0]
            for path in sorted(QUICKSTART.glob("*.ogg"))
        ]
        self._wave = np.concatenate(
            [wave[RATE_HZ * 5 : -RATE_HZ * 5] for wave in waves if wave.shape[1] == 2]
        )
        self._at = 0

    def __call__(self, seconds: float, channels: int = 2, rate_hz: int = RATE_HZ) -> np.ndarray:
        """Played faster at another rate: not resampled, so that no filter stands between."""
        count = round(seconds * rate_hz)
        self._at = (self._at + 11_003) % (len(self._wave) - count)
        wave = 0.9 * self._wave[self._at : self._at + count]
        return wave if channels == 2 else np.repeat(wave[:, :1], channels, axis=1)


def sound(wave: np.ndarray, kind: str, subtype: str, rate_hz: int = RATE_HZ) -> bytes:
    """By libsndfile."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate_hz, wave.shape[1], subtype, format=kind) as file:
        for start in range(0, len(wave), 4096):  # libsndfile overflows its stack on long Vorbis writes
            file.write(wave[start : start + 4096])
    return out.getvalue()


def libav(
    wave: np.ndarray,
    container: str,
    codec: str,
    rate_hz: int = RATE_HZ,
    options: dict | None = None,
    muxer: dict | None = None,
) -> bytes:
    """By PyAV's FFmpeg."""
    return tracks([wave], container, codec, rate_hz, options, muxer)


def tracks(waves, container, codec, rate_hz=RATE_HZ, options=None, muxer=None, default=0) -> bytes:
    """One file with several audio tracks."""
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=muxer or {}) as file:
        streams = []
        for number, wave in enumerate(waves):
            layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[wave.shape[1]]
            quick = {"aac_coder": "fast"} if codec == "aac" else {}
            stream = file.add_stream(codec, rate=rate_hz, layout=layout, options=quick | (options or {}))
            stream.disposition = av.stream.Disposition.default if number == default else 0
            streams.append(stream)
        for wave, stream in zip(waves, streams, strict=True):
            layout = stream.codec_context.layout.name
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T, np.float32), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                file.mux(packet)
    return out.getvalue()


def id3v2(payload: bytes, version: int = 4, footer: bool = False) -> bytes:
    """A tag whose one frame, PRIV, holds the payload."""
    size = len(payload)
    length = syncsafe(size) if version == 4 else struct.pack(">I", size)
    name = b"PRV" + struct.pack(">I", size)[1:] if version == 2 else b"PRIV" + length + b"\0\0"
    body = name + payload
    head = bytes([version, 0, 0x10 if footer else 0]) + syncsafe(len(body))
    return b"ID3" + head + body + (b"3DI" + head if footer else b"")


def syncsafe(size: int) -> bytes:
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def ape(payload: bytes, version: int = 2000, header: bool = True) -> bytes:
    """An APE tag with one binary item."""
    item = struct.pack("<II", len(payload), 2) + b"Cover Art (Front)\0" + payload
    flags = 1 << 31 if header else 0

    def ends(mine: int) -> bytes:
        return b"APETAGEX" + struct.pack("<IIII", version, len(item) + 32, 1, mine) + bytes(8)

    return (ends(flags | 1 << 29) if header else b"") + item + ends(flags)


def id3v1(year: bytes = b"1997") -> bytes:
    return b"TAG" + b"A title".ljust(30, b"\0") + bytes(60) + year + bytes(30) + b"\x0c"


def lyrics3(payload: bytes) -> bytes:
    body = b"LYRICSBEGININD0000200" + b"LYR" + b"%05d" % len(payload) + payload
    return body + b"%06d" % len(body) + b"LYRICS200"


def picture(size: int, seed: int = 0) -> bytes:
    """What a cover looks like to a parser: random bytes, with 0xFF and other marks among them."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    found, at = [], 0
    while at < len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        found.append(data[at:end])
        at = end
    return found


def repaged(data: bytes, granules: int = 0, serial: int | None = None) -> bytes:
    """An Ogg file with another clock, begun `granules` later, and another serial number."""
    out = []
    for page in pages(data):
        granule = int.from_bytes(page[6:14], "little", signed=True)
        granule += granules if granule > 0 else 0
        number = page[14:18] if serial is None else struct.pack("<I", serial)
        page = page[:6] + struct.pack("<q", granule) + number + page[18:22] + bytes(4) + page[26:]
        out.append(page[:22] + struct.pack("<I", _crc(page)) + page[26:])
    return b"".join(out)


def _crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc = crc << 8 & 0xFFFFFFFF ^ _TABLE[crc >> 24 ^ byte]
    return crc


def _row(index: int) -> int:
    value = index << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


_TABLE = [_row(index) for index in range(256)]


def frames(data: bytes) -> list[bytes]:
    """The frames of an MPEG stream without tags."""
    found, at = [], data.index(b"\xff")
    while size := frame_bytes(data[at : at + 6]):
        found.append(data[at : at + size])
        at += size
    return found
