"""Rendering, with a synthesiser of sine waves in the real one's place: CI has neither it nor music21."""

import sys
import types

import numpy as np
import pytest
import soundfile

from examples.probes import rendering, scores
from examples.probes.rendering import RATE_HZ, Render

NOTES = [(0.0, 1.0, 69, 0), (1.0, 1.0, 76, 0), (1.0, 1.0, 57, 1)]


class Synth:
    """A sine wave for each key that is down; its program is how loud it is."""

    made = 0

    def __init__(self, samplerate):
        Synth.made += 1
        self.rate, self.now, self.down, self.loud = samplerate, 0, {}, {}

    def sfload(self, content):
        assert content == b"a soundfont"
        return 0

    def program_select(self, channel, font, bank, program):
        self.loud[channel] = program

    def noteon(self, channel, key, velocity):
        assert (channel, key) not in self.down, "struck again before it ended"
        self.down[channel, key] = 440 * 2 ** ((key - 69) / 12)

    def noteoff(self, channel, key):
        del self.down[channel, key]

    def sounds_off(self, channel):
        self.down.clear()

    def generate(self, samples):
        time_N = np.arange(self.now, self.now + samples) / self.rate
        self.now += samples
        wave_N = sum(self.loud[c] * np.sin(2 * np.pi * hz * time_N) for (c, _), hz in self.down.items())
        wave_N = wave_N + np.zeros(samples)
        return memoryview(np.repeat(wave_N.astype(np.float32), 2).tobytes())


@pytest.fixture
def player(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tinysoundfont", types.SimpleNamespace(Synth=Synth))
    (tmp_path / "font.sf2").write_bytes(b"a soundfont")
    return rendering.Player(tmp_path / "font.sf2")


def heard_hz(wave_N: np.ndarray, start_s: float, end_s: float) -> list[int]:
    """The frequencies in a stretch, the strongest first, those above a tenth of it."""
    part = wave_N[round(start_s * RATE_HZ) : round(end_s * RATE_HZ)]
    level_F = np.abs(np.fft.rfft(part * np.hanning(len(part)), RATE_HZ))
    peaks = [f for f in range(1, len(level_F) - 1) if level_F[f] == level_F[f - 1 : f + 2].max()]
    return sorted((f for f in peaks if level_F[f] > level_F.max() / 10), key=lambda f: -level_F[f])


def test_notes_are_heard_when_and_how_high_they_are_written(player):
    wave_N = player.play(NOTES, semitones=0, qpm=60, programs=(1,))
    assert len(wave_N) == round((2 + rendering.TAIL_S) * RATE_HZ)
    assert heard_hz(wave_N, 0.1, 0.9) == [440]
    assert sorted(heard_hz(wave_N, 1.1, 1.9)) == [220, 659]
    assert np.abs(wave_N[round(2.1 * RATE_HZ) :]).max() < 1e-3


def test_speed_key_and_instruments_are_the_plans(player):
    wave_N = player.play(NOTES, semitones=-12, qpm=120, programs=(1, 5))
    assert heard_hz(wave_N, 0.05, 0.45) == [220]
    assert heard_hz(wave_N, 0.55, 0.95) == [110, 330]  # the second part is the louder one


def test_a_repeated_note_is_struck_again(player):
    wave_N = player.play([(0.0, 1.0, 69, 0), (1.0, 1.0, 69, 0)], 0, 60, (1,))
    assert heard_hz(wave_N, 1.1, 1.9) == [440]


def test_nothing_of_one_piece_is_heard_in_the_next(player):
    player.play(NOTES, 0, 60, (1,))
    wave_N = player.play([(1.0, 1.0, 60, 0)], 0, 60, (1,))
    assert np.abs(wave_N[: RATE_HZ // 2]).max() < 1e-6


@pytest.fixture
def house(player, tmp_path, monkeypatch):
    """A plan of three files by two soundfonts, and scores that need no corpus."""
    monkeypatch.setattr(scores, "need_music21", lambda: None)
    monkeypatch.setattr(scores, "notes", lambda name: [(0.0, 1.0, 60 + int(name), 0)])
    monkeypatch.setattr(rendering, "soundfont", lambda root, package: tmp_path / "font.sf2")
    renders = [Render(f"tunes/{n}.flac", str(n), 0.0, 1.0, 0, 60.0, "ab"[n % 2], (1,)) for n in range(3)]
    rendering.save(renders, tmp_path / "plan.csv")

    def render(words=None):
        said = words if words is not None else []
        rendering.render(tmp_path, "tunes", said.append, tmp_path / "plan.csv")
        return said

    return types.SimpleNamespace(render=render, renders=renders, plan=tmp_path / "plan.csv", root=tmp_path)


def contents(house) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (house.root / "tunes").glob("*.flac")}


def test_a_plan_is_read_as_it_was_written(house):
    accompanied = Render("tunes/9.flac", "9", 1.5, 40.25, -6, 97.0, "a", (1, 2, 3), 7, "minor", 1.5, 0.5)
    rendering.save([*house.renders, accompanied], house.plan)
    assert rendering.plan("tunes", house.plan) == [*house.renders, accompanied]
    assert rendering.plan("chorales", house.plan) == []


def test_files_are_flac_of_the_models_rate_and_the_same_on_every_run(house):
    assert house.render() == ["3 files, 3 to render"]
    about = soundfile.info(house.root / "tunes" / "0.flac")
    assert (about.format, about.samplerate, about.channels, about.frames) == ("FLAC", 24000, 1, 36000)
    first = contents(house)
    for path in (house.root / "tunes").glob("*.flac"):
        path.unlink()
    house.render()
    assert contents(house) == first and len(first) == 3


def test_a_stopped_run_goes_on_with_what_is_missing(house, monkeypatch):
    save = rendering._save

    def stopped(path, wave_N):
        if path.stem == "2":
            path.with_name(".2.attempt").write_bytes(b"half")
            raise KeyboardInterrupt
        save(path, wave_N)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rendering, "_save", stopped)
        house.render()
    before = {p: p.stat().st_mtime_ns for p in (house.root / "tunes").glob("*.flac")}
    assert [p.stem for p in before] == ["0"]
    assert house.render() == ["3 files, 2 to render"]
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    assert len(contents(house)) == 3 and not list((house.root / "tunes").glob(".*.attempt"))
    made = Synth.made
    assert house.render() == ["3 files, 0 to render"] and Synth.made == made


def test_another_plan_makes_all_anew(house):
    house.render()
    before = contents(house)
    moved = [*house.renders[:2], Render("tunes/2.flac", "5", 0.0, 1.0, 0, 60.0, "a", (1,))]
    rendering.save(moved, house.plan)
    assert house.render() == ["3 files, 3 to render"]
    after = contents(house)
    assert after["0.flac"] == before["0.flac"] and after["2.flac"] != before["2.flac"]


def test_without_the_corpus_or_the_synthesiser_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "MUSIC21", "0.0")
    with pytest.raises(ValueError, match="tunes and chorales are of 0.0: run make probe-sets"):
        rendering.render(tmp_path, "tunes")
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(ValueError, match="tinysoundfont is not installed: run make probe-sets"):
        rendering.Player(tmp_path)
