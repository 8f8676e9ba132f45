"""Headers are probed in processes of their own: a crash, a hang or a bomb costs one file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.label.scan import probe_pool as module
from stages.label.scan.probe_pool import probe_all

ROOT = Path(__file__).resolve().parents[4]
QUICKSTART = ROOT / "examples" / "quickstart"

FAKE = """
import os, signal, time
def probe(path):
    with open({log!r}, "ab") as log:
        log.write(os.path.basename(path) + b"\\n")
    if b"segfault" in path: os.kill(os.getpid(), signal.SIGSEGV)
    if b"exit" in path: os._exit(3)
    if b"hang" in path: time.sleep(100)
    if b"raise" in path: raise KeyError("odd")
    if b"bomb" in path: hoard = bytearray(8 << 30)
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


def test_one_that_hangs_while_it_starts_is_not_the_files_fault(fake, tmp_path, monkeypatch):
    (tmp_path / "overtone_slow_import.py").write_text("import time\ntime.sleep(100)\n")
    monkeypatch.setattr(module, "PROBE", "overtone_slow_import:probe")
    monkeypatch.setattr(module, "START_S", 0.5)
    with pytest.raises(RuntimeError, match="could not start .header probe hung for 0.5 s"):
        probed([b"/a"], 1)


def test_a_bomb_meets_the_memory_limit_and_costs_itself(fake, tmp_path, monkeypatch):
    assert module.MEMORY_GB == 4.0
    monkeypatch.setattr(module, "MEMORY_GB", 2.0)
    outcomes = dict(probed([b"/a", b"/bomb", b"/b"], 1))
    assert {path: facts["reason"] for path, facts in outcomes.items()} == {
        b"/a": None, b"/bomb": "unreadable: out of memory", b"/b": None,
    }  # fmt: skip
    assert (tmp_path / "log").read_bytes().count(b"bomb") == 2


def test_any_bytes_are_a_path(fake, tmp_path):
    paths = [b"/b\xff\xfe", "/ünïcode".encode(), b'/qu"o\\te', b"/new line"]
    assert sorted(path for path, _ in probed(paths, 1)) == sorted(paths)
    assert (tmp_path / "log").read_bytes().split(b"\n")[:-1] == [path[1:] for path in paths]


@pytest.mark.parametrize("files, workers, processes", [(64, 8, 1), (65, 8, 2), (300, 2, 2)])
def test_processes_start_as_chunks_need_them(fake, monkeypatch, files, workers, processes):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: started.append(popen(*a, **b)) or started[-1])
    assert len(probed([b"/good%d" % i for i in range(files)], workers)) == files
    assert len(started) == processes
    assert all(process.returncode is not None for process in started)


def test_nothing_stays_open_and_nobody_alive_when_it_is_left_midway(fake, monkeypatch):
    started, popen = [], subprocess.Popen
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: started.append(popen(*a, **b)) or started[-1])
    outcomes = probe_all(((b"/good%d" % i,) for i in range(200)), 2)
    next(outcomes)
    outcomes.close()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_killed_while_idle_costs_no_file(fake, monkeypatch):
    """After its first chunk, for which a second worker is busy: it gets another that it cannot answer."""
    workers, real = [], module._Worker
    monkeypatch.setattr(module, "_Worker", lambda: workers.append(real()) or workers[-1])

    def paths():
        for place in range(64):
            yield (b"/good%d" % place,)
        (worker,) = workers
        worker.process.kill()
        worker.process.wait()
        yield (b"/last",)

    monkeypatch.setattr(module, "CHUNK", 64)
    outcomes = list(probe_all(paths(), 1))
    assert len(outcomes) == 65 and all(facts["reason"] is None for _, facts in outcomes)
    assert len(workers) == 2


def test_the_children_die_with_their_parent(fake, tmp_path):
    program = (
        "from stages.label.scan import probe_pool as module\n"
        "import subprocess\n"
        "module.PROBE = 'overtone_fake_probe:probe'\n"
        "popen = subprocess.Popen\n"
        "def start(*a, **b):\n"
        "    child = popen(*a, **b)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "subprocess.Popen = start\n"
        "list(module.probe_all([(b'/hang',)], 1))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = Path("/proc", parent.stdout.readline().strip(), "stat")
    deadline = time.monotonic() + 30
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # until it hangs
    parent.kill()
    parent.wait()
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(stat):
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_children_that_are_kept_serve_the_next_call(fake, tmp_path):
    kept = []
    for path, reason in ((b"/a", None), (b"/segfault", "decoder crashed: signal 11"), (b"/b", None)):
        [(_, facts)] = probe_all([(path,)], 1, kept)
        assert facts["reason"] == reason
        if path == b"/a":
            [first] = kept
    [last] = kept
    assert last is not first and last.alive()
    begun = probe_all([(b"/good",), (b"/hang",)], 1, kept)
    next(begun)
    begun.close()
    assert kept == [] and not last.alive(), "one in the middle of something is not"
