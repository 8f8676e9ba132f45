"""The links of an Ogg file. Each is a stream of its own: its clock, serial number, rate and channels are new.

libav reads a chain as one stream and takes the next link's clock, rate or serial number for damage.
"""

from typing import Any

from stages.label.decoding.quick import read_at
from stages.label.decoding.tags import Range

CHUNK = 1 << 22
CAPTURE, FIRST = b"OggS\x00", 2  # a page's first bytes; its flag for the first page of a stream
_NO_SOUND = (b"\0" * 8, b"\xff" * 8)  # granule positions of a page that ends no sound
HEAD_BYTES, FLAGS, SEGMENTS = 27, 5, 26


def links(file: Any, start: int, size: int) -> list[Range]:
    """Byte ranges of the links from `start` on, ascending: a group of first pages begins each."""
    begins, after = [], None
    for base in range(start, size, CHUNK):
        data = read_at(file, base, min(CHUNK + 1024, size - base))
        place = data.find(CAPTURE)
        while 0 <= place < CHUNK:
            head = data[place : place + HEAD_BYTES]
            if len(head) == HEAD_BYTES and head[FLAGS] & ~5 == FIRST and head[6:14] in _NO_SOUND:
                sizes = data[place + HEAD_BYTES : place + HEAD_BYTES + head[SEGMENTS]]
                if base + place != after:  # streams of one link begin one after the other
                    begins.append(base + place)
                after = base + place + HEAD_BYTES + len(sizes) + sum(sizes)
            place = data.find(CAPTURE, place + 1)
    if len(begins) < 2:
        return [(start, size)]
    return list(zip([start, *begins[1:]], [*begins[1:], size], strict=True))
