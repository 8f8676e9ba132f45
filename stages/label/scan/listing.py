"""Find audio files under roots, in a stream: local folders, s3://bucket/prefix, lists of paths."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from stages.label.scan.probing import UNREADABLE, s3, words

_LOSSLESS = "wav wave w64 rf64 flac aif aiff aifc wv ape caf au tta"
_LOSSY = "mp3 mp2 ogg oga opus m4a m4b aac mp4 wma asf mpc ac3 amr mka webm"
EXTENSIONS = frozenset(f"{_LOSSLESS} {_LOSSY}".split())
IS_DIRECTORY = "is a directory, not a file"
EMPTY = "empty file"
S3_BATCH = 256  # listed objects asked for at once


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate. `problem` says why it is rejected without being opened."""

    path: bytes  # absolute, or s3://bucket/key
    name: bytes  # relative to the root
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None


def open_root(root: str, ignored: Callable[[], None]) -> Callable[[], Iterator[Found]]:
    """Check that a root can be read, now; what comes back lists it.

    `ignored` is called for each file that is not a candidate. Raises ValueError naming the root.
    """
    try:
        if root.startswith("s3://"):
            return _open_s3(root.rstrip("/"), ignored)
        if "://" in root:
            raise ValueError(f"audio root {root!r}: only local paths and s3://bucket/prefix can be read")
        path = os.path.abspath(os.fsencode(root))
        if os.path.isdir(path):
            os.scandir(path).close()
            return lambda: _walk(path, ignored)
        os.stat(path)
        if not _is_list(root):
            raise ValueError(
                f"audio root {root!r} is a file: give a folder, or a list ending in .txt or .parquet"
            )
        folder = os.path.dirname(path)
        with open(path, "rb") as file:
            lines = _read_list(root, file)
        return lambda: _listed(lines, folder)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"audio root {root!r} cannot be read: {words(error)}; check the path and its rights"
        ) from error


# ---- local folders


def _walk(top: bytes, ignored: Callable[[], None]) -> Iterator[Found]:
    """Every folder below, symbolic links followed; a link to one of its own ancestors is not.

    A stack, not recursion: depth is bounded by the longest path, not by the interpreter.
    """
    stack: list[tuple[bytes, bytes, tuple]] = [(top, b"", ())]
    while stack:
        folder, prefix, ancestors = stack.pop()
        try:
            place = os.stat(folder)
            here = (place.st_dev, place.st_ino)
            if here in ancestors:
                continue
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
        except FileNotFoundError:  # removed since its parent was listed
            continue
        except OSError as error:
            yield Found(folder, prefix.rstrip(b"/"), problem=UNREADABLE + words(error))
            continue
        for name in names:
            found, is_folder = _look(os.path.join(folder, name), prefix + name)
            if is_folder:
                stack.append((found.path, found.name + b"/", (*ancestors, here)))
            if not _is_audio(name):
                if not is_folder:
                    ignored()
            elif found.problem != _GONE:
                yield found


_GONE = "No such file or directory"


def _look(path: bytes, name: bytes) -> tuple[Found, bool]:
    """A path's size and mtime, and whether it is a folder."""
    try:
        info = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            dangling = os.path.islink(path)
            return Found(path, name, problem=f"dangling link: {words(error)}" if dangling else _GONE), False
        return Found(path, name, problem=UNREADABLE + words(error)), False
    problem = None
    if stat.S_ISDIR(info.st_mode):
        return Found(path, name, 0, info.st_mtime_ns, IS_DIRECTORY), True
    if not stat.S_ISREG(info.st_mode):
        problem = "is not a regular file"  # opening a pipe would wait for ever
    elif info.st_size == 0:
        problem = EMPTY
    return Found(path, name, info.st_size, info.st_mtime_ns, problem), False


def _is_audio(name: bytes) -> bool:
    extension = os.path.splitext(name)[1][1:].lower()
    return extension.decode("ascii", "replace") in EXTENSIONS


# ---- S3


def _open_s3(root: str, ignored: Callable[[], None]) -> Callable[[], Iterator[Found]]:
    base = root[len("s3://") :]
    info = s3().get_file_info(base)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, "no such bucket or prefix")
    if info.type == pafs.FileType.Directory:
        return lambda: _walk_s3(base, ignored)
    if not _is_list(root):
        raise ValueError(
            f"audio root {root!r} is an object: give a prefix, or a list ending in .txt or .parquet"
        )
    with s3().open_input_file(base) as file:
        lines = _read_list(root, file)
    return lambda: _listed(lines, os.path.dirname(root).encode())


def _walk_s3(base: str, ignored: Callable[[], None]) -> Iterator[Found]:
    """One listing for each folder at the top: few requests, and not everything in memory at once."""
    for entry in s3().get_file_info(pafs.FileSelector(base)):
        below = []
        if entry.type == pafs.FileType.Directory:
            below = s3().get_file_info(pafs.FileSelector(entry.path, recursive=True, allow_not_found=True))
        for info in (entry, *below):
            if _is_audio(info.path.encode()):
                yield _found_s3(info, info.path[len(base) + 1 :].encode())
            elif info.type == pafs.FileType.File:
                ignored()


def _found_s3(info: Any, name: bytes) -> Found:
    path = b"s3://" + info.path.encode()
    if info.type == pafs.FileType.NotFound:
        return Found(path, name, problem=_GONE)
    if info.type == pafs.FileType.Directory:
        return Found(path, name, problem=IS_DIRECTORY)
    return Found(path, name, info.size, info.mtime_ns or 0, EMPTY if info.size == 0 else None)


# ---- lists


def _is_list(root: str) -> bool:
    return root.endswith((".txt", ".parquet"))


def _read_list(root: str, file: Any) -> list[bytes]:
    """Paths as listed: one a line, or the column `path` (text or binary: names may hold newlines)."""
    if root.endswith(".txt"):
        return [line for line in (raw.rstrip(b"\r") for raw in file.read().split(b"\n")) if line]
    table = pq.read_table(file)
    if "path" not in table.column_names:
        raise ValueError(
            f"audio root {root!r}: no column `path`, only {table.column_names}; rename the column"
        )
    column = table["path"]
    if not pa.types.is_binary(column.type):
        column = pc.cast(column, pa.binary())
    return [path for path in column.to_pylist() if path]


def _listed(lines: list[bytes], folder: bytes) -> Iterator[Found]:
    """Listed paths are candidates whatever their extension. Relative ones start at the list's folder."""
    remote = []
    for line in lines:
        relative = not line.startswith((b"s3://", b"/"))
        path = os.path.join(folder, line) if relative else line
        if path.startswith(b"s3://"):
            key = path[len(b"s3://") :]  # of an absolute one every byte is meant: `..` is a name on S3
            remote.append(b"s3://" + (os.path.normpath(key) if relative else key))
        else:
            path = os.path.normpath(path)
            yield _look(path, _below(path, folder))[0]
    names = iter(remote)
    while batch := list(islice(names, S3_BATCH)):
        infos = s3().get_file_info([path[len(b"s3://") :].decode() for path in batch])
        for path, info in zip(batch, infos, strict=True):
            yield _found_s3(info, _below(path, folder))


def _below(path: bytes, folder: bytes) -> bytes:
    """A listed path's name: below the list's folder when it is, so that both can move together."""
    return path[len(folder) + 1 :] if path.startswith(folder + b"/") else path
