"""Tars that this machine has written or fetched, kept for what else it does with them, by the sha256 of their
bytes: a folder below TMPDIR, of a bounded size, shared by all workers of the machine."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from stages.shards import scratch

NAME = "tars"


class Nearby:
    """Keeps up to `most` bytes, and never more than half of what is free; 0: nothing."""

    def __init__(self, most: float):
        self.most = most
        if most:
            scratch.shared(NAME)  # from now on: a worker that ends leaves what it kept to this one

    def keep(self, path: Path, sha256: str) -> None:
        """A file below TMPDIR whose bytes these are. It stays where it is too: both are names of one file."""
        if not self.most:
            return
        folder = scratch.shared(NAME)
        with contextlib.suppress(OSError):  # already there, or a file system without links
            os.link(path, folder / sha256)
            self._bound(folder)

    def _bound(self, folder: Path) -> None:
        """Those that were used longest ago go."""
        found = []
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # another worker did the same
                info = entry.stat()
                found.append((info.st_mtime_ns, info.st_size, entry.path))
        held = sum(size for _, size, _ in found)
        most = min(self.most, (shutil.disk_usage(folder).free + held) / 2)
        for _, size, path in sorted(found):
            if held <= most:
                return
            Path(path).unlink(missing_ok=True)
            held -= size

    @contextlib.contextmanager
    def held(self, sha256: str) -> Iterator[Path | None]:
        """The file under a name of one's own, so that it may go meanwhile; None if it is not there."""
        own = scratch.folder() / uuid.uuid4().hex
        try:
            if self.most:
                with contextlib.suppress(OSError):
                    os.link(scratch.shared(NAME) / sha256, own)
                    os.utime(own)
            yield own if own.exists() else None
        finally:
            own.unlink(missing_ok=True)
