"""Music among what real folders hold besides: each odd file, and what must become of it."""

import os
import shutil
from pathlib import Path

import numpy as np
import soundfile

# name → (stage, words of the reason)
REJECTED = {
    b"empty.wav": ("scan", "empty file"),
    b"garbage.mp3": ("scan", "Invalid data found"),
    b"dangling.flac": ("scan", "dangling link"),
    b"nothing.wav": ("decode", "0 samples"),
    b"one sample.wav": ("decode", "shorter than one label frame"),
    b"not a number.wav": ("decode", "NaN"),
    b"crash.wav": ("decode", "decoder crashed: signal 11"),
}
KEPT = {
    b"truncated.flac", b"truncated.wav", b"really ogg.mp3", b"eight channels.wav", b"fast.wav", b"a.b..c.wav",
    b" two  spaces .wav", b"new\nline.wav", b"\xff\xfe bytes.wav",
            b"stem a.wav", b"stem b.wav", b"x.mp3/inside.wav",
}  # fmt: skip
DUPLICATES = {b"same again.ogg"}

HOOK = """
import ctypes
from stages.label.decoding.recording import answer
def by_name(request, send):
    if "crash" in request["path"]: ctypes.string_at(0)
    answer(request, send)
"""


def write(path: bytes, wave_NC: np.ndarray, rate_hz: int, subtype: str = "PCM_16") -> None:
    with open(path, "wb") as file:
        soundfile.write(file, wave_NC, rate_hz, format="WAV", subtype=subtype)


def make(folder: Path, excerpts: Path, music: list[Path]) -> None:
    """Copies of the excerpts, and every odd file beside them."""
    shutil.copytree(excerpts, folder)
    wave, rate = soundfile.read(
        music[0], start=44_100 * 60, frames=44_100 * 15, dtype="float32", always_2d=True
    )

    def path(name: bytes) -> bytes:
        return os.path.join(os.fsencode(folder), name)

    def piece(number: int, seconds: float = 2.0) -> np.ndarray:
        return wave[number * 22_050 :][: int(seconds * rate)]

    for name in (b"empty.wav", b"garbage.mp3"):
        with open(path(name), "wb") as file:
            file.write(b"no music in here " * 500 if b"garbage" in name else b"")
    (folder / "x.mp3").mkdir()
    (folder / "dangling.flac").symlink_to("nowhere.flac")
    write(path(b"nothing.wav"), wave[:0], rate)
    write(path(b"one sample.wav"), wave[:1], rate)
    broken = piece(1).copy()
    broken[1000] = np.nan
    write(path(b"not a number.wav"), broken, rate, "FLOAT")
    for number, name in enumerate(sorted(KEPT | {b"crash.wav"})):
        if name.endswith(b".wav") and not name.startswith((b"stem", b"truncated")):
            write(path(name), piece(number), rate)
    write(path(b"eight channels.wav"), np.tile(piece(3), (1, 4)), 8_000)
    write(path(b"fast.wav"), np.repeat(piece(4), 4, axis=0), 384_000)
    shutil.copy(music[1], path(b"really ogg.mp3"))
    cut(sorted(excerpts.glob("*.flac"))[0], path(b"truncated.flac"), 0.6)
    write(path(b"whole.wav"), piece(5, 4.0), rate)
    cut(folder / "whole.wav", path(b"truncated.wav"), 0.5)
    (folder / "whole.wav").unlink()
    shutil.copy(sorted(excerpts.glob("*.ogg"))[0], path(b"same again.ogg"))
    stem = wave[: 14 * rate].copy()
    write(path(b"stem a.wav"), stem, rate)
    stem[7 * rate : 7 * rate + 100] += 0.25
    write(path(b"stem b.wav"), stem, rate)
    assert os.path.getsize(path(b"stem a.wav")) > 2 << 20


def cut(source: Path, target: bytes, share: float) -> None:
    data = source.read_bytes()
    with open(target, "wb") as file:
        file.write(data[: int(len(data) * share)])
