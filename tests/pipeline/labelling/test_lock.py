"""One run at a time on one OUT: locally by the kernel, on an object store by an object that beats."""

import json
import os
import platform
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from pipeline.labelling import lock
from pipeline.labelling.lock import NAME, locked
from stages.shards.storage import Storage
from tests.cluster.fakes import Threads
from tests.conftest import ROOT
from tests.object_store import served

HOLD = (
    "import sys, time\n"
    "from pipeline.labelling.lock import locked\nfrom stages.shards.storage import Storage\n"
    "with locked(Storage(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


def refused(out: Storage) -> str:
    """What a second run is told; it must not come in."""
    with pytest.raises(ValueError) as error, locked(out):
        raise AssertionError("two runs at once")
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


def said(out: Storage, who: str) -> str:
    return f"{out.root} is in use by another run ({who}): wait for it or stop it; nothing was changed"


# A local OUT.


def test_the_lock_of_a_killed_process_is_free_and_while_it_lives_it_is_named(tmp_path):
    out = Storage(tmp_path / "not yet" / "there")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, out.root], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # to be refused leaves the holder's name in place
            held = json.loads(out.read(NAME))
            assert held["pid"] == holder.pid and held["host"] == platform.node()
            assert refused(out) == said(
                out, f"process {holder.pid} on {platform.node()} since {held['since']}"
            )
    finally:
        holder.kill()
        holder.wait()
    with locked(out):
        assert json.loads(out.read(NAME))["pid"] == os.getpid()


def test_the_lock_is_given_back_at_the_end_and_after_an_error(tmp_path):
    out = Storage(tmp_path)
    out.write(NAME, b"a text longer than a holder's entry, left by a run that died" * 9)
    for _ in range(2):
        with pytest.raises(KeyError), locked(out):
            assert f"process {os.getpid()} on" in refused(out)
            raise KeyError
    with locked(out):
        pass


def test_a_holder_that_has_not_yet_said_who_it_is_is_another_process(tmp_path):
    out = Storage(tmp_path)
    with locked(out):
        for text in (b"", b"torn", b"[]", b"3", b'{"pid": 3, "host": "h"}'):
            (tmp_path / NAME).write_bytes(text)
            assert refused(out) == said(out, "another process")


def test_two_folders_are_locked_apart(tmp_path):
    with locked(Storage(tmp_path / "a")), locked(Storage(tmp_path / "b")):
        holders = {name: json.loads((tmp_path / name / NAME).read_bytes())["pid"] for name in "ab"}
    assert holders == dict.fromkeys("ab", os.getpid())


# An OUT on an object store.


@pytest.fixture(scope="module")
def store():
    with served("labels"):
        yield "s3://labels"


@pytest.fixture
def out(store, request) -> Storage:
    """An OUT of this test alone."""
    return Storage(f"{store}/{request.node.name.translate(str.maketrans('[]', '--'))}")


@pytest.fixture
def clock(monkeypatch):
    """The hour, and what happens while a starting run waits to see whether another started with it."""
    found = SimpleNamespace(now=50_000.0, waits=[], meanwhile=lambda: None)

    def sleep(seconds):
        found.waits.append(seconds)
        found.meanwhile()

    monkeypatch.setattr(
        lock,
        "time",
        SimpleNamespace(time=lambda: found.now, sleep=sleep, strftime=lambda form: "2001-02-03 04:05:06"),
    )
    return found


def entry(beat: float, token: str = "other") -> bytes:  # noqa: S107
    return json.dumps({"host": "far", "pid": 7, "since": "long ago", "token": token, "beat": beat}).encode()


def test_on_a_store_the_second_run_is_refused_and_the_object_goes_at_the_end(out, clock):
    with locked(out):
        held = json.loads(out.read(NAME))
        token = held.pop("token")
        assert (
            held
            == {
                "host": platform.node(),
                "pid": os.getpid(),
                "since": "2001-02-03 04:05:06",
                "beat": clock.now,
            }
            and len(token) == 32
        )
        assert refused(out) == said(
            out, f"process {os.getpid()} on {platform.node()} since 2001-02-03 04:05:06"
        )
        assert json.loads(out.read(NAME))["token"] == token
    assert not out.exists(NAME) and clock.waits == [lock.SETTLE_S]


def test_on_a_store_the_object_goes_after_an_error_too(out, clock):
    with pytest.raises(KeyError), locked(out):
        raise KeyError
    assert not out.exists(NAME)


@pytest.mark.parametrize(
    ("age", "free"), [(0, False), (lock.STALE_S - 1, False), (lock.STALE_S, True), (lock.STALE_S + 1, True)]
)
def test_a_run_that_died_holds_a_store_until_its_last_beat_is_stale(out, clock, age, free):
    out.write(NAME, entry(clock.now - age))
    if free:
        with locked(out):
            assert json.loads(out.read(NAME))["pid"] == os.getpid()
        assert not out.exists(NAME)
    else:
        assert refused(out) == said(out, "process 7 on far since long ago")
        assert out.read(NAME) == entry(clock.now - age) and clock.waits == []


def test_a_torn_entry_holds_nothing(out, clock):
    out.write(NAME, b"torn")
    with locked(out):
        assert json.loads(out.read(NAME))["pid"] == os.getpid()
    assert not out.exists(NAME)


def test_a_run_outbid_while_it_waits_is_refused_and_leaves_the_others_entry(out, clock):
    clock.meanwhile = lambda: out.write(NAME, entry(clock.now))
    assert refused(out) == said(out, "process 7 on far since long ago")
    assert out.read(NAME) == entry(clock.now)


def test_a_run_whose_entry_vanished_while_it_waited_is_refused(out, clock):
    clock.meanwhile = lambda: out.delete(NAME)
    assert refused(out) == said(out, "another process")


def test_of_two_that_start_at_once_one_has_it(out, clock, monkeypatch):
    both, ends, done = threading.Barrier(2), [], threading.Event()

    def write(name, data, real=out.write):
        both.wait(20)  # both have seen that nobody holds it
        real(name, data)

    monkeypatch.setattr(out, "write", write)
    clock.meanwhile = lambda: both.wait(20)  # both have written

    def start():
        try:
            with locked(out):
                ends.append("held")
                done.wait(20)
        except ValueError as error:
            ends.append(str(error))
            done.set()

    runs = [threading.Thread(target=start) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert sorted(end.split(" is in use")[0] for end in ends) == sorted(["held", out.root])
    assert not out.exists(NAME)


def test_it_beats_while_the_run_goes_on_also_after_the_store_failed_once(out, clock, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    beaten, threads = threading.Semaphore(0), Threads()
    monkeypatch.setattr(lock, "threading", threads)
    with locked(out):
        own = json.loads(out.read(NAME))
        fails = [OSError("the store is busy")]

        def write(name, data, real=out.write):
            if fails:
                raise fails.pop()
            real(name, data)
            beaten.release()

        monkeypatch.setattr(out, "write", write)
        clock.now += 60
        for _ in range(3):
            assert beaten.acquire(timeout=20), "it beats no more"
        assert json.loads(out.read(NAME)) == own | {"beat": clock.now} and not fails
        assert threads.begun[0].daemon  # a run that is interrupted ends
    assert not out.exists(NAME) and not threads.begun[0].is_alive()


def test_a_beat_under_way_at_the_end_does_not_bring_the_object_back(out, clock, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    begun, slow, written = threading.Event(), threading.Event(), threading.Event()
    with locked(out):

        def write(name, data, real=out.write):
            begun.set()
            slow.wait(20)
            real(name, data)
            written.set()

        monkeypatch.setattr(out, "write", write)
        assert begun.wait(20)
        threading.Timer(0.2, slow.set).start()
    assert written.wait(20) and not out.exists(NAME)


@pytest.mark.parametrize("token", ["", "zz"])
def test_the_entry_of_another_that_took_over_is_left(out, clock, token):
    with locked(out):
        out.write(NAME, entry(clock.now, token))
    assert out.read(NAME) == entry(clock.now, token)


def test_runs_of_other_versions_reckon_with_the_same_times():
    assert (lock.BEAT_S, lock.STALE_S, lock.SETTLE_S) == (20, 90, 2)
