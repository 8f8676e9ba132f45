"""Odd files, labelled in one run: each costs itself at most, and what is kept is what was recorded."""

import io
import json
import os
import tarfile
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

from tests.conftest import SMALL
from tests.wild import making
from tests.wild.pieces import Music

SPEECH = {b"telephone.amr"}  # a codec for speech: music does not survive it
NEAR_S, LAG = 0.05, 4_800  # encoders put up to 0.1 s before the sound of each part
SHORT = {b"half of it.ogg": 0.3}  # cut within a page, which holds up to a second


@pytest.fixture(scope="module")
def odds() -> list[making.Odd]:
    return making.every(Music())


@pytest.fixture(scope="module")
def run(odds, tmp_path_factory, run_overtone):
    """(the finished process, OUT) of one run over all of them."""
    folder = tmp_path_factory.mktemp("wild")
    making.write(folder / "music", odds)
    config, out = folder / "wild.yaml", folder / "out"
    config.write_text(SMALL.format(audio=json.dumps(str(folder / "music")), out=json.dumps(str(out))))
    options = ("recipe.codes=null", "recipe.cqt=null", "run.max_rejected_share=0.4", "run.scan_workers=2")
    sets = [word for option in options for word in ("--set", option)]
    return run_overtone("labels", config, *sets), out


@pytest.fixture(scope="module")
def waves(run) -> dict[bytes, np.ndarray]:
    """The stored samples of each kept file, full scale 1."""
    _, out = run
    parts = defaultdict(list)
    for path in sorted(out.glob("columns/audio/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".wav"):
                    stored = soundfile.read(io.BytesIO(tar.extractfile(member).read()), dtype="float32")[0]
                    parts[member.name.rsplit("-", 1)[0]].append(stored)
    rows = pq.read_table(out / "catalog.parquet").to_pylist()
    named = {row["recording"]: os.path.basename(row["path_bytes"]) for row in rows}
    return {named[recording]: np.concatenate(own) for recording, own in parts.items()}


@pytest.fixture(scope="module")
def reasons(run) -> dict[bytes, str]:
    _, out = run
    rows = pq.read_table(out / "catalog.parquet").to_pylist()
    place = {row["recording"]: os.path.basename(row["path_bytes"]) for row in rows}
    return {place[r["recording"]]: r["reason"] for r in pq.read_table(out / "rejected.parquet").to_pylist()}


def correlation(wave: np.ndarray, expected: np.ndarray) -> float:
    """Of the two where they fit best within `LAG` samples; `wave` begins up to so much earlier or later."""
    size = 1 << (len(wave) + len(expected)).bit_length()
    product = np.fft.irfft(np.fft.rfft(wave, size) * np.conj(np.fft.rfft(expected, size)))
    lag = int(np.argmax(np.concatenate([product[:LAG], product[-LAG:]])))
    lag = lag if lag < LAG else lag - 2 * LAG
    one, two = (wave[lag:], expected) if lag >= 0 else (wave, expected[-lag:])
    count = min(len(one), len(two))
    return float(np.corrcoef(one[:count], two[:count])[0, 1])


def mono(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    return soxr.resample(wave.mean(1), rate_hz, 24_000, "HQ")


def test_one_run_has_one_outcome_for_each(run, odds, waves, reasons):
    done, _ = run
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert set(waves) == {odd.name for odd in odds if not odd.rejected}
    assert {odd.name: reasons.get(odd.name) for odd in odds if odd.rejected} == reasons
    assert f"{len(odds)} found = {len(waves)} kept + {len(reasons)} rejected + 0 duplicates" in done.stdout
    for odd in odds:
        assert odd.rejected in reasons.get(odd.name, ""), (odd.name, reasons[odd.name])


def test_lengths_are_those_that_were_recorded(odds, waves):
    wrong = {}
    for odd in odds:
        found = len(waves.get(odd.name, ())) / 24_000
        near = max(NEAR_S * len(odd.parts), SHORT.get(odd.name, 0))
        if not odd.rejected and abs(found - odd.seconds) > near:
            wrong[odd.name] = (found, odd.seconds)
    assert wrong == {}


def test_the_sound_is_the_one_that_was_encoded(odds, waves):
    wrong = {}
    for odd in odds:
        before_s = 0.0
        for number, (wave, rate_hz) in enumerate(odd.parts if odd.name not in SPEECH else ()):
            expected, stored = mono(wave, rate_hz), waves[odd.name]
            at = round(len(stored) * before_s / odd.seconds)  # each part brings its encoder's delay
            near = correlation(stored[max(0, at - LAG // 2) :][: len(expected) + 2 * LAG], expected)
            before_s += len(wave) / rate_hz
            if near < (0.97 if odd.lossy else 0.999):
                wrong[odd.name, number] = round(near, 4)
    assert wrong == {}


def test_another_decoder_hears_the_same(odds, waves):
    """libsndfile, where it reads the file as one stream."""
    compared = 0
    for odd in odds:
        if odd.rejected or len(odd.parts) > 1:
            continue
        try:
            wave, rate_hz = soundfile.read(io.BytesIO(odd.data), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, MemoryError, ValueError):  # it believes the header
            continue
        other = mono(wave, rate_hz)
        if abs(len(other) / 24_000 - odd.seconds) < NEAR_S:  # it reads past the lies of headers less well
            compared += 1
            assert correlation(waves[odd.name], other) > 0.99, odd.name
    assert compared > 60


def test_no_length_is_taken_for_more_than_its_file_can_hold(run, odds):
    _, out = run
    rows = {os.path.basename(r["path_bytes"]): r for r in pq.read_table(out / "catalog.parquet").to_pylist()}
    for odd in odds:
        if not odd.rejected:
            assert 0 < rows[odd.name]["duration_s"] < 60 + 10 * odd.seconds, odd.name
    for name in (b"live.webm", b"live.mka", b"streaminfo says none.flac", b"xing says 2**32 frames.mp3"):
        assert rows[name]["duration_from"] == "size", name


def test_names_are_shown_without_what_terminals_obey(run):
    done, _ = run
    assert "\x1b[31m" not in done.stdout and "\x07" not in done.stdout
