"""One stage over one shard: inputs in, a finished column out."""

import errno
import hashlib
import platform
import resource
import time
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import psutil

from stages.label.base import Item, Kept, ReadError, Rejected, Sample, Stage, TeacherError
from stages.label.decode import Decode, Source
from stages.label.machine import of_device
from stages.shards import catalog, column, scratch
from stages.shards import record as records
from stages.shards.nearby import Nearby
from stages.shards.recordings import stored_recordings
from stages.shards.storage import Storage

FULL = (errno.ENOSPC, errno.EDQUOT)
LASTING = (FileNotFoundError, PermissionError, records.UnknownFormat)
SOURCE = ("recording", "path_bytes", "size", "mtime_ns", "quick")
SOFTWARE = ("overtone", "numpy", "torch", "soxr", "av", "soundfile", "safetensors", "nnAudio")


@dataclass(frozen=True)
class Job:
    """What a worker of one stage needs."""

    stage: Stage
    column: str
    audio_column: str
    recipe: dict
    out: str
    weights: str | None = None  # name below OUT
    weights_sha256: str | None = None
    device: str = "cpu"
    threads: int = 1
    cache_gb: float = 0.0  # of audio tars kept on this machine, when OUT is on an object store
    options: dict = field(default_factory=dict)  # without effect on bytes, e.g. a stall limit


def software() -> dict[str, str]:
    """Versions that bytes depend on."""
    found = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


class ShardWorker:
    """Opens a stage once, then runs shards one at a time."""

    def __init__(self, job: Job):
        self.job, self.storage, self.software = job, Storage(job.out, standing=True), software()
        scratch.folder()  # and what a killed worker left on this machine goes
        self.nearby = Nearby(0 if self.storage.is_local else job.cache_gb * 2**30)
        if job.device.startswith("cuda") or job.stage.name != "decode":
            import torch

            torch.set_num_threads(job.threads)
        self.run = job.stage.open(self._weights(), job.device, job.threads, **job.options)

    def _weights(self) -> bytes | None:
        name, expected = self.job.weights, self.job.weights_sha256
        if name is None:
            return None
        data = self.storage.read(name)
        seen = hashlib.sha256(data).hexdigest()
        if seen != expected:
            raise ValueError(
                f"{self.storage.path(name)} has sha256 {seen[:12]}…, expected {expected[:12]}…: the file is "
                f"damaged; restore it from a copy: without it the teacher is fitted anew, and every shard "
                f"labelled anew"
            )
        return data

    def __call__(self, shard: str, planned: list[dict] | None = None) -> dict:
        """Finish one shard's column; never raises for a problem of one shard.

        planned: the shard's rows of the plan, if they are known, as of `catalog.ShardRows`.

        Returns a row: shard, column, status ('finished' | 'skipped' | 'failed'), error, counts, times."""
        stopwatch = Stopwatch()
        row = {"shard": shard, "column": self.job.column, "stage": self.job.stage.name, "error": None}
        try:
            done = self._finished(shard)
            record = done or self._make(shard, planned)
            row |= {"status": "skipped" if done else "finished", "rejected": len(record.rejects)}
            row |= {name: getattr(record, name) for name in ("kept", "samples", "bytes")}
        except Exception as error:  # a defect fails its shard; the log has the traceback
            row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            row["traceback"] = traceback.format_exc()
            row["disk_full"] = isinstance(error, OSError) and error.errno in FULL
            row["fatal"] = isinstance(error, TeacherError | records.UnknownFormat)
            row["transient"] = transient(error)
        return row | stopwatch.read()

    def _finished(self, shard: str) -> records.Record | None:
        """The record, when this column is finished and belongs to the present audio."""
        try:
            record = records.read(self.storage, self.job.column, shard)
            source = record.source_sha256
            if source is None or source == records.read(self.storage, self.job.audio_column, shard).sha256:
                return record
        except (FileNotFoundError, ValueError):
            pass
        return None

    def _make(self, shard: str, planned: list[dict] | None) -> records.Record:
        job, stopwatch = self.job, Stopwatch()
        with self._inputs(shard, planned) as (inputs, paths, source_sha256):
            # An old record must not describe the tar that is about to replace its own.
            self.storage.delete(records.file(job.column, shard, "json"))
            with column.publishing(self.storage, job.column, shard) as publication:
                kept, rejects = write(publication.writer, self.run(inputs), paths)
                totals = publication.writer.finish()
                if job.column == job.audio_column:
                    self.nearby.keep(publication.path, totals["sha256"])
                facts, own = getattr(self.run, "facts", dict)(), getattr(self.run, "run_facts", dict)()
                facts |= {"machine": of_device(job.device)}
                about = {"inputs": len(paths), "kept": kept, "rejects": rejects, "facts": facts, **totals}
                about |= {"source_sha256": source_sha256, "software": self.software}
                about |= {"device": job.device.split(":")[0], "run": stopwatch.read() | own}
                publication.record = records.Record(shard, job.column, job.recipe, **about)
        return publication.record

    @contextmanager
    def _inputs(
        self, shard: str, planned: list[dict] | None
    ) -> Iterator[tuple[Any, dict[str, str], str | None]]:
        """(inputs, path of each recording for people, sha256 of the audio tar)."""
        if isinstance(self.job.stage, Decode):
            if planned is None:
                planned = catalog.read_shard(self.storage, shard)
            sources = [Source(*(row[name] for name in SOURCE)) for row in planned]
            remote = [s.path_bytes.decode() for s in sources if s.remote]
            fetch = self.job.options.get("fetch")
            with fetch.expecting(remote) if fetch else nullcontext():
                yield sources, {row["recording"]: row["path"] for row in planned}, None
            return
        name = self.job.audio_column
        try:
            audio = records.read(self.storage, name, shard)
        except FileNotFoundError:
            raise ReadError(f"{name}/{shard} is not finished, {self.job.column} waits for it") from None
        index = column.read_index(self.storage, name, shard)
        paths = dict.fromkeys(index.column("recording").to_pylist(), "")
        with self.nearby.held(audio.sha256) as tar:
            if tar is not None:
                yield stored_recordings(tar, index), paths, audio.sha256
                return
        with self.storage.arriving(records.file(name, shard, "tar")) as (path, arrived):
            yield stored_recordings(path, index, arrived), paths, audio.sha256
            arrived(audio.bytes)
            self.nearby.keep(path, audio.sha256)


def write(
    writer: column.ColumnWriter, items: Iterator[Item], paths: dict[str, str]
) -> tuple[int, list[dict]]:
    """(kept, rejects) of a stage's items, written while it computes the next."""
    kept, rejects, seen = 0, [], set()
    for item in ahead(items):
        if isinstance(item, Sample):
            writer.add(item.key, item.members, item.row, item.stats, item.histograms)
            continue
        recording = item.recording
        assert recording in paths and recording not in seen, f"stray outcome for {recording}"
        seen.add(recording)
        if isinstance(item, Kept):
            writer.keep(item.note)
            kept += 1
        else:
            assert isinstance(item, Rejected)
            writer.take_back()
            rejects.append({"recording": recording, "path": paths[recording], "reason": item.reason})
    assert len(seen) == len(paths), f"{len(paths)} inputs, {len(seen)} outcomes"
    return kept, rejects


def ahead(items: Iterator[Any], depth: int = 4) -> Iterator[Any]:
    """Run an iterator in a thread, `depth` items ahead and one begun."""
    end, pool = object(), ThreadPoolExecutor(1, "ahead")
    try:
        coming = deque(pool.submit(next, items, end) for _ in range(depth + 1))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def transient(error: BaseException | None) -> bool:
    """Whether it may go away by itself: a disk, a network or a store that did not answer. Not a file that is
    missing, changed or forbidden, nor a full disk."""
    while error is not None:
        if isinstance(error, LASTING) or getattr(error, "errno", None) in FULL:
            return False
        if isinstance(error, OSError):
            return True
        error = error.__cause__
    return False


class Stopwatch:
    """Wall and CPU seconds since it was made."""

    def __init__(self):
        self.started, self._cpu_s = time.time(), _cpu_s()

    def read(self) -> dict:
        took = {"wall_s": time.time() - self.started, "busy_s": _cpu_s() - self._cpu_s}
        return {"host": platform.node(), "started": self.started, **took}


def _cpu_s() -> float:
    """CPU seconds of this process and of its children, also of the decoder that is still running."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = sum(each.ru_utime + each.ru_stime for each in used)
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            times = child.cpu_times()
            total += times.user + times.system
    return total
