"""The links of an Ogg file, and what is missing of them.

Each link is a stream of its own: its clock, serial number, rate and channels are new. libav reads a chain as
one stream and takes the next link's clock, rate or serial number for damage.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from stages.label.decoding.quick import read_at
from stages.label.decoding.tags import Range

CHUNK = 1 << 22
CAPTURE, FIRST = b"OggS\x00", 2  # a page's first bytes; its flag for the first page of a stream
HEAD_BYTES, FLAGS, SEGMENTS = 27, 5, 26
MOST_BYTES = HEAD_BYTES + 255 + 255 * 255  # of a page
NO_SOUND = (b"\0" * 8, b"\xff" * 8)  # granule positions of a page that ends no sound


class Page(NamedTuple):
    at: int
    data: bytes

    @property
    def begins_a_stream(self) -> bool:
        return self.data[FLAGS] & ~5 == FIRST and self.data[6:14] in NO_SOUND


class Missing(NamedTuple):
    pages: int  # of those that are there
    first: int  # missing between the headers and the first sound
    later: int  # missing after it


def links(file: Any, start: int, size: int) -> list[Range]:
    """Byte ranges of the links from `start` on, ascending: a group of first pages begins each."""
    begins, after = [], None
    for page in _pages(file, start, size):
        if page.begins_a_stream:
            if page.at != after:  # streams of one link begin one after the other
                begins.append(page.at)
            after = page.at + len(page.data)
    if len(begins) < 2:
        return [(start, size)]
    return list(zip([start, *begins[1:]], [*begins[1:], size], strict=True))


def missing(file: Any, link: Range) -> Missing | None:
    """By the pages' numbers; None for several streams in one link."""
    found, streams, number, sounds, first, later = 0, 0, None, False, 0, 0
    for page in _pages(file, *link):
        streams += page.begins_a_stream
        if streams > 1:
            return None
        found += 1
        own = int.from_bytes(page.data[18:22], "little")
        gone = max(0, own - number - 1) if number is not None else 0
        number = own
        if sounds:
            later += gone
        else:
            first += gone
            sounds = page.data[6:14] not in NO_SOUND
    return Missing(found, first, later)


def _pages(file: Any, start: int, size: int) -> Iterator[Page]:
    """Whole pages, found by their first bytes and skipped by their size."""
    at = start
    while at < size:
        data, place = read_at(file, at, min(CHUNK + MOST_BYTES, size - at)), 0
        while 0 <= (place := data.find(CAPTURE, place)) < CHUNK:
            head = data[place : place + HEAD_BYTES]
            sizes = (
                data[place + HEAD_BYTES : place + HEAD_BYTES + head[SEGMENTS]]
                if len(head) == HEAD_BYTES
                else b""
            )
            length = HEAD_BYTES + len(sizes) + sum(sizes)
            if len(head) < HEAD_BYTES or place + length > len(data):
                return  # the last page is cut
            yield Page(at + place, data[place : place + length])
            place += length
        at += max(CHUNK, place)


def damaged(file: Any, link: Range) -> bool:
    """Whether a page has a wrong checksum: libav drops it without a word. Takes 30 s a GB."""
    pages = _pages(file, *link)
    while group := [page.data for page in islice(pages, 1024)]:
        if _wrong(group):
            return True
    return False


def _wrong(pages: list[bytes]) -> bool:
    """CRC-32 of polynomial 0x04C11DB7 without reflection, byte by byte for all pages at once."""
    pages = sorted(pages, key=len, reverse=True)
    lengths = np.array([len(page) for page in pages])
    bytes_LP = np.zeros((lengths[0], len(pages)), np.uint8)
    for column, page in enumerate(pages):
        bytes_LP[: len(page), column] = np.frombuffer(page, np.uint8)
    bytes_LP[22:26] = 0
    crc_P = np.zeros(len(pages), np.uint32)
    for place, row_P in enumerate(bytes_LP):
        longer = int(np.searchsorted(-lengths, -place, side="left"))  # pages with a byte here come first
        crc = crc_P[:longer]
        crc_P[:longer] = (crc << np.uint32(8)) ^ _TABLE[(crc >> np.uint32(24)) ^ row_P[:longer]]
    stated = np.array([int.from_bytes(page[22:26], "little") for page in pages], np.uint32)
    return bool((crc_P != stated).any())


def _row(index: int) -> int:
    value = index << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


_TABLE = np.array([_row(index) for index in range(256)], np.uint32)
