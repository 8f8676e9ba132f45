"""The witness: the bytes are those that were scanned, all of them were read, or nothing is rejected."""

import errno
import hashlib
import io
import os
import threading

import numpy as np
import pytest

from stages.label.base import ReadError
from stages.label.decoding import source as module
from stages.label.decoding.source import MIB, Source, SourceHasher, quick_hash, unreadable

DATA = np.random.default_rng(0).bytes(1000) * 3000  # three chunks of the witness, the last one short


@pytest.fixture
def path(tmp_path):
    (tmp_path / "x.wav").write_bytes(DATA)
    return tmp_path / "x.wav"


def planned(path, **values):
    seen = os.stat(path)
    known = {
        "recording": "r",
        "path_bytes": os.fsencode(path),
        "size": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
    }
    return Source(**known | {"quick": quick_hash(path)} | values)


def witnessed(source, path):
    return SourceHasher(source, os.fsencode(path)).result(30.0)


class TestQuickHash:
    @pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1])
    def test_first_mib_last_mib_and_size(self, tmp_path, size):
        assert MIB == 1 << 20
        data = (DATA + DATA)[:size]
        (tmp_path / "x").write_bytes(data)
        assert (
            quick_hash(tmp_path / "x")
            == hashlib.sha256(data[: 1 << 20] + data[-(1 << 20) :] + str(size).encode()).hexdigest()
        )

    def test_short_reads_of_a_network_file_system_are_put_together(self, tmp_path, path, monkeypatch):
        whole = quick_hash(path)
        real = open

        class Short:
            def __init__(self, *args, **options):
                self._file = real(*args, **options)
                self.fileno, self.seek = self._file.fileno, self._file.seek

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self._file.close()

            def read(self, count):
                return self._file.read(min(count, 65_537))

        monkeypatch.setattr(module, "open", Short, raising=False)
        assert quick_hash(path) == whole


class TestWitness:
    def test_a_file_as_it_was_scanned_gives_its_sha256(self, path):
        assert witnessed(planned(path), path) == hashlib.sha256(DATA).hexdigest()

    @pytest.mark.parametrize(
        "values", [{"size": len(DATA) - 1}, {"size": len(DATA) + 1}, {"mtime_ns": 5}, {"quick": "0" * 64}]
    )
    def test_another_size_time_or_beginning_is_a_change(self, path, values):
        with pytest.raises(
            ReadError, match="x.wav: changed since it was scanned; run the same command again$"
        ):
            witnessed(planned(path, **values), path)

    @pytest.mark.parametrize("values", [
        {"size": len(DATA) - 1}, {"size": len(DATA) + 1}, {"mtime_ns": 5}, {"mtime_ns": 1 << 62},
    ])  # fmt: skip
    def test_a_changed_size_or_time_is_seen_before_anything_is_decoded(self, path, values):
        with pytest.raises(ReadError, match="changed since"):
            SourceHasher(planned(path, **values), os.fsencode(path))

    @pytest.mark.parametrize("given", [len(DATA) - 7, len(DATA) + 7])
    def test_fewer_or_more_bytes_than_the_size_says_are_a_change(self, path, tmp_path, monkeypatch, given):
        """As a network file system may give of a file that another machine writes."""
        source = planned(path)
        (tmp_path / "given").write_bytes((DATA + DATA)[:given])
        monkeypatch.setattr(
            module, "open", lambda place, *_, **options: io.FileIO(tmp_path / "given"), raising=False
        )
        monkeypatch.setattr(module, "quick_hash", lambda place: source.quick)
        with pytest.raises(ReadError, match="changed since"):
            witnessed(source, path)

    def test_no_time_is_compared_where_the_store_has_none_or_the_copy_is_fetched(self, path):
        sha256 = hashlib.sha256(DATA).hexdigest()
        assert witnessed(planned(path, mtime_ns=0), path) == sha256
        assert witnessed(planned(path, mtime_ns=5, path_bytes=b"s3://bucket/x.wav"), path) == sha256
        with pytest.raises(ReadError, match="^s3://bucket/x.wav: changed"):
            witnessed(planned(path, size=5, path_bytes=b"s3://bucket/x.wav"), path)

    def test_what_is_no_file_any_more_is_a_change(self, tmp_path, path):
        source = planned(path)
        path.unlink()
        os.mkfifo(path)
        seen = os.stat(path)
        with pytest.raises(ReadError, match="changed since"):
            SourceHasher(
                Source("r", source.path_bytes, seen.st_size, seen.st_mtime_ns, source.quick),
                os.fsencode(path),
            )

    @pytest.mark.parametrize("change", ["touched", "longer"])
    def test_written_to_while_it_is_read_is_a_change(self, path, monkeypatch, change):
        source = planned(path)
        real = quick_hash

        def meanwhile(place):
            found = real(place)
            if change == "longer":
                with open(path, "ab") as file:
                    file.write(b"more")
            os.utime(path, ns=(source.mtime_ns, source.mtime_ns + (change == "touched")))
            return found

        monkeypatch.setattr(module, "quick_hash", meanwhile)
        with pytest.raises(ReadError, match="changed since"):
            witnessed(source, path)

    def test_a_file_that_is_gone_names_its_errno(self, path):
        source = planned(path)
        path.unlink()
        with pytest.raises(ReadError, match=r"x.wav: cannot be read \(errno 2, No such file or directory\)$"):
            witnessed(source, path)

    @pytest.mark.parametrize("error, words", [
        (OSError(errno.EIO, "disk"), r"errno 5, Input/output error"),
            (MemoryError("no room"), r"MemoryError: no room"),
        (OSError("words alone"), r"OSError: words alone"),
    ])  # fmt: skip
    def test_an_error_midway_is_told_at_the_end(self, path, monkeypatch, error, words):
        def dying(place):
            raise error

        monkeypatch.setattr(module, "quick_hash", dying)
        source = planned(path, quick="")
        with pytest.raises(ReadError, match=rf"x.wav: cannot be read \({words}\)$"):
            witnessed(source, path)
        assert str(unreadable(source, error)).endswith(f"cannot be read ({words})")

    def test_a_file_that_gives_no_bytes_is_given_up_after_its_patience(self, path, monkeypatch):
        source, go = planned(path), threading.Event()
        monkeypatch.setattr(module, "quick_hash", lambda place: go.wait(60) and source.quick)
        hasher = SourceHasher(source, os.fsencode(path))
        with pytest.raises(ReadError, match="x.wav: no bytes for 0.1 s$"):
            hasher.result(0.1)
        go.set()
        assert hasher.result(30.0) == hashlib.sha256(DATA).hexdigest()

    def test_while_bytes_arrive_it_is_waited_for(self, path):
        """The thread is alive for three waits, and reads a byte in the first two."""
        hasher = SourceHasher(planned(path), os.fsencode(path))
        hasher._thread.join()

        class Slow:
            waits = 0

            def is_alive(self):
                return self.waits < 3

            def join(self, patience_s):
                assert patience_s == 7.0
                self.waits += 1
                hasher._read += self.waits < 3

        hasher._thread = Slow()
        assert hasher.result(7.0) == hashlib.sha256(DATA).hexdigest() and hasher._thread.waits == 3

    def test_stopped_it_reads_no_further(self, path, monkeypatch):
        source = planned(path)
        hasher = None
        ready = threading.Event()

        def stopped(place):
            ready.wait(60)
            hasher.close()
            return source.quick

        monkeypatch.setattr(module, "quick_hash", stopped)
        hasher = SourceHasher(source, os.fsencode(path))
        ready.set()
        hasher._thread.join(60)
        assert hasher._read == 0 and not hasher._thread.is_alive()
        assert hasher._thread.daemon, "it must not keep a process from ending"


def test_a_path_is_shown_as_printable_text():
    assert Source("r", b"/a\xff b.wav", 0, 0, "").shown == "/a\\xff b.wav"
    assert not Source("r", b"/a", 0, 0, "").remote and Source("r", b"s3://a/b", 0, 0, "").remote
