"""What a worker says of a shard, what it refuses to call finished, and how it reads ahead."""

import errno
import hashlib
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from stages.label import shard as shards
from stages.label.base import Kept, ReadError, Rejected, Sample
from stages.label.codes import Codes
from stages.label.shard import Job, ShardWorker, ahead, write
from stages.shards import record as records
from stages.shards.column import ColumnWriter, npy_bytes
from stages.shards.storage import Storage
from tests.stages.label.made import SEGMENT, SHARD, Ear, audio, codes_job

NPY = npy_bytes(np.zeros((1, 1), np.uint16))


def sample(recording: str, index: int = 0) -> Sample:
    row = {"recording": recording, "start": index * 320, "samples": 320, "frames": 1}
    return Sample(f"{recording}-{index:05d}", {"codes.npy": NPY}, row)


def test_a_row_says_what_became_of_the_shard(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    worker = ShardWorker(codes_job(tmp_path, Ear(refuses=("c",))))
    first, again = worker(SHARD), worker(SHARD)
    record = records.read(storage, "codes-ear", SHARD)
    counts = {
        "shard": SHARD,
        "column": "codes-ear",
        "stage": "codes",
        "error": None,
        "kept": 2,
        "rejected": 1,
        "samples": 4 * SEGMENT,
        "bytes": record.bytes,
    }
    assert {k: first[k] for k in counts} == counts and first["status"] == "finished"
    assert {k: again[k] for k in counts} == counts and again["status"] == "skipped"
    for row in (first, again, record.run):
        assert row["started"] > 1e9 and 0 <= row["wall_s"] < 60 and 0 <= row["busy_s"] < 60 and row["host"]


def test_a_record_says_how_its_labels_came(tmp_path):
    source = audio(Storage(tmp_path))
    worker = ShardWorker(codes_job(tmp_path))
    worker(SHARD)
    record = records.read(Storage(tmp_path), "codes-ear", SHARD)
    assert (record.shard, record.column, record.recipe, record.inputs, record.kept) == (
        SHARD,
        "codes-ear",
        {"stage": "codes"},
        3,
        3,
    )
    assert (
        record.source_sha256 == source.sha256
        and record.software == shards.software()
        and record.device == "cpu"
    )
    assert record.facts["codebooks"] == 1 and "slowest" not in record.run


def test_the_kind_of_device_is_recorded_without_its_number(tmp_path):
    audio(Storage(tmp_path))
    ShardWorker(codes_job(tmp_path, device="cuda:3"))(SHARD)  # the toy teacher takes no device
    assert records.read(Storage(tmp_path), "codes-ear", SHARD).device == "cuda"


@pytest.mark.parametrize(
    "kind, number, full",
    [
        (OSError, errno.ENOSPC, True),
        (OSError, errno.EDQUOT, True),
        (OSError, errno.EIO, False),
        (ReadError, None, False),
        (MemoryError, None, False),
        (RuntimeError, None, False),
        (OSError, None, False),
        (ValueError, None, False),
        (IndexError, None, False),
        (ZeroDivisionError, None, False),
        (AssertionError, None, False),
    ],
)
def test_what_concerns_one_shard_fails_it_with_its_reason(tmp_path, kind, number, full):
    audio(Storage(tmp_path))
    row = ShardWorker(codes_job(tmp_path, Ear(fails=kind, errno=number)))(SHARD)
    assert (
        row["status"] == "failed"
        and row["error"].startswith(f"{kind.__name__}: ")
        and "asked for" in row["error"]
    )
    assert "in label\n    raise self.fails" in row["traceback"]
    assert row["disk_full"] is full and "kept" not in row and row["wall_s"] >= 0
    assert not list((tmp_path / "columns" / "codes-ear").iterdir())


@dataclass(frozen=True)
class Weighed(Ear):
    """Its code is the first byte of its weights."""

    def open(self, weights, device, threads):
        def label(wave):
            yield np.full((wave.samples // 320, 1), weights[0] if weights else 999, np.uint16)

        return label


def test_weights_are_read_and_checked(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    storage.write("weights/ear", b"\x07ear")
    job = Job(
        Codes(Weighed()),
        "codes-ear",
        "audio",
        {},
        str(tmp_path),
        "weights/ear",
        hashlib.sha256(b"\x07ear").hexdigest(),
    )
    assert ShardWorker(job)(SHARD)["status"] == "finished"
    [used] = storage.read_table(records.file("codes-ear", SHARD, "sums.parquet"))["values"].to_pylist()
    assert used[7] == sum(used) > 0
    storage.write("weights/ear", b"\x08ear")
    with pytest.raises(
        ValueError, match="weights/ear has sha256 .*: the file is damaged; restore it from a copy"
    ):
        ShardWorker(job)


@pytest.mark.parametrize("given, threads", [({"threads": 2}, 2), ({}, 1)])
def test_a_labels_worker_has_the_threads_it_was_given(tmp_path, given, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ShardWorker(codes_job(tmp_path, **given))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_software_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(shards, "SOFTWARE", ("numpy", "no-such-package"))
    found = shards.software()
    assert (
        found["numpy"] == np.__version__
        and found["no-such-package"] == "missing"
        and found["python"][0] == "3"
    )


@pytest.mark.parametrize(
    "items, words",
    [
        ([sample("a"), Kept("a")], "2 inputs, 1 outcomes"),
        ([], "2 inputs, 0 outcomes"),
        ([sample("a"), Kept("a"), sample("b"), Kept("b"), Kept("b")], "stray outcome for b"),
        ([Kept("a"), Rejected("a", "x")], "stray outcome for a"),
        ([Kept("z")], "stray outcome for z"),
        ([sample("a"), Kept("a"), sample("b")], "2 inputs, 1 outcomes"),
    ],
)
def test_each_input_has_exactly_one_outcome(tmp_path, items, words):
    with pytest.raises(AssertionError, match=words):
        write(ColumnWriter(tmp_path / "t"), iter(items), {"a": "a.wav", "b": "b.wav"})


def test_outcomes_are_counted_and_rejects_keep_path_and_reason(tmp_path):
    writer = ColumnWriter(tmp_path / "t")
    items = [
        sample("a"),
        Kept("a", {"codec": "flac"}),
        sample("b"),
        sample("b", 1),
        Rejected("b", "odd"),
        sample("c"),
        Kept("c"),
    ]
    kept, rejects = write(writer, iter(items), {"a": "a.wav", "b": "b.wav", "c": "c.wav"})
    assert kept == 2 and rejects == [{"recording": "b", "path": "b.wav", "reason": "odd"}]
    assert writer.index["key"].to_pylist() == ["a-00000", "c-00000"] and writer.stats[
        "codec"
    ].to_pylist() == ["flac", None]


def test_reading_ahead_keeps_the_order_and_ends():
    assert list(ahead(iter(range(100)))) == list(range(100)) and list(ahead(iter(()))) == []
    assert list(ahead(iter([None, 0]))) == [None, 0]


def test_an_error_comes_after_what_was_made_before_it():
    def items():
        yield 1
        yield 2
        raise KeyError("third")

    seen = []
    with pytest.raises(KeyError, match="third"):
        for item in ahead(items()):
            seen.append(item)
    assert seen == [1, 2]


def test_no_more_is_made_ahead_than_was_asked_for_and_a_reader_that_leaves_ends_it():
    made, more = [], threading.Semaphore(0)

    def items():
        for number in range(1000):
            made.append(number)
            more.release()
            yield number

    reader = ahead(items(), depth=3)
    assert next(reader) == 0
    for _ in range(5):  # the one that was read, three held, one that waits for a place
        assert more.acquire(timeout=30)
    assert not more.acquire(timeout=0.2)
    before = threading.active_count()
    reader.close()
    assert threading.active_count() == before - 1 and len(made) == 5


def test_a_reader_may_take_longer_than_the_queue_waits():
    seen = []
    for number in ahead(iter(range(5)), depth=1):
        if not seen:
            time.sleep(0.25)  # the queue is full meanwhile, and its waits of 0.1 s end
        seen.append(number)
    assert seen == [0, 1, 2, 3, 4]


def unreadable(error: OSError) -> ReadError:
    try:
        raise ReadError("a.wav cannot be read") from error
    except ReadError as found:
        return found


@pytest.mark.parametrize(
    ("error", "goes_away"),
    [
        (OSError("503 Slow Down"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (TimeoutError(), True),
        (unreadable(OSError(errno.EIO, "I/O")), True),
        (unreadable(FileNotFoundError(errno.ENOENT, "gone")), False),
        (ReadError("changed since it was scanned"), False),
        (FileNotFoundError(), False),
        (PermissionError("Unable to locate credentials"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (records.UnknownFormat("format 2"), False),
        (IndexError(), False),
        (MemoryError(), False),
    ],
)
def test_what_may_go_away_by_itself(error, goes_away):
    assert shards.transient(error) == goes_away
