"""A worker over shards in every earlier state: what is made again, what a failure leaves."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.label import audit
from stages.label.shard import ShardWorker
from stages.shards import checking, column
from stages.shards import record as records
from stages.shards.storage import ATTEMPT, Storage
from tests.stages.label.made import SHARD, audio, codes_job

NAME = "codes-ear"
KINDS = ("index.parquet", "stats.parquet", "sums.parquet", "tar", "json")
# The calls that change files when a shard is made again: the old record goes, then each file is flushed and
# named.
STEPS = ["delete"] + ["fsync", "rename", "fsync"] * len(KINDS)


class Killed(BaseException):
    """What a worker that is killed does not survive; nothing handles it."""


class Steps:
    """Counts the calls that change files; `at` the given one something happens, before or after it."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.names: list[str] = []
        self.at, self.after, self.happens = 0, False, lambda: None
        patch.setattr(
            os, "fsync", self._counted("fsync", lambda handle: None)
        )  # the disk itself is not what is tested
        patch.setattr(os, "replace", self._counted("rename", os.replace))
        patch.setattr(Storage, "delete", self._counted("delete", Storage.delete))

    def _counted(self, name: str, call: Callable) -> Callable:
        def counted(*arguments):
            self.names.append(name)
            here = len(self.names) == self.at
            if here and not self.after:
                self.happens()
            call(*arguments)
            if here and self.after:
                self.happens()

        return counted


@pytest.fixture(scope="module")
def labels_of_another_audio(tmp_path_factory) -> Path:
    storage = Storage(tmp_path_factory.mktemp("made") / "out")
    audio(storage, seed=0)
    Path(storage.root).mkdir(exist_ok=True)
    assert ShardWorker(codes_job(storage.root))(SHARD)["status"] == "finished"
    audio(storage, seed=1)
    return Path(storage.root)


@pytest.fixture
def stale(labels_of_another_audio, tmp_path) -> Storage:
    """An OUT of one's own with labels of one audio tar, and another tar in its place."""
    return Storage(shutil.copytree(labels_of_another_audio, tmp_path / "out"))


def attempts(storage: Storage) -> list[Path]:
    return list(Path(storage.root).rglob(f"*{ATTEMPT}*"))


def agrees(storage: Storage) -> bool:
    """Whether there is a record; one that does not speak for its files fails the test."""
    if not storage.exists(records.file(NAME, SHARD, "json")):
        return False
    checking.check(storage, NAME, SHARD)
    return True


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "at", range(1, len(STEPS) + 1), ids=[f"{n}-{name}" for n, name in enumerate(STEPS, 1)]
)
def test_killed_at_any_step_no_record_speaks_for_another_tar(stale, monkeypatch, at, after):
    worker = ShardWorker(codes_job(stale.root))
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        steps.at, steps.after = at, after

        def kill() -> None:
            raise Killed

        steps.happens = kill
        with pytest.raises(Killed):
            worker(SHARD)
    assert agrees(stale) == ((at == 1 and not after) or (at == len(STEPS) - 1 and after) or at == len(STEPS))
    assert worker(SHARD)["status"] in ("finished", "skipped") and agrees(stale)
    assert not audit.damaged(stale, SHARD, ["audio", NAME])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "at", range(2, len(STEPS) + 1), ids=[f"{n}-{name}" for n, name in enumerate(STEPS, 1) if n > 1]
)
def test_an_error_at_any_step_of_publishing_fails_the_shard_with_its_reason(stale, monkeypatch, at, number):
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        steps.at = at

        def fail() -> None:
            raise OSError(number, os.strerror(number))

        steps.happens = fail
        row = ShardWorker(codes_job(stale.root))(SHARD)
    assert row["status"] == "failed" and row["error"] == f"OSError: [Errno {number}] {os.strerror(number)}"
    assert row["disk_full"] == (number == errno.ENOSPC) and "kept" not in row
    assert agrees(stale) == (at == len(STEPS)) and not attempts(
        stale
    )  # named already, but not known to be on the disk
    assert len(steps.names) == at, "nothing was tried after the failure"


def test_the_old_record_goes_first_and_each_file_is_flushed_before_it_has_its_name(stale, monkeypatch):
    steps = Steps(monkeypatch)
    assert ShardWorker(codes_job(stale.root))(SHARD)["status"] == "finished"
    assert steps.names == STEPS


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("written", [0, 3, 8])
def test_an_error_while_the_tar_is_written_fails_the_shard_with_its_reason(
    tmp_path, monkeypatch, written, number
):
    class Full(io.FileIO):
        writes = 0

        def write(self, data):
            Full.writes += 1
            if Full.writes > written:
                raise OSError(number, os.strerror(number))
            return super().write(data)

    storage = Storage(tmp_path)
    audio(storage)
    monkeypatch.setattr(column, "open", lambda path, mode: Full(path, mode), raising=False)
    row = ShardWorker(codes_job(tmp_path))(SHARD)
    assert (
        row["status"] == "failed"
        and os.strerror(number) in row["error"]
        and row["disk_full"] == (number == errno.ENOSPC)
    )
    assert not list((tmp_path / "columns" / NAME).iterdir())


def test_labels_of_an_audio_tar_that_was_made_anew_are_made_again(tmp_path):
    storage = Storage(tmp_path)
    worker = ShardWorker(codes_job(tmp_path))
    first = audio(storage, seed=0)
    assert worker(SHARD)["status"] == "finished" and worker(SHARD)["status"] == "skipped"
    second = audio(storage, seed=1)
    assert first.sha256 != second.sha256
    assert list(audit.damaged(storage, SHARD, ["audio", NAME])) == [NAME]
    row = worker(SHARD)
    assert row["status"] == "finished" and row["kept"] == 3
    assert records.read(storage, NAME, SHARD).source_sha256 == second.sha256
    assert not audit.damaged(storage, SHARD, ["audio", NAME])
    assert worker(SHARD)["status"] == "skipped"


def test_labels_whose_record_is_damaged_are_made_again(tmp_path):
    audio(Storage(tmp_path))
    worker = ShardWorker(codes_job(tmp_path))
    worker(SHARD)
    (tmp_path / "columns" / NAME / f"{SHARD}.json").write_text("{}")
    assert worker(SHARD)["status"] == "finished"


def test_labels_wait_for_their_audio(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    worker = ShardWorker(codes_job(tmp_path))
    worker(SHARD)
    storage.delete(records.file("audio", SHARD, "json"))
    row = worker(SHARD)
    assert (
        row["status"] == "failed"
        and row["error"] == f"ReadError: audio/{SHARD} is not finished, {NAME} waits for it"
    )
    assert agrees(storage), "labels stay until their audio is there to make them anew"
