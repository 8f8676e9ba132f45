"""Near-duplicates among many recordings: found, all of them, and nothing else."""

import numpy as np
import pytest

from pipeline.report.duplicates import SAME, WORDS, candidates, same

RNG = np.random.default_rng(0)


def prints(recordings: int, copies: int, flipped: float, numbers: int = 4):
    """Random fingerprints of R recordings; the last `copies` are copies of the first with a share of bits
    flipped."""
    found = []
    for _ in range(numbers):
        words = RNG.integers(0, 2**64, (recordings, WORDS), dtype=np.uint64)
        flips = np.packbits(RNG.random((copies, 192)) < flipped, axis=1).view(">u8").astype(np.uint64)
        words[-copies:] = words[:copies] ^ flips
        found.append((np.arange(recordings, dtype=np.uint64), words))
    return found


@pytest.mark.parametrize("recordings", [30_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_copies_with_a_tenth_of_their_bits_flipped_are_found_among_many(recordings):
    own = prints(recordings, 300, 0.1)
    pairs = candidates(own)
    pairs = pairs[same(own, pairs)]
    assert (pairs[:, 0] + np.uint64(recordings - 300) == pairs[:, 1]).all(), "nothing else is alike"
    assert len(pairs) >= 295


def test_alike_in_one_segment_only_is_not_the_same_recording():
    own = prints(1000, 10, 0.02)
    for _, words in own[1:]:
        words[-10:] = RNG.integers(0, 2**64, (10, WORDS), dtype=np.uint64)
    pairs = candidates(own)
    assert len(pairs) == 10 and not same(own, pairs).any()


def test_a_shorter_recording_is_compared_where_both_have_a_fingerprint():
    own = prints(1000, 10, 0.02)
    own[3] = (own[3][0][:-10], own[3][1][:-10])
    pairs = candidates(own)
    assert same(own, pairs).all() and len(pairs) == 10


def test_none_at_all():
    assert candidates([]).shape == (0, 2)
    assert SAME < 60, "unrelated music lies above 60 of 192 (tests/stages/label/statistics/test_pitch.py)"


@pytest.mark.slow
def test_mp3_and_opus_of_one_piece_are_found_by_labels_and_stats(tmp_path, music, run_overtone):
    """Four pieces as FLAC, two of them as MP3 and Opus too: two groups of three, through the real
    commands."""
    import json

    import soundfile
    import soxr

    from tests.conftest import SMALL
    from tests.stages.label.decoding.sounds import encode

    audio = tmp_path / "audio"
    audio.mkdir()
    for number, path in enumerate(music[:4]):
        wave, rate_hz = soundfile.read(path, start=10 * 44_100, frames=20 * 44_100)
        wave = soxr.resample(wave, rate_hz, 48_000)
        encode(audio / f"{path.stem}.flac", "flac", wave, 48_000, "stereo")
        if number < 2:
            encode(audio / f"{path.stem}.mp3", "libmp3lame", 0.7 * wave, 48_000, "stereo", b="128000")
            encode(audio / f"{path.stem}.opus", "libopus", 0.4 * wave, 48_000, "stereo", b="64000")
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text(SMALL.format(audio=json.dumps(str(audio)), out=json.dumps(str(out))))
    done = run_overtone("labels", config)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(run_overtone("stats", out, "--json").stdout)
    found = next(o for o in shown["worth_a_look"] if o["what"] == "near-duplicates")
    assert "2 groups" in found["why"] and found["recordings"] == 4
    for path, group in zip(music[:2], found["examples"], strict=True):
        assert all(f"{path.stem}.{extension}" in group for extension in ("flac", "mp3", "opus"))
