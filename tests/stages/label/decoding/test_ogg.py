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


def test_bytes_between_belong_to_no_link():
    data = b"junk" + ONE + b"more junk" + TWO
    assert links(data) == [(0, 4 + len(ONE)), (len(data) - len(TWO), len(data))]
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


class TestLost:
    """Pages of 0.1 s: 4,410 samples each, after two of the header."""

    STEP = 4_410
    RATE_HZ = 44_100

    @pytest.fixture(scope="class")
    def pages(self):
        count = 40
        wave = np.random.default_rng(1).normal(0, 0.1, (count * self.STEP, 1)).astype(np.float32)
        codec, first = {"b": "64k"}, []
        made = libav(
            wave, "ogg", "flac", options={"frame_size": str(self.STEP)}, muxer={"page_duration": "1"}
        )
        first = pages(made)
        assert len(first) == count + 2 and codec
        return first

    @staticmethod
    def lost(some, damaged=False):
        data = b"".join(some)
        return ogg.lost_samples(io.BytesIO(data), (0, len(data)), damaged)

    def test_of_a_whole_link_nothing_is(self, pages):
        assert self.lost(pages) == self.lost(pages, damaged=True) == 0

    @pytest.mark.parametrize(
        "gone, count",
        [([2], 1), ([2, 3, 4], 3), ([3], 1), ([5, 6, 9], 3), ([2, 7], 2), ([40], 1), ([38, 39, 40], 3)],
    )
    def test_pages_that_are_left_out_are_counted_by_what_they_held(self, pages, gone, count):
        left = [page for number, page in enumerate(pages) if number not in gone]
        assert self.lost(left) == pytest.approx(count * self.STEP)

    def test_a_page_with_a_wrong_checksum_is_as_good_as_missing(self, pages):
        for number in (2, 20, 40):
            torn = list(pages)
            torn[number] = torn[number][:-1] + bytes([torn[number][-1] ^ 4])
            assert self.lost(torn) == 0
            assert self.lost(torn, damaged=True) == pytest.approx(self.STEP)

    def test_a_capture_that_begins_late_has_lost_nothing_by_it(self, pages):
        assert self.lost(pages[:2] + pages[7:]) == 0
        assert self.lost(pages[:2] + pages[6:]) == pytest.approx(4 * self.STEP)

    def test_a_clock_that_jumps_where_no_page_is_missing_has_lost_nothing(self, pages):
        later = [repaged(page, 9 * self.RATE_HZ) for page in pages[9:]]
        assert self.lost(pages[:9] + later) == 0
        assert self.lost(pages[:9] + later[1:]) == pytest.approx(self.STEP)
        assert self.lost([pages[n] for n in (0, 1, 9, 10, 11, 5, 6, 7)]) == 0, "backward"

    def test_what_is_cut_off_is_not_missing(self, pages):
        for cut in (pages[8][:40], pages[8][:20], b""):
            assert self.lost([*pages[:8], cut]) == 0

    def test_pages_of_a_stream_whose_beginning_is_missing_are_lost(self, pages):
        other = [repaged(page, serial=77) for page in pages[1:]]
        assert self.lost(pages + other) == pytest.approx(len(other) * self.STEP)

    def test_another_stream_of_no_sound_plays_no_part(self, pages):
        skeleton = pages[0][:14] + b"\x09\0\0\0" + pages[0][18:28] + b"fishead\0" + pages[0][36:]
        assert self.lost([skeleton, *pages[:9], *pages[10:]]) == pytest.approx(self.STEP)

    def test_of_two_streams_of_sound_or_none_nothing_is_known(self, pages):
        again = repaged(pages[0], serial=9)
        assert self.lost([pages[0], again, *pages[1:]]) is None
        assert self.lost(pages[2:]) is None and self.lost([]) is None


def test_links_of_headers_alone_are_left_out():
    headers = b"".join(pages(TWO)[:2])
    data = headers + ONE + headers + TWO
    begin = len(headers)
    last = len(data) - len(TWO)
    assert links(data) == [(begin, begin + len(ONE)), (last, len(data))]
    assert links(headers) == [(0, len(headers))] and links(headers * 2) == [(0, 2 * len(headers))]
