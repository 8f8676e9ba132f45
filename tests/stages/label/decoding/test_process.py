"""One bad file costs one file: what the parent makes of a crash, a hang, a bomb, a kill, unread bytes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.label.base import Kept, ReadError, Rejected, Sample
from stages.label.decode import Decode, Source
from stages.label.decoding.source import quick_hash

ROOT = Path(__file__).resolve().parents[4]
HOOKS = '''
import ctypes, os, pathlib, signal, time
import numpy as np, soxr
from stages.label.decoding.recording import answer

def by_name(request, send):
    go_wrong(request["path"])
    answer(request, send)

def go_wrong(path):
    """A file's name says what goes wrong while it is decoded; 'once' lets the second attempt be."""
    name = os.path.basename(path)
    if "once" in name:
        marker = pathlib.Path(path + ".tried")
        if marker.exists():
            return
        marker.touch()
    if "segfault" in name: ctypes.string_at(0)
    if "hang" in name: time.sleep(3600)
    if "sigkill" in name: os.kill(os.getpid(), signal.SIGKILL)
    if "sigterm" in name: os.kill(os.getpid(), signal.SIGTERM)
    if "bomb" in name: hoard = [np.empty(1 << 27) for _ in range(64)]
    if "bug" in name: raise ZeroDivisionError("a bug")
    if "midway" in name: soxr.ResampleStream = Midway
    if "slow" in name: soxr.ResampleStream = Slow

class Slow(soxr.ResampleStream):
    def resample_chunk(self, *args, **kwargs):
        time.sleep(1.0)
        return super().resample_chunk(*args, **kwargs)

class Midway(soxr.ResampleStream):
    count = 0
    def resample_chunk(self, *args, **kwargs):
        self.count += 1
        if self.count > 8: ctypes.string_at(0)
        return super().resample_chunk(*args, **kwargs)
'''


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    folder = tmp_path / "hooks"
    folder.mkdir()
    (folder / "overtone_hooks.py").write_text(HOOKS)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("OVERTONE_TEST_DECODER", "overtone_hooks:by_name")


def music(folder, name, seconds=2.0, rate_hz=16_000):
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(len(name)).normal(0, 0.1, int(seconds * rate_hz))
    soundfile.write(folder / name, noise, rate_hz, format="WAV", subtype="PCM_16")
    return source(folder / name)


def source(path):
    seen = os.stat(path)
    return Source(
        Path(path).name.split(".")[0], os.fsencode(path), seen.st_size, seen.st_mtime_ns, quick_hash(path)
    )


def outcomes(items):
    """Recording -> its outcome, asserting that each has exactly one."""
    found = [item for item in items if not isinstance(item, Sample)]
    assert len({item.recording for item in found}) == len(found)
    return {item.recording: item for item in found}


def members(items):
    return {item.key: item.members for item in items if isinstance(item, Sample)}


@pytest.fixture
def decoder(request):
    options = {"stall_s": 30.0} | getattr(request, "param", {})
    opened = Decode().open(**options)
    yield opened
    opened.close()


BAD = {
    "segfault": "decoder crashed: signal 11",
    "bug": "decoder crashed: ZeroDivisionError: a bug",
    "bomb": "decoder outgrew its memory budget of 2 GB",
    "hang": "decoder hung: no audio for 2 s",
}


@pytest.mark.parametrize("decoder", [{"stall_s": 2.0, "memory_gb": 2.0}], indirect=True)
def test_each_kind_of_bad_file_is_rejected_and_its_neighbours_are_untouched(tmp_path, hooks, decoder):
    good = [music(tmp_path / "good", f"good{i}.wav") for i in range(len(BAD) + 1)]
    alone = members(decoder(good))
    mixed = [good[0]]
    for name, neighbour in zip(BAD, good[1:], strict=True):
        mixed += [music(tmp_path / "bad", f"{name}.wav"), neighbour]
    items = list(decoder(mixed))
    found = outcomes(items)
    assert {name: found[name].reason for name in BAD} == BAD
    assert all(isinstance(found[g.recording], Kept) for g in good)
    assert members(items) == alone


@pytest.mark.parametrize("decoder", [{"stall_s": 2.0}], indirect=True)
@pytest.mark.parametrize("kind", ["segfault", "hang", "sigkill", "sigterm", "bug"])
def test_what_goes_wrong_once_is_forgiven(tmp_path, hooks, decoder, kind):
    once = music(tmp_path / "m", f"{kind}-once.wav")
    items = list(decoder([once]))
    assert Path(os.fsdecode(once.path_bytes) + ".tried").exists()
    assert isinstance(outcomes(items)[once.recording], Kept)


def test_a_second_attempt_goes_on_where_the_first_one_crashed(tmp_path, hooks, decoder):
    plain = music(tmp_path / "m", "plainly-nice.wav", seconds=70)
    crash = music(tmp_path / "m", "midway-once.wav", seconds=70)
    twice = music(tmp_path / "m", "midway-again.wav", seconds=70)
    whole = list(decoder([plain]))
    items = list(decoder([crash]))
    assert (
        [s.row["start"] for s in items[:-1]]
        == [s.row["start"] for s in whole[:-1]]
        == [0, 720_000, 1_440_000]
    )
    samples = [item.row["samples"] for item in items[:-1]]
    assert sum(samples) == 70 * 24_000 == items[-1].note["samples"]
    assert outcomes(decoder([twice]))["midway-again"].reason == "decoder crashed: signal 11"


@pytest.mark.parametrize("kind", ["sigkill", "sigterm"])
def test_killed_from_outside_twice_fails_the_shard_and_rejects_nothing(tmp_path, hooks, decoder, kind):
    with pytest.raises(ReadError, match=f"{kind}.wav: decoder crashed: signal .*, twice, from outside"):
        list(decoder([music(tmp_path / "m", f"{kind}.wav")]))
    good = music(tmp_path / "m", "good.wav")
    assert isinstance(outcomes(decoder([good]))["good"], Kept), "the decoder serves on"


@pytest.mark.parametrize("decoder", [{"stall_s": 1.5}], indirect=True)
def test_slower_than_real_time_is_a_hang_in_small_pieces(tmp_path, hooks, decoder):
    crawling = music(tmp_path / "m", "slow.wav", seconds=0.2)
    assert outcomes(decoder([crawling]))["slow"].reason.startswith("decoder too slow: 0 s of audio in 2 s")


def test_a_child_killed_between_two_recordings_is_replaced_quietly(tmp_path, decoder):
    first, second = (music(tmp_path / "m", f"{i}.wav") for i in range(2))
    list(decoder([first]))
    child = decoder._process._child.process
    child.kill()
    child.wait()
    assert isinstance(outcomes(decoder([second]))["1"], Kept)


def test_a_recording_left_in_the_middle_does_not_disturb_the_next(tmp_path, decoder):
    long, short = music(tmp_path / "m", "long.wav", seconds=400), music(tmp_path / "m", "short.wav")
    expected = members(decoder([short]))
    items = decoder([long])
    next(items)
    items.close()
    assert members(decoder([short])) == expected


def test_the_child_dies_with_its_parent(tmp_path, hooks):
    hung = music(tmp_path / "m", "hang.wav")
    program = (
        "from stages.label.decode import *; import threading, time\n"
        f"d = Decode().open(stall_s=3600); s = {hung!r}\n"
        "def tell():\n"
        "    while d._process._child is None: time.sleep(0.05)\n"
        "    print(d._process._child.process.pid, flush=True)\n"
        "threading.Thread(target=tell).start(); list(d([s]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_cannot_start_rejects_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTONE_TEST_DECODER", "no_such_module:f")
    decoder = Decode().open()
    with pytest.raises(ReadError, match="does not start.*no_such_module"):
        list(decoder([music(tmp_path / "m", "good.wav")]))
    decoder.close()


class TestUnreadBytesRejectNothing:
    def test_vanished(self, tmp_path, decoder):
        gone = music(tmp_path / "m", "gone.wav")
        os.unlink(gone.path_bytes)
        with pytest.raises(ReadError, match=f"gone.wav: cannot be read .errno {errno.ENOENT}"):
            list(decoder([gone]))

    def test_a_read_that_fails(self, decoder):
        # A regular file whose every read is EIO, as a dying disk's.
        dying = Source("dying", b"/proc/self/mem", 0, 0, quick_hash(os.devnull))
        with pytest.raises(ReadError, match=f"/proc/self/mem: cannot be read .errno {errno.EIO}"):
            list(decoder([dying]))

    @pytest.mark.parametrize("change", ["longer", "touched", "same size", "a folder"])
    def test_changed_since_the_scan(self, tmp_path, decoder, change):
        path = tmp_path / "x.wav"
        path.write_bytes(b"not audio at all" * 1000)  # it would be rejected, had it been this one
        planned = source(path)
        if change == "longer":
            path.write_bytes(b"not audio at all" * 1001)
        elif change == "touched":
            os.utime(path, ns=(1, 1))
        elif change == "same size":
            path.write_bytes(b"not audio at ALL" * 1000)
            os.utime(path, ns=(planned.mtime_ns, planned.mtime_ns))
        else:
            path.unlink()
            path.mkdir()
        with pytest.raises(
            ReadError, match="x.wav: changed since it was scanned; run the same command again"
        ):
            list(decoder([planned]))


def test_quick_hash_is_first_mib_last_mib_and_size(tmp_path):
    import hashlib

    big, small = os.urandom(3 << 20), b"abc"
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "small").write_bytes(small)
    mib = 1 << 20
    assert quick_hash(tmp_path / "big") == hashlib.sha256(big[:mib] + big[-mib:] + b"3145728").hexdigest()
    assert quick_hash(tmp_path / "small") == hashlib.sha256(b"abcabc3").hexdigest()


def test_memory_is_bounded_by_the_block_not_by_the_file(tmp_path, decoder):
    rate_hz = 16_000
    minute = np.random.default_rng(0).integers(-99, 99, 60 * rate_hz, np.int16)
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", rate_hz, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    list(decoder([music(tmp_path / "m", "short.wav", seconds=60)]))
    status = Path(f"/proc/{decoder._process._child.process.pid}/status")
    before_kb = _peak_kb(status)
    lengths = []
    for item in decoder([source(tmp_path / "hour.flac")]):
        if isinstance(item, Sample):
            lengths.append(item.row["samples"])
    assert sum(lengths) == 3600 * 24_000 and set(lengths) == {720_000}
    assert _peak_kb(status) - before_kb < 30_000, "the whole hour would be 230 MB as float32"


def _peak_kb(status):
    return int(status.read_text().split("VmHWM:")[1].split()[0])


def test_rejections_are_sent_back_with_the_child_alive(tmp_path, decoder):
    (tmp_path / "a.mp3").write_bytes(b"garbage" * 1000)
    list(decoder([music(tmp_path / "m", "good.wav")]))
    child = decoder._process._child.process.pid
    assert isinstance(outcomes(decoder([source(tmp_path / "a.mp3")]))["a"], Rejected)
    assert decoder._process._child.process.pid == child, "an ordinary rejection costs no process"
