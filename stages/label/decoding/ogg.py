"""The links of an Ogg file, and what is missing of them.

Each link is a stream of its own: its clock, serial number, rate and channels are new. libav reads a chain as
one stream and takes the next link's clock, rate or serial number for damage.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from stages.label.decoding.quick import read_at
from stages.label.decoding.tags import OGG, Range

CHUNK = 1 << 22
FIRST = 2  # a page's flag for the first page of a stream
HEAD_BYTES, FLAGS, SEGMENTS = 27, 5, 26  # the last byte of the head counts the bytes of sizes after it
SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")  # how the first packet of a stream begins
FEW = 4  # pages
MOST_BYTES = HEAD_BYTES + 255 + 255 * 255  # of a page
NO_SOUND = (b"\0" * 8, b"\xff" * 8)  # granule positions of a page that ends no sound


class Page(NamedTuple):
    at: int
    data: bytes

    @property
    def begins_a_stream(self) -> bool:
        return self.data[FLAGS] & ~5 == FIRST and self.data[6:14] in NO_SOUND


def links(file: Any, start: int, size: int) -> list[Range]:
    """Byte ranges of the links from `start` on, ascending: a group of first pages begins each. Those of
    headers alone, as recorders of streams leave them, are left out unless all are so."""
    found, first = [], False  # [first byte, byte after the last page, whether a page ends any sound]
    for page in _pages(file, start, size):
        if page.begins_a_stream and not first:  # streams of one link begin one after the other
            found.append([page.at if found else start, 0, False])
        first = page.begins_a_stream
        if found:
            sounds = found[-1][2] or page.data[6:14] not in NO_SOUND
            found[-1][1:] = page.at + len(page.data), sounds
    if not found:
        return [(start, size)]
    found[-1][1] = size
    return [(begin, end) for begin, end, sounds in found if sounds] or [(start, size)]


def lost_samples(file: Any, link: Range, damaged: bool) -> float | None:
    """What pages that are missing held, in the units of the stream's clock, by the numbers and the clock of
    the pages beside them: a clock that jumps where none is missing has lost nothing.

    damaged: pages with a wrong checksum, which libav drops without a word, are looked for and count as
    missing (30 s a GB). None unless the link has one stream of sound."""
    pages = _whole_pages(file, link) if damaged else _pages(file, *link)
    serial, last, clock, gone, first, steps, holes = None, None, 0, 0, 0, [], []
    begun, strange = set(), 0  # serial numbers; pages of streams whose first page is missing
    for page in pages:
        if page.begins_a_stream:
            begun.add(page.data[14:18])
        strange += page.data[14:18] not in begun
        if page.begins_a_stream and page.data[HEAD_BYTES + page.data[SEGMENTS] :].startswith(SOUND):
            if serial is not None:
                return None
            serial = page.data[14:18]
        if page.data[14:18] != serial:
            continue
        number, granule = int.from_bytes(page.data[18:22], "little"), page.data[6:14]
        gone += max(0, number - last - 1) if last is not None else 0
        last = number
        if granule in NO_SOUND:
            continue
        step, clock = int.from_bytes(granule, "little") - clock, int.from_bytes(granule, "little")
        if not steps:
            first = gone
        elif gone:
            holes.append((step, gone))
        steps.append(step)
        gone = 0
    if serial is None:
        return None
    usual = float(np.median(steps[1:] or [0]))
    # A capture of a stream begins with a late number: only a few pages are lost there by damage.
    lost = (first if first <= FEW else 0) * usual + strange * usual
    return lost + sum(min(step, gone * usual) for step, gone in holes if step > 0)


def _whole_pages(file: Any, link: Range) -> Iterator[Page]:
    pages = _pages(file, *link)
    while group := list(islice(pages, 1024)):
        yield from (page for page, right in zip(group, _right(group), strict=True) if right)


def _pages(file: Any, start: int, size: int) -> Iterator[Page]:
    """Whole pages, found by their first bytes and skipped by their size."""
    at = start
    while at < size:
        data, place = read_at(file, at, min(CHUNK + MOST_BYTES, size - at)), 0
        while 0 <= (place := data.find(OGG, place)) < CHUNK:
            first = place + HEAD_BYTES
            sizes = data[first : first + data[first - 1]] if first <= len(data) else b""
            length = HEAD_BYTES + len(sizes) + sum(sizes)
            if place + length > len(data):
                return  # the last page is cut
            yield Page(at + place, data[place : place + length])
            place += length
        at += max(CHUNK, place)


def _right(pages: list[Page]) -> list[bool]:
    """Whether each has its checksum: CRC-32 of polynomial 0x04C11DB7 without reflection, for all at once."""
    order = sorted(range(len(pages)), key=lambda number: -len(pages[number].data))
    ordered = [pages[number].data for number in order]
    lengths = np.array([len(data) for data in ordered])
    bytes_LP = np.zeros((lengths[0], len(pages)), np.uint8)
    for column, data in enumerate(ordered):
        bytes_LP[: len(data), column] = np.frombuffer(data, np.uint8)
    bytes_LP[22:26] = 0
    crc_P = np.zeros(len(pages), np.uint32)
    for place, row_P in enumerate(bytes_LP):
        longer = int(np.searchsorted(-lengths, -place, side="left"))  # pages with a byte here come first
        crc = crc_P[:longer]
        crc_P[:longer] = (crc << np.uint32(8)) ^ _TABLE[(crc >> np.uint32(24)) ^ row_P[:longer]]
    stated = [int.from_bytes(data[22:26], "little") for data in ordered]
    return [same for _, same in sorted(zip(order, (crc_P == stated).tolist(), strict=True))]


def _row(index: int) -> int:
    value = index << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


_TABLE = np.array([_row(index) for index in range(256)], np.uint32)
