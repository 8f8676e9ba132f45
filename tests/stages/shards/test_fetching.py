"""What is fetched while something else is worked on: order, bounds, failures. Events, never the clock,
decide."""

import contextlib
import errno
import pickle
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from stages.shards.fetching import Arrival, OneAhead
from stages.shards.storage import Storage
from tests.object_store import SlowStore

PATIENCE_S = 30.0  # until a test that hangs fails


@pytest.fixture
def remote(tmp_path):
    storage = Storage(tmp_path)
    storage.write("f", bytes(range(35)))
    storage.is_local, storage.fs = False, SlowStore(10, PATIENCE_S, 10)
    return storage


def test_the_first_bytes_are_there_before_the_last(remote):
    with remote.arriving("f") as (path, arrived):
        arrived(10)
        assert path.read_bytes() == bytes(range(10))
        remote.fs.go.set()
        arrived(35)
        assert path.read_bytes() == bytes(range(35))
        arrived(3)
    assert not path.exists()


def test_a_file_that_is_shorter_than_its_index_says_is_told(remote):
    remote.fs.go.set()
    with remote.arriving("f") as (_, arrived), pytest.raises(OSError, match="f has 35 bytes, 36 are needed"):
        arrived(36)


@pytest.mark.parametrize(
    "error, number",
    [(OSError(errno.ENOSPC, "No space left"), errno.ENOSPC), (pa.ArrowInvalid("odd answer"), None)],
)
def test_what_breaks_the_copy_is_raised_where_it_is_waited_for_and_rejects_nothing(remote, error, number):
    """OSError fails a shard; a ValueError, as ArrowInvalid is, would reject the recording."""
    remote.fs.error = error
    remote.fs.go.set()
    with remote.arriving("f") as (_, arrived):
        arrived(10)
        with pytest.raises(OSError) as raised:
            arrived(20)
    assert raised.value.errno == number and str(error) in str(raised.value)


def test_left_early_the_copy_ends(remote):
    with remote.arriving("f") as (path, arrived):
        arrived(10)
        remote.fs.go.set()
    assert not path.exists() and not [t for t in threading.enumerate() if t.name.startswith("arriving")]


def test_left_early_no_more_is_asked_for(remote, monkeypatch):
    stop = Arrival.stop

    def stopped(self):
        stop(self)
        remote.fs.go.set()

    monkeypatch.setattr(Arrival, "stop", stopped)
    remote.fs.patience_s = 3.0
    with remote.arriving("f") as (_, arrived):
        arrived(10)
        assert remote.fs.asked.wait(PATIENCE_S)
    assert remote.fs.go.is_set() and remote.fs.reads == 2


def test_one_who_waits_is_told_of_each_chunk_and_of_the_end():
    asked, chunks = threading.Semaphore(0), iter([b"abc", b"def", b""])

    class Told(threading.Condition):
        def wait(self, timeout=None):
            asked.release()  # what is copied then is told once this waits: the lock is held until it does
            assert super().wait(5.0), "nobody told"
            return True

    class Source:
        def read(self, count):
            assert asked.acquire(timeout=PATIENCE_S)
            return next(chunks)

    with tempfile.NamedTemporaryFile() as copy, ThreadPoolExecutor(1) as pool:
        arrival = Arrival("f", Path(copy.name))
        arrival._changed = Told()
        arrival.start(pool, Source(), copy)
        arrival.wait(3)
        arrival.wait(6)
        with pytest.raises(OSError, match="f has 6 bytes, 7 are needed"):
            arrival.wait(7)


def test_a_local_file_is_itself(tmp_path):
    storage = Storage(tmp_path)
    storage.write("f", b"abc")
    with storage.arriving("f") as (path, arrived):
        arrived(1000)
        assert path == tmp_path / "f"
    assert path.exists()


class Copies:
    """A fetch that notes what is begun and given back."""

    def __init__(self):
        self.begun, self.held, self.broken, self.seen = [], set(), set(), threading.Condition()

    @contextlib.contextmanager
    def __call__(self, address):
        with self.seen:
            self.begun.append(address)
            self.seen.notify_all()
        if address in self.broken:
            raise OSError(f"no route to {address}")
        self.held.add(address)
        try:
            yield f"copy of {address}"
        finally:
            self.held.discard(address)

    def wait(self, count):
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.begun) >= count, PATIENCE_S), (
                f"only {self.begun} were begun"
            )


def test_the_next_is_fetched_while_one_is_worked_on_and_no_more_than_that():
    copies, addresses = Copies(), ["s3://a", "s3://b", "s3://c"]
    fetch = OneAhead(copies)
    with fetch.expecting(addresses):
        for number, address in enumerate(addresses):
            with fetch(address) as path:
                assert path == f"copy of {address}"
                copies.wait(min(number + 2, 3))
                assert copies.begun == addresses[: number + 2] and len(copies.held) <= 2
            assert address not in copies.held
    assert not copies.held


def test_one_that_cannot_be_fetched_is_told_when_it_is_asked_for():
    copies = Copies()
    copies.broken.add("s3://b")
    fetch = OneAhead(copies)
    with fetch.expecting(["s3://a", "s3://b", "s3://c"]):
        with fetch("s3://a"):
            copies.wait(2)
        with pytest.raises(OSError, match="no route to s3://b"), fetch("s3://b"):
            pass
        with fetch("s3://c") as path:
            assert path == "copy of s3://c"
    assert not copies.held


def test_a_shard_that_ends_early_gives_back_what_was_fetched_for_it():
    copies, made = Copies(), []

    def begin(address):
        made.append(copies(address))  # referred to, else what is forgotten would end by itself
        return made[-1]

    fetch = OneAhead(begin)
    with pytest.raises(RuntimeError), fetch.expecting(["s3://a", "s3://b"]), fetch("s3://a"):
        copies.wait(2)
        raise RuntimeError
    assert not copies.held and copies.begun == ["s3://a", "s3://b"]
    with fetch("s3://b") as path:
        assert path == "copy of s3://b", "nothing is expected: fetched as it is asked for"
    with fetch.expecting(["s3://b"]), fetch("s3://b"):
        assert copies.begun[2:] == ["s3://b", "s3://b"] and copies.held == {"s3://b"}, (
            "not the copy that was given back"
        )


def test_a_shard_that_ends_before_its_next_has_failed_to_come_ends_as_it_would():
    copies = Copies()
    copies.broken.add("s3://b")
    fetch = OneAhead(copies)
    with fetch.expecting(["s3://a", "s3://b"]), fetch("s3://a"):
        copies.wait(2)
    assert not copies.held


def test_it_travels_to_a_worker():
    fetch = pickle.loads(pickle.dumps(OneAhead(contextlib.nullcontext)))
    with fetch.expecting(["x"]), fetch("x") as path:
        assert path == "x"
