"""Positioned reads of tars: files on a disk, or ranges of an object store through a cache."""

import contextlib
import hashlib
import os
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from stages.pretrain.data.index import Pinned
from stages.shards import record as records
from stages.shards.storage import Storage

OPEN_FILES = 256  # of one process: a window of shards in all its columns, below the usual limit of 1,024
BLOCK_BYTES = 1 << 20  # of an object store's file: a crop's audio and CQT take one or two each
THREADS = 16
TRIES = 3  # of a read that fails: a network disk's hiccup is not a damaged file
COMING = 256  # blocks held in memory until they are read; the oldest are read from the disk again
SWEEP_BLOCKS = 64  # stored between two looks at the cache's size

Want = tuple[int, int, int, int]  # column, shard, first byte, bytes


class Tars:
    """One process's reader. Columns are numbered: audio, the code columns, the constant-Q column."""

    def __init__(self, pinned: Pinned, cache_folder: Path, cache_gb: float):
        self._pinned, self._labels = pinned, [name for name, *_ in pinned.facts.labels]
        self._storages = [Storage(root) for root in pinned.corpora]
        folder, limit = cache_folder / "blocks" / pinned.fingerprint[:16], int(cache_gb * 2**30)
        self._blocks = [None if s.is_local else Blocks(s, folder, limit) for s in self._storages]
        self._open = OrderedDict()

    def _file(self, column: int, shard: int) -> tuple[int, str]:
        corpus = int(self._pinned.corpus_S[shard])
        name = self._labels[column - 1] if column else self._pinned.audio[corpus]
        return corpus, records.file(name, self._pinned.shard_names[shard], "tar")

    def read(self, want: Want, out: memoryview) -> None:
        """Fill `out`. OSError when the bytes cannot be read, EOFError when the file ends before."""
        column, shard, at, size = want
        corpus, name = self._file(column, shard)
        for attempt in range(TRIES):
            try:
                if blocks := self._blocks[corpus]:
                    blocks.read(name, at, out)
                elif (got := os.preadv(self._descriptor(column, shard), [out], at)) != size:
                    raise EOFError(f"{name} ends after {at + got} bytes, {at + size} were expected")
                return
            except OSError:
                # a network disk's handle may be stale: the next try opens the file again
                if (column, shard) in self._open:
                    os.close(self._open.pop((column, shard)))
                if attempt == TRIES - 1:
                    raise

    def ahead(self, wants: list[Want]) -> None:
        """Have these bytes fetched. A hint: what fails, fails again in `read`, which raises."""
        for column, shard, at, size in wants:
            corpus, name = self._file(column, shard)
            with contextlib.suppress(OSError):
                if blocks := self._blocks[corpus]:
                    blocks.ahead(name, at, size)
                else:
                    os.posix_fadvise(self._descriptor(column, shard), at, size, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, column: int, shard: int) -> int:
        place, files = (column, shard), self._open
        if place not in files:
            corpus, name = self._file(column, shard)
            files[place] = os.open(self._storages[corpus].path(name), os.O_RDONLY)
            if len(files) > OPEN_FILES:
                os.close(files.popitem(last=False)[1])
        files.move_to_end(place)
        return files[place]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
        for blocks in filter(None, self._blocks):
            blocks.close()


class Blocks:
    """Ranges of an object store's files, in blocks of 1 MiB below `folder`, which all processes of a node
    share: a block appears whole, and may vanish between two reads."""

    def __init__(self, storage: Storage, folder: Path, limit_bytes: int):
        self._storage, self._folder, self._limit = storage, folder, limit_bytes
        self._pool, self._stored = ThreadPoolExecutor(THREADS), 0
        self._files, self._coming = OrderedDict(), OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, at: int, out: memoryview) -> None:
        self.ahead(name, at, len(out))
        done = 0
        while done < len(out):
            number, first = divmod(at + done, BLOCK_BYTES)
            piece = self._block(name, number)[first : first + len(out) - done]
            if not piece:
                raise EOFError(f"{name} ends after {at + done} bytes, {at + len(out)} were expected")
            out[done : done + len(piece)] = piece
            done += len(piece)

    def ahead(self, name: str, at: int, size: int) -> None:
        for number in range(at // BLOCK_BYTES, (at + size - 1) // BLOCK_BYTES + 1):
            if (name, number) not in self._coming and not self._path(name, number).exists():
                self._coming[name, number] = self._pool.submit(self._fetch, self._handle(name), name, number)
                if len(self._coming) > COMING:
                    self._coming.popitem(last=False)

    def _block(self, name: str, number: int) -> bytes:
        if coming := self._coming.pop((name, number), None):
            return coming.result()
        try:
            return self._path(name, number).read_bytes()
        except FileNotFoundError:
            return self._fetch(self._handle(name), name, number)

    def _path(self, name: str, number: int) -> Path:
        digest = hashlib.sha256(f"{self._storage.root}/{name}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}-{number}"

    def _handle(self, name: str) -> pa.NativeFile:
        files = self._files
        if name not in files:
            files[name] = self._storage.open(name)
            if len(files) > OPEN_FILES:
                files.popitem(last=False)  # closed when the last fetch that uses it is done
        files.move_to_end(name)
        return files[name]

    def _fetch(self, file: pa.NativeFile, name: str, number: int) -> bytes:
        first = number * BLOCK_BYTES
        data = file.read_at(max(0, min(BLOCK_BYTES, file.size() - first)), first)
        attempt = self._folder / f".attempt-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):  # a full disk costs speed, not the sample
            try:
                attempt.write_bytes(data)
                attempt.replace(self._path(name, number))
            finally:
                attempt.unlink(missing_ok=True)
        self._stored += 1
        if self._stored % max(1, min(SWEEP_BLOCKS, self._limit // BLOCK_BYTES // 8)) == 0:
            self.sweep()
        return data

    def sweep(self) -> None:
        """Delete the oldest blocks, of any run, beyond the limit."""
        found = []
        for path in self._folder.parent.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
