"""One run at a time on one OUT: locally by the kernel, on an object store by an object that beats."""

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from pipeline.labelling import lock
from pipeline.labelling.lock import NAME, locked
from stages.shards import objects
from stages.shards.storage import Storage
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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_as_what_it_is(tmp_path, monkeypatch, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(ValueError) as error, locked(Storage(tmp_path)):
        raise AssertionError("it is not locked")
    assert str(error.value) == (
        f"{tmp_path}/run.lock cannot be locked ({os.strerror(number)}), nothing would keep a second run out: "
        f"mount its file system with locks (NFS: the lock service, Lustre: -o flock), or move OUT"
    )


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
def quick(monkeypatch):
    """Beats in hundredths of a second, patience in tenths; what a waiting run was told."""
    for name, seconds in {"BEAT_S": 0.02, "STALE_S": 1.5, "FENCE_S": 0.7, "WATCH_S": 0.02}.items():
        monkeypatch.setattr(lock, name, seconds)


ELSEWHERE = {"host": "far", "pid": 7, "since": "long ago", "token": "other", "machine": "another boot"}
FAR = "process 7 on far since long ago"


def entry(out: Storage) -> dict:
    return json.loads(objects.get(out.path(NAME))[0])  # in one request, of one version


def hold(out: Storage, **more) -> None:
    out.write(NAME, json.dumps(ELSEWHERE | {"beat": 0} | more).encode())


def here() -> dict:
    return {"machine": lock._machine(), "pid": os.getpid(), "born": lock._born(os.getpid())}


def test_on_a_store_a_second_run_is_refused_at_once_and_the_lock_is_free_at_the_end(out):
    for generation in (1, 2, 3):
        with locked(out):
            held = entry(out)
            assert held["generation"] == generation and held["pid"] == os.getpid() and "free" not in held
            assert refused(out) == said(
                out, f"process {os.getpid()} on {platform.node()} since {held['since']}"
            )
            assert entry(out)["token"] == held["token"]
        assert entry(out)["free"] and entry(out)["generation"] == generation


def test_on_a_store_the_lock_is_free_after_an_error_too(out):
    with pytest.raises(KeyError), locked(out):
        raise KeyError
    assert entry(out)["free"]


def test_a_killed_run_of_this_machine_is_followed_at_once(out):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, out.root], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        held = entry(out)
        assert held["pid"] == holder.pid
        assert refused(out) == said(out, f"process {holder.pid} on {platform.node()} since {held['since']}")
    finally:
        holder.kill()
        holder.wait()
    told = []
    with locked(out, told.append):
        assert entry(out)["generation"] == 2 and entry(out)["pid"] == os.getpid() and not told


def test_a_number_used_again_by_another_process_is_no_holder(out):
    hold(out, **here() | {"born": "1"})
    with locked(out):
        assert entry(out)["token"] != "other"


def test_a_live_process_of_another_container_is_not_taken_for_a_dead_one_here(out, quick):
    """Its number means nothing here: only its silence does."""
    hold(out, **here() | {"machine": "this boot pid:[2]", "pid": 2**22 + 1})
    told = []
    with locked(out, told.append):
        assert told and entry(out)["token"] != "other"


def test_a_run_that_died_elsewhere_is_followed_after_a_countdown(out, quick, monkeypatch):
    monkeypatch.setattr(lock, "SAY_S", 0.6)
    hold(out, beat=2e12, generation=6)  # by its clock in the future
    told = []
    with locked(out, told.append):
        assert entry(out)["generation"] == 7
    assert told[0] in [f"{out.root}: no sign of life from {FAR} yet; taken over in {s} s" for s in (1, 2)]
    assert len(told) in (2, 3)


def test_a_run_elsewhere_is_in_use_at_its_first_beat_whatever_its_clock_says(out, quick, monkeypatch):
    hold(out, beat=-5)
    assert refuse_after(out, monkeypatch, lambda: hold(out, beat=-4)) == said(out, FAR)
    assert entry(out) == ELSEWHERE | {"beat": -4}


@pytest.mark.parametrize("way", ["marked as free", "deleted"])
def test_a_run_elsewhere_that_ends_meanwhile_is_followed(out, quick, monkeypatch, way):
    hold(out)
    end = (lambda: hold(out, free=True)) if way == "marked as free" else (lambda: out.delete(NAME))
    told = at_the_first_word(monkeypatch, end)
    with locked(out, told):
        assert entry(out)["pid"] == os.getpid()


def at_the_first_word(monkeypatch, act):
    acts = [act]
    return lambda text: acts and acts.pop()()


def refuse_after(out: Storage, monkeypatch, act) -> str:
    with pytest.raises(ValueError) as error, locked(out, at_the_first_word(monkeypatch, act)):
        raise AssertionError("two runs at once")
    return str(error.value)


@pytest.mark.parametrize("before", [None, {"free": True}])
def test_a_store_that_refuses_now_and_then_starts_no_run_in_vain(out, monkeypatch, before):
    """The first look and the first write come to nothing; of the second one only the answer is lost."""
    monkeypatch.setattr(objects, "PAUSE_S", 0.01)
    if before:
        hold(out, **before)
    real, left = {"get": objects.get, "put": objects.put}, {"get": [OSError()], "put": [OSError(), None]}

    def failing(name: str, *args, **condition):
        if not left[name]:
            return real[name](*args, **condition)
        if (error := left[name].pop(0)) is None:
            real[name](*args, **condition)
        raise error or OSError("its answer was lost")

    for name in real:
        monkeypatch.setattr(objects, name, partial(failing, name))
    with locked(out):
        assert entry(out)["pid"] == os.getpid() and not any(left.values())


@pytest.mark.parametrize("data", [b"torn", b"", b"[3]", b'{"beat": 1}'])
def test_a_torn_entry_holds_nothing(out, data):
    out.write(NAME, data)
    with locked(out):
        assert entry(out)["pid"] == os.getpid()


@pytest.mark.parametrize("before", [None, {"free": True}])
def test_of_two_that_start_at_once_one_has_it(out, monkeypatch, before):
    if before:
        hold(out, **before)
    both, ends, done = threading.Barrier(2, timeout=20), [], threading.Event()

    def seen(self, real=lock.Beating._seen):
        found = real(self)
        if not ends and not both.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait()  # both have seen that nobody holds it
            both.abort()
        return found

    monkeypatch.setattr(lock.Beating, "_seen", seen)

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


def beats(out: Storage, count: int) -> None:
    seen = set()
    with SoonEnough() as soon:
        while len(seen) < count:
            seen.add(entry(out)["beat"])
            soon.check()


class SoonEnough:
    """A limit for what a thread is to do."""

    def __enter__(self):
        self.end = time.monotonic() + 20
        return self

    def check(self) -> None:
        assert time.monotonic() < self.end, "it does not come"
        time.sleep(0.005)

    def __exit__(self, *_):
        pass


def test_it_beats_while_the_run_goes_on_also_after_the_store_failed(out, quick, monkeypatch):
    with locked(out):
        beats(out, 3)
        fails = [OSError("busy")] * 2

        def put(*given, real=objects.put, **condition):
            if fails:
                raise fails.pop()
            return real(*given, **condition)

        monkeypatch.setattr(objects, "put", put)
        beats(out, 3)
        assert not fails


def test_a_beat_whose_answer_was_lost_is_known_as_our_own(out, quick, monkeypatch):
    lost = []

    def put(*given, real=objects.put, **condition):
        etag = real(*given, **condition)
        if not lost:
            lost.append(etag)
            raise OSError("connection reset")
        return etag

    with locked(out):
        monkeypatch.setattr(objects, "put", put)
        beats(out, 4)
        assert lost
    assert entry(out)["free"]


def stopped(out: Storage, act) -> str:
    """What a run is told that loses its lock."""
    with pytest.raises(OSError) as error, locked(out):
        act()
        with SoonEnough() as soon:
            while True:
                soon.check()
    return str(error.value)


def test_a_run_whose_lock_was_taken_stops_and_leaves_the_others_entry(out, quick):
    assert stopped(out, lambda: hold(out)) == (
        f"{out.root} is no longer this run's ({FAR} took it over): it was stopped; finished shards are kept, "
        f"run the same command again"
    )
    assert entry(out) == ELSEWHERE | {"beat": 0}


def test_a_run_whose_store_does_not_answer_stops_before_another_can_come_in(out, quick, monkeypatch):
    def put(*_, **__):
        raise OSError("no route to host")

    assert lock.FENCE_S + 4 * objects.HASTE_S < 60 and lock.STALE_S > 2 * lock.FENCE_S
    why = stopped(out, lambda: monkeypatch.setattr(objects, "put", put))
    assert "(the store does not answer: no route to host)" in why
    monkeypatch.undo()
    assert "free" not in entry(out)


def test_a_run_whose_entry_was_deleted_stops(out, quick):
    assert "(another process took it over)" in stopped(out, lambda: out.delete(NAME))
    assert not out.exists(NAME)


def test_another_error_of_a_run_that_lost_its_lock_is_not_hidden(out, quick):
    def act():
        hold(out)
        with SoonEnough() as soon:
            try:
                while True:
                    soon.check()
            except KeyboardInterrupt:
                raise KeyError("its own") from None

    with pytest.raises(KeyError, match="its own"), locked(out):
        act()


def test_the_times_leave_room_for_each_other():
    """The holder gives up while the one that waits still waits, however slow the store is."""
    assert lock.FENCE_S + lock.BEAT_S + 2 * 2 * objects.HASTE_S < lock.STALE_S
    assert lock.BEAT_S * 3 < lock.FENCE_S and lock.STALE_S < 90  # older versions


# Parts of one run.


@pytest.mark.parametrize("where", ["local", "store"])
def test_parts_run_side_by_side_and_neither_twice_nor_beside_a_whole_run(out, tmp_path, where):
    place = Storage(tmp_path) if where == "local" else out
    with locked(place, part="0-of-2"), locked(place, part="1-of-2"):
        assert "is in use by another run" in refused(place)
        with pytest.raises(ValueError, match="is in use by another run"), locked(place, part="1-of-2"):
            raise AssertionError("a part twice")
    refusal = pytest.raises(ValueError, match="is in use by another run")
    with locked(place), refusal, locked(place, part="0-of-2"):
        raise AssertionError("a part beside a whole run")
    with locked(place, part="0-of-2"):
        pass
