"""Find audio files under roots, in a stream: local folders, s3://bucket/prefix, lists of paths."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileType

from stages.label.scan.probing import S3, UNREADABLE, open_bytes, s3, words

_LOSSLESS = "wav wave w64 rf64 flac aif aiff aifc wv ape caf au tta"
_LOSSY = "mp3 mp2 ogg oga opus m4a m4b aac mp4 wma asf mpc ac3 amr mka webm"
EXTENSIONS = frozenset(f"{_LOSSLESS} {_LOSSY}".split())
IS_DIRECTORY = "is a directory, not a file"
EMPTY = "empty file"
MISSING = "No such file or directory"
S3_BATCH = 256  # listed objects in one request


class Found(NamedTuple):
    """A candidate. `problem` is why it is rejected without being opened."""

    path_bytes: bytes  # absolute, or s3://bucket/key
    name_bytes: bytes  # relative to the root
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None


Listing = Iterator[Found | None]  # None for each file that is not a candidate


def open_root(root: str) -> Callable[[], Listing]:
    """Check now that a root can be read; the result lists it. Raises ValueError naming the root."""
    remote = root.startswith("s3://")
    if "://" in root and not remote:
        raise ValueError(f"audio root {root!r}: only local paths and s3://bucket/prefix can be read")
    try:
        if remote:
            path = root.rstrip("/").encode()
            kind = s3().get_file_info(_key(path)).type
            if kind == FileType.NotFound:
                raise FileNotFoundError(errno.ENOENT, "no such bucket or prefix")
            if kind == FileType.Directory:
                return lambda: _walk_s3(_key(path))
        else:
            path = os.path.abspath(os.fsencode(root))
            if stat.S_ISDIR(os.stat(path).st_mode):
                os.scandir(path).close()
                return lambda: _walk(path)
        if not path.endswith((b".txt", b".parquet")):
            kind = "an object: give a prefix" if remote else "a file: give a folder"
            raise ValueError(f"audio root {root!r} is {kind}, or a list ending in .txt or .parquet")
        lines = _read_list(root, path)
        return lambda: _listed(lines, os.path.dirname(path))
    except (OSError, pa.ArrowInvalid) as error:
        message = f"audio root {root!r} cannot be read: {words(error)}; check the path and its permissions"
        raise ValueError(message) from error


def _walk(top: bytes) -> Listing:
    """Every folder below, by symbolic links too, unless they lead to an ancestor. Not recursive: it may be
    deeper than the interpreter allows."""
    stack: list[tuple[bytes, bytes, tuple]] = [(top, b"", ())]
    while stack:
        folder, prefix, ancestors = stack.pop()
        try:
            info = os.stat(folder)
            here = (info.st_dev, info.st_ino)
            if here in ancestors:
                continue
            names = sorted(os.listdir(folder))
        except FileNotFoundError:  # removed since its parent was listed
            continue
        except OSError as error:
            yield Found(folder, prefix.rstrip(b"/"), problem=UNREADABLE + words(error))
            continue
        for name in names:
            found = _look(os.path.join(folder, name), prefix + name)
            is_folder = found.problem == IS_DIRECTORY
            if is_folder:
                stack.append((found.path_bytes, found.name_bytes + b"/", (*ancestors, here)))
            if _is_audio(name):
                if found.problem != MISSING:
                    yield found
            elif not is_folder:
                yield None


def _look(path: bytes, name: bytes) -> Found:
    """A path's size and mtime, or why it cannot be read."""
    try:
        info = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            problem = UNREADABLE + words(error)
        else:
            problem = f"dangling link: {words(error)}" if os.path.islink(path) else MISSING
        return Found(path, name, problem=problem)
    if stat.S_ISDIR(info.st_mode):
        return Found(path, name, 0, info.st_mtime_ns, IS_DIRECTORY)
    problem = None if info.st_size else EMPTY
    if not stat.S_ISREG(info.st_mode):
        problem = "is not a regular file"  # opening a pipe would block
    return Found(path, name, info.st_size, info.st_mtime_ns, problem)


def _is_audio(name: bytes) -> bool:
    return os.path.splitext(name)[1][1:].lower().decode("ascii", "replace") in EXTENSIONS


def _key(path: bytes) -> str:
    return path[len(S3) :].decode()


def _walk_s3(base: str) -> Listing:
    """One listing for each folder at the top: few requests, but not everything in memory at once."""
    for entry in s3().get_file_info(FileSelector(base)):
        below = []
        if entry.type == FileType.Directory:
            below = s3().get_file_info(FileSelector(entry.path, recursive=True, allow_not_found=True))
        for info in (entry, *below):
            if _is_audio(info.path.encode()):
                yield _found_s3(info, info.path[len(base) + 1 :].encode())
            elif info.type == FileType.File:
                yield None


def _found_s3(info: FileInfo, name: bytes) -> Found:
    path = S3 + info.path.encode()
    if info.type == FileType.File:
        return Found(path, name, info.size, info.mtime_ns or 0, None if info.size else EMPTY)
    return Found(path, name, problem=MISSING if info.type == FileType.NotFound else IS_DIRECTORY)


def _read_list(root: str, path: bytes) -> list[bytes]:
    """Paths as listed: one a line, or the column `path` (text or binary: names may hold newlines)."""
    with open_bytes(path) as file:
        if path.endswith(b".txt"):
            paths = [line.rstrip(b"\r") for line in file.read().split(b"\n")]
        else:
            table = pq.read_table(file)
            if "path" not in (columns := table.column_names):
                raise ValueError(f"audio root {root!r}: no column `path`, only {columns}; rename the column")
            paths = pc.cast(table["path"], pa.binary()).to_pylist()
    return [path for path in paths if path]


def _listed(lines: list[bytes], folder: bytes) -> Listing:
    """Listed paths are candidates whatever their extension. Relative ones start at the list's folder."""
    remote = []
    for line in lines:
        relative = not line.startswith((S3, b"/"))
        path = os.path.join(folder, line) if relative else line
        if not path.startswith(S3):
            path = os.path.normpath(path)
            yield _look(path, _below(path, folder))
        elif relative:
            remote.append(S3 + os.path.normpath(path[len(S3) :]))
        else:
            remote.append(path)  # every byte counts: `..` is a name on S3
    for start in range(0, len(remote), S3_BATCH):
        paths = remote[start : start + S3_BATCH]
        for path, info in zip(paths, s3().get_file_info([*map(_key, paths)]), strict=True):
            yield _found_s3(info, _below(path, folder))


def _below(path: bytes, folder: bytes) -> bytes:
    """A listed path's name: relative to the list's folder if inside, so that both can move together."""
    return path.removeprefix(folder + b"/")
