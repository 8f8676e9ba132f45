"""Headers are probed in processes of their own: a crash, a hang or a bomb costs one file."""

import os
import time
from pathlib import Path

import pytest

from stages.label.scan import probe_pool as module
from stages.label.scan.probe_pool import probe_all

QUICKSTART = Path(__file__).resolve().parents[4] / "examples" / "quickstart"

FAKE = """
import os, signal, time
def probe(path):
    with open({log!r}, "ab") as log:
        log.write(os.path.basename(path) + b"\\n")
    if b"segfault" in path: os.kill(os.getpid(), signal.SIGSEGV)
    if b"exit" in path: os._exit(3)
    if b"hang" in path: time.sleep(100)
    if b"raise" in path: raise KeyError("odd")
    if b"once" in path and open({log!r}, "rb").read().count(b"once") < 2: os._exit(3)
    return {{"reason": None}}
"""


def probed(paths, workers):
    outcomes = list(probe_all(((path, "more", 5) for path in paths), workers))
    assert all(more == ["more", 5] for (_, *more), _ in outcomes)
    return [(path, facts) for (path, *_), facts in outcomes]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBE", "overtone_fake_probe:probe")
    monkeypatch.setattr(module, "HANG_S", 1.0)
    (tmp_path / "overtone_fake_probe.py").write_text(FAKE.format(log=str(tmp_path / "log")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_crashes_and_hangs_cost_one_file_each(fake, tmp_path):
    odd = {
        b"/segfault": "decoder crashed: signal 11",
        b"/exit": "decoder crashed: exit code 3",
        b"/hang": "header probe hung for 1 s",
        b"/raise": "decoder failed: KeyError: 'odd'",
        b"/once": None,
    }
    paths = [b"/good%d" % i for i in range(150)]
    for place, path in zip((3, 40, 70, 100, 149), odd, strict=True):
        paths.insert(place, path)
    outcomes = probed(paths, 2)
    assert sorted(path for path, _ in outcomes) == sorted(paths)
    reasons = {path: facts["reason"] for path, facts in outcomes if facts["reason"]}
    assert reasons == {path: reason for path, reason in odd.items() if reason}
    tried = (tmp_path / "log").read_bytes().split(b"\n")
    assert [tried.count(p[1:]) for p in odd] == [2, 2, 2, 1, 2]


def test_few_files_start_fast_and_none_start_nothing(monkeypatch):
    begun = time.perf_counter()
    assert len(probed([os.fsencode(QUICKSTART / "stg4.ogg")], 8)) == 1
    assert time.perf_counter() - begun < 10
    monkeypatch.setattr("stages.label.scan.probe_pool._Worker", None)
    assert list(probe_all([], 8)) == []


def test_a_worker_that_cannot_start_is_not_the_files_fault(monkeypatch):
    monkeypatch.setattr(module, "PROBE", "no_such_module:probe")
    with pytest.raises(RuntimeError, match="could not start"):
        probed([b"/a"], 1)
