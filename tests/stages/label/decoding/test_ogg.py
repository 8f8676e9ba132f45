"""Links of a chained Ogg: where each begins."""

import io

import numpy as np
import pytest

from stages.label.decoding import ogg
from tests.wild.pieces import libav, pages, picture, repaged, sound

WAVE = np.random.default_rng(0).normal(0, 0.1, (22_050, 1)).astype(np.float32)
ONE, TWO = sound(WAVE, "OGG", "VORBIS"), libav(WAVE, "ogg", "flac")


def links(data: bytes, start: int = 0) -> list[tuple[int, int]]:
    return ogg.links(io.BytesIO(data), start, len(data))


def test_a_file_of_one_link_is_one_range():
    assert links(ONE) == [(0, len(ONE))]
    assert links(b"") == [(0, 0)] and links(picture(9_000)) == [(0, 9_000)]


@pytest.mark.parametrize("chain", [(ONE, ONE), (ONE, TWO, ONE), (repaged(ONE, serial=5), TWO, TWO)])
def test_each_begins_at_its_first_page(chain):
    ends = np.cumsum([len(link) for link in chain]).tolist()
    assert links(b"".join(chain)) == list(zip([0, *ends], ends, strict=False))


def test_streams_that_begin_together_are_one_link():
    first, *rest = pages(ONE)
    other = first[:14] + b"\x09\0\0\0" + first[18:]
    assert links(first + other + b"".join(rest)) == [(0, len(ONE) + len(first))]
    both = first + other + b"".join(rest)
    assert links(both + both) == [(0, len(both)), (len(both), 2 * len(both))]


def test_bytes_before_and_between_belong_to_the_link_before():
    data = b"junk" + ONE + b"more junk" + TWO
    assert links(data) == [(0, len(data) - len(TWO)), (len(data) - len(TWO), len(data))]
    assert links(data, start=4)[0][0] == 4


def test_a_page_amid_the_sound_begins_nothing():
    first, *rest = pages(ONE)
    for flags, granule in ((0, 0), (1, 0), (4, 0), (2, 77), (8, 0)):
        page = first[:5] + bytes([flags]) + granule.to_bytes(8, "little") + first[14:]
        assert len(links(ONE + page + b"".join(rest))) == 1, (flags, granule)
    for flags, granule in ((2, 0), (6, 0), (2, 2**64 - 1)):
        page = first[:5] + bytes([flags]) + granule.to_bytes(8, "little") + first[14:]
        assert len(links(ONE + page + b"".join(rest))) == 2, (flags, granule)


def test_a_page_across_two_chunks_is_seen(monkeypatch):
    for chunk in range(len(ONE) - 30, len(ONE) + 30, 3):
        monkeypatch.setattr(ogg, "CHUNK", chunk)
        assert links(ONE + TWO) == [(0, len(ONE)), (len(ONE), len(ONE) + len(TWO))]


class TestMissing:
    PAGES = pages(libav(np.tile(WAVE, (12, 1)), "ogg", "flac", muxer={"page_duration": "100000"}))

    def missing(self, data: bytes):
        return ogg.missing(io.BytesIO(data), (0, len(data)))

    def test_of_a_whole_link_nothing_is(self):
        assert self.missing(b"".join(self.PAGES)) == (len(self.PAGES), 0, 0)

    @pytest.mark.parametrize("gone, first, later", [
        ([2], 1, 0), ([2, 3, 4], 3, 0), ([3], 0, 1), ([5, 6, 9], 0, 3), ([2, 7], 1, 1),
    ])  # fmt: skip
    def test_numbers_that_are_left_out_are_counted(self, gone, first, later):
        left = [page for number, page in enumerate(self.PAGES) if number not in gone]
        assert self.missing(b"".join(left)) == (len(left), first, later)

    def test_what_is_cut_off_is_not_missing(self):
        data = b"".join(self.PAGES[:8])
        assert self.missing(data) == self.missing(data + self.PAGES[8][:40]) == (8, 0, 0)
        assert self.missing(data + self.PAGES[8][:20]) == (8, 0, 0)

    def test_numbers_that_begin_again_are_no_gap(self):
        assert self.missing(b"".join(self.PAGES[:9] + self.PAGES[4:])) == (len(self.PAGES) + 5, 0, 0)

    def test_of_two_streams_nothing_is_known(self):
        first, *rest = pages(ONE)
        assert self.missing(first + first[:14] + b"\x09\0\0\0" + first[18:] + b"".join(rest)) is None


class TestDamaged:
    def test_a_flipped_bit_is_seen_wherever_it_is(self, monkeypatch):
        data = libav(np.tile(WAVE, (3, 1)), "ogg", "flac")
        assert not ogg.damaged(io.BytesIO(data), (0, len(data)))
        for at in (30, 3_000, len(data) // 2, len(data) - 1):
            torn = bytearray(data)
            torn[at] ^= 8
            assert ogg.damaged(io.BytesIO(torn), (0, len(torn))), at

    def test_page_by_page_as_all_at_once(self):
        for page in pages(ONE):
            assert not ogg._wrong([page])
            assert ogg._wrong([page, page[:-1] + bytes([page[-1] ^ 1])])
