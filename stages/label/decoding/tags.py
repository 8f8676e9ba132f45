"""Where the sound of a file is: the known tags before, between and after the frames of an MPEG stream.

ID3v2, APEv2, Lyrics3 and ID3v1 state their own sizes. libav skips them only where it expects them; elsewhere
their binary parts (covers, GEOB, PRIV) look like broken frames, or like music.
"""

from collections.abc import Iterator
from typing import Any

from stages.label.decoding.quick import read_at

CHUNK = 1 << 22  # bytes searched at once
ID3V1_BYTES, APE_BYTES = 128, 32
MARKS = (b"ID3", b"APETAGEX", b"LYRICSBEGIN", b"TAG")
LYRICS_ENDS, LYRICS_MOST = (b"LYRICS200", b"LYRICSEND"), 1 << 20
OTHER_FRAMES = (b"\x0b\x77", b"\x77\x0b", b"\x7f\xfe\x80\x01")  # AC-3, DTS
LIKELY_FRAMES = 3  # in a row: what looks like one frame may be part of a picture
# kbit/s by (MPEG 1 or a later one, layer), kHz by MPEG version: ISO 11172-3 and 13818-3, tables of the header
_BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {0: (11_025, 12_000, 8_000), 2: (22_050, 24_000, 16_000), 3: (44_100, 48_000, 32_000)}
OGG = b"OggS\x00"  # how a page begins
Range = tuple[int, int]  # first byte, byte after the last


class View:
    """Some byte ranges of a file, as one file for libav. Errors of reading pass through."""

    name = ""  # endings may be wrong: the content tells the container

    def __init__(self, file: Any, ranges: list[Range]):
        self._file, self._at, self.ranges = file, 0, ranges
        self._parts, size = [], 0  # (place in this view, first byte, byte after the last)
        for start, stop in ranges:
            self._parts.append((size, start, stop))
            size += stop - start
        self.size = size

    def read(self, count: int) -> bytes:
        for place, start, stop in self._parts:
            begin = start + self._at - place
            if begin < stop:
                self._file.seek(begin)
                data = self._file.read(count)[: stop - begin]
                self._at += len(data)
                return data
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:  # libav looks before the beginning of a short file
            return -1
        self._at = at
        return at

    def tell(self) -> int:
        return self._at


def id3v2_bytes(head: bytes) -> int:
    """Size of the ID3v2 tag that begins with these 10 bytes, with its footer; 0 if none does.

    Each byte is held to the standard (versions 2.2 to 2.4): in one of fifty songs `ID3` and a size that can
    be stand among the music by chance, with the rest of a header in none of millions."""
    known = len(head) == 10 and head[:3] == b"ID3" and head[3] in (2, 3, 4) and head[4] == 0
    if not known or head[5] & 0x0F or any(byte & 0x80 for byte in head[6:]):
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return size + (20 if head[5] & 0x10 else 10)


def _ape_range(data: bytes, at: int) -> Range:
    """Of the APE tag whose header or footer (of version 1 or 2) is these 32 bytes at `at`; empty if none."""
    if len(data) < APE_BYTES or int.from_bytes(data[8:12], "little") not in (1000, 2000):
        return at, at
    size, flags = int.from_bytes(data[12:16], "little"), int.from_bytes(data[20:24], "little")
    if flags & 1 << 29:
        return at, at + APE_BYTES + size
    return max(0, at + APE_BYTES - size - (APE_BYTES if flags & 1 << 31 else 0)), at + APE_BYTES


def before_the_audio(file: Any, size: int) -> int:
    """Bytes of the tags that a file begins with: ID3v2, one or several, or an APE tag with a header."""
    at = 0
    while True:
        head = read_at(file, at, APE_BYTES)
        length = id3v2_bytes(head[:10])
        if not length and head[:8] == b"APETAGEX":
            length = _ape_range(head, at)[1] - at
        if not length:
            return at
        end = min(size, at + length)
        if end == size or not _plausible(read_at(file, end, APE_BYTES), end, size):
            frames = _next_frames(file, at + 10, end)  # of MPEG, in a tag that promises too much
            if frames or end == size:
                return frames or at
        at = end


def sound(file: Any, start: int, size: int, mpeg: bool = True) -> list[Range]:
    """The ranges of a stream from `start` on without the tags in it, ascending. Of an `mpeg` one (MPEG audio
    or ADTS, whose frames are known) without what stands before the first frames and after the last, too."""
    stop = size
    if mpeg:
        start = _next_frames(file, start, size) or start
        stop = _end_of_frames(file, start, size)
    kept, at = [], start
    for mark, place in _marks(file, start, size):
        if place < at:  # inside the tag before it
            continue
        begin, end = _tag(file, mark, place, size, mpeg)
        if end <= begin:
            continue
        begin, end = max(begin, at), _after_zeros(file, min(end, size), size)
        kept.append((at, min(begin, stop)))
        at = end
    kept = [(first, last) for first, last in [*kept, (at, stop)] if last > first]
    return kept or [(size, size)]


def _tag(file: Any, mark: bytes, at: int, size: int, mpeg: bool) -> Range:
    """The range of the tag that this mark begins; empty if it is none."""
    if mark == b"ID3":
        return at, _end(file, at, at + id3v2_bytes(read_at(file, at, 10)), size, mpeg)
    if mark == b"APETAGEX":
        begin, end = _ape_range(read_at(file, at, APE_BYTES), at)
        if begin == at:
            return at, _end(file, at, end, size, mpeg)
        # a footer without a header: the first item's name tells whether its size is right
        name, found, _ = read_at(file, begin, 8 + 256)[8:].partition(b"\0")
        return (begin if found and name.isascii() and name.decode().isprintable() else at), end
    if mark == b"TAG":
        text = read_at(file, at, ID3V1_BYTES)
        year, end = text[93:97], at + ID3V1_BYTES
        known = end == size or len(text) == ID3V1_BYTES and not year.strip(b"0123456789 \0")
        return at, end if known and _plausible(read_at(file, end, APE_BYTES), end, size) else at
    text = read_at(file, at, min(LYRICS_MOST, size - at))
    ends = [place + len(mark) for mark in LYRICS_ENDS if (place := text.find(mark)) >= 0]
    return at, at + min(ends, default=0)


def _end(file: Any, at: int, end: int, size: int, mpeg: bool) -> int:
    """Where a tag ends that says `end`, which may be wrong: what follows tells. `at` if it is no tag."""
    if end <= at or end <= size and _plausible(read_at(file, end, APE_BYTES), end, size):
        return end
    frames = _next_frames(file, at + 10, size) if mpeg else None
    return frames or (end if end > size or mpeg else at)


def _plausible(head: bytes, at: int, size: int) -> bool:
    """Whether these bytes after a tag are what may follow one: the end, zeros, a tag, a frame."""
    loas = len(head) > 1 and head[0] == 0x56 and head[1] >= 0xE0
    frame = frame_bytes(head[:6]) or loas or head.startswith(OTHER_FRAMES)
    return at == size or bool(frame) or not head.strip(b"\0") and at < size or head.startswith(MARKS)


def _next_frames(file: Any, at: int, size: int) -> int | None:
    """The first place from `at` on where MPEG frames follow each other; None in the next `CHUNK` bytes."""
    data, place = read_at(file, at, max(0, min(CHUNK, size - at))), -1
    while (place := data.find(b"\xff", place + 1)) >= 0:
        end = place
        for _ in range(LIKELY_FRAMES):
            length = frame_bytes(data[end : end + 6])
            end += length
            if not length:
                break
        else:
            return at + place
    return None


def _end_of_frames(file: Any, start: int, size: int) -> int:
    """Where the last frames end, or `size` if none are found near the end or a cut one is the last."""
    for window in (1 << 16, 1 << 20, CHUNK):
        at, end = max(start, size - window), 0
        while (first := _next_frames(file, at, size)) is not None:
            at = first
            while at < size and (length := frame_bytes(read_at(file, at, 6))):
                at += length
            end = at
        if end:
            return min(end, size)
    return size


def frame_bytes(head: bytes) -> int:
    """Size of the MPEG audio or ADTS frame with this header of 6 bytes; 0 if there is none, or it does not
    state it."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer, rate, bits = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3, head[2] >> 4
    if layer == 4:  # ADTS
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 if head[1] & 0xF0 == 0xF0 else 0
    if version == 1 or rate == 3 or bits in (0, 15):
        return 0
    rate_hz, padding = _RATES_HZ[version][rate], head[2] >> 1 & 1
    bits_per_s = 1000 * _BITRATES[version == 3, layer][bits - 1]
    if layer == 1:
        return (12 * bits_per_s // rate_hz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits_per_s // rate_hz + padding


def _marks(file: Any, start: int, size: int) -> Iterator[tuple[bytes, int]]:
    """What may begin a tag, ascending by place."""
    overlap = max(map(len, MARKS)) - 1
    for base in range(start, size, CHUNK):
        data = read_at(file, base, min(CHUNK + overlap, size - base))
        found = []
        for mark in MARKS:
            place = data.find(mark)
            while 0 <= place < CHUNK:
                found.append((base + place, mark))
                place = data.find(mark, place + 1)
        for place, mark in sorted(found):
            yield mark, place


def _after_zeros(file: Any, at: int, size: int) -> int:
    """Padding after a tag belongs to it."""
    while at < size:
        data = read_at(file, at, CHUNK)
        rest = data.lstrip(b"\0")
        at += len(data) - len(rest)
        if rest or not data:
            break
    return at
