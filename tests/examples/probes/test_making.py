"""How the lists were made: what decides a label or a fold."""

from collections import Counter

import numpy as np
import pytest

from examples.probes import scores
from examples.probes.making import composers, drums, songs, tunes
from examples.probes.making.folds import spread


def test_folds_hold_every_class_evenly_and_do_not_change():
    groups = {f"g{i}": Counter({"a": 3, "b": i % 3 + 1}) for i in range(15)}
    fold = spread(groups, 5)
    assert fold == spread(groups, 5)
    for name in "ab":
        held = Counter()
        for group, counts in groups.items():
            held[fold[group]] += counts[name]
        assert len(held) == 5 and max(held.values()) <= min(held.values()) + 2


def test_a_class_of_too_few_groups_is_refused():
    groups = {f"g{i}": Counter(a=1) for i in range(9)} | {"odd": Counter(b=9)}
    with pytest.raises(ValueError, match="10 groups cannot put every class in each of 3 folds"):
        spread(groups, 3)


@pytest.mark.parametrize(
    "stem, label",
    [
        ("808_Kick_Long", "kick"),
        ("hhopen_01", "hat open"),
        ("HiHatSemiopen-2", "hat open"),
        ("HatPedal-Soft", "hat closed"),
        ("SnareOffRim-1", "rim"),
        ("CrashRide18-0", "crash"),
        ("RideBell-3", "ride"),
        ("TM2_04", "tom"),
        ("29800__stomachache__3", None),
        ("loop_amen", None),
        ("SabianHatChoke-Med", None),
        ("bass_drop_c", None),
    ],
)
def test_drums_are_named_by_their_files(stem, label):
    assert drums.label(stem) == label


def test_composers_by_package_and_file():
    assert composers.target("naev-data", "combat2") == "Askyel"
    assert composers.target("naev-data", "machina") is None
    assert composers.target("mu-cade-data", "stg1") == "Kenta Cho"
    assert composers.target("hedgewars-data", "Nature") is None


def test_excerpts_follow_one_another_for_five_minutes():
    assert composers.excerpts(75) == [(0, 30), (30, 60)]
    assert composers.excerpts(85.5)[-1] == (60, 85.5)
    assert composers.excerpts(4000)[-1] == (270, 300)


def midi(tempi: list[tuple[int, int]], end: int) -> bytes:
    """Division 96; (ticks since the last one, microseconds a quarter); a note off, running status, a text."""
    track = b"\x00\xff\x03\x02hi\x00\x90\x40\x40\x00\x41\x40\x00\xc0\x05\x00\xf0\x02\x01\xf7"
    for delta, us in tempi:
        track += bytes([0x81, delta - 128]) if delta > 127 else bytes([delta])
        track += b"\xff\x51\x03" + us.to_bytes(3, "big")
    track += bytes([0x80 | end >> 7, end & 127]) + b"\xff\x2f\x00"
    head = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60"
    return head + b"MTrk" + len(track).to_bytes(4, "big") + track


def test_beats_follow_the_tempo_map():
    found = songs.mapped(midi([(0, 500_000), (192, 250_000)], 384))
    np.testing.assert_allclose(found, [0, 0.5, 1, 1.25, 1.5, 1.75, 2.0])


def test_the_offset_of_a_song_is_heard():
    beats_B, wave_N = np.arange(1, 19, 0.5), np.zeros(20 * songs.RATE_HZ)
    click = np.random.default_rng(0).normal(size=2000) * np.exp(-np.arange(2000) / 300)
    for time in beats_B:
        wave_N[int(time * songs.RATE_HZ) :][:2000] += click
    for early in (-0.03, 0.0, 0.055):
        assert abs(songs.offset_s(wave_N, beats_B - early) - early) < 0.011


CHORDS = [
    *((0.0, 2.0, p, i) for i, p in enumerate((72, 67, 64, 48))),  # two beats of C
    *((2.0, 1.0, p, i) for i, p in enumerate((72, 69, 64, 57))),  # A minor
    *((3.0, 1.0, p, i) for i, p in enumerate((74, 71, 67, 55))),  # G, and in it
    (3.5, 0.5, 65, 1),  # a seventh
]


def test_only_beats_of_a_bare_triad_are_chords():
    assert tunes.triads(CHORDS) == [(0, 2, "C:maj"), (2, 3, "A:min")]


def test_an_excerpt_cuts_what_sounds_over_its_ends():
    assert scores.excerpt([(0.0, 2.0, 60, 0), (2.0, 2.0, 62, 0), (4.0, 1.0, 64, 0)], 1, 3) == [
        (0, 1, 60, 0),
        (1, 1, 62, 0),
    ]


def test_a_tune_of_one_voice_gets_the_chords_of_its_key():
    tune = [(0.5, 0.5, 67, 0), (1.0, 4.0, 67, 0), (5.0, 4.0, 65, 0), (9.0, 4.0, 62, 0), (13.0, 4.0, 60, 0)]
    found = scores.accompanied(tune, 0, "major", bar=4.0, upbeat=1.0)
    assert [note for note in found if note[3] == 0] == tune
    bass = [(onset, pitch % 12) for onset, _, pitch, part in found if part == 2]
    assert bass[0][0] == 1 and bass[1:3] == [(5, 5), (9, 7)] and bass[-1] == (13, 0)
    chord = {pitch % 12 for onset, _, pitch, part in found if part == 1 and onset == 11}
    assert chord == {7, 11, 2}
