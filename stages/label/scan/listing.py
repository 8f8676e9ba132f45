"""Find audio files under roots, in a stream: local folders, s3://bucket/prefix, lists of paths."""

import errno
import fnmatch
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileType

from stages.label.scan.probing import S3, UNREADABLE, open_bytes, s3, words
from stages.label.scan.walking import Step, walk
from stages.shards import objects

_LOSSLESS = "wav wave bwf w64 rf64 flac aif aiff aifc wv ape caf au snd tta dsf dff"
_LOSSY = "mp3 mp2 mp1 mpga ogg oga opus spx m4a m4b m4r aac wma asf mpc ac3 eac3 amr 3ga mka weba"
_VIDEO = "mp4 m4v mov mkv webm ogv 3gp 3g2 avi"  # their sound
EXTENSIONS = frozenset(f"{_LOSSLESS} {_LOSSY} {_VIDEO}".split())
# What systems and programs put beside music: shell patterns on a name, lower case.
SIDECAR_FOLDERS = (".appledouble", "__macosx", "@eadir", ".trash*", "$recycle.bin", "#recycle")
SIDECAR_FILES = ("._*", ".ds_store", "*.part", "*.crdownload", *SIDECAR_FOLDERS)
IS_DIRECTORY = "is a directory, not a file"
EMPTY = "empty file"
MISSING = "No such file or directory"
S3_BATCH = 256  # listed objects in one request
CHUNK = 1024  # names of a folder that one thread looks at


class Found(NamedTuple):
    """A candidate. `problem` is why it is rejected without being opened."""

    path_bytes: bytes  # absolute, or s3://bucket/key
    name_bytes: bytes  # relative to the root
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None


class LeftOut(NamedTuple):
    """A file, or a folder with all in it, that is no candidate."""

    kind: str  # its ending, with a dot; the pattern of a sidecar; or "no ending"
    sidecar: bool = False


Listing = Iterator[Found | LeftOut]


class Place(NamedTuple):
    """A folder on the way."""

    folder: bytes
    include_hidden: bool
    prefix: bytes = b""  # of names in it
    ancestors: tuple = ()

    def problem(self, error: OSError) -> Found:
        return Found(self.folder, self.prefix.rstrip(b"/"), problem=UNREADABLE + words(error))


def open_root(root: str, include_hidden: bool = False) -> Callable[[], Listing]:
    """Check now that a root can be read; the result lists it. Raises ValueError naming the root.

    include_hidden: sidecars are candidates like other files. A listed path always is one."""
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
                return lambda: walk(partial(_page, _key(path), _key(path) + "/", include_hidden))
        else:
            path = os.path.abspath(os.fsencode(root))
            if stat.S_ISDIR(os.stat(path).st_mode):
                os.scandir(path).close()
                return lambda: walk(partial(_enter, Place(path, include_hidden)))
        if not path.endswith((b".txt", b".parquet")):
            kind = "an object: give a prefix" if remote else "a file: give a folder"
            raise ValueError(f"audio root {root!r} is {kind}, or a list ending in .txt or .parquet")
        lines = _read_list(root, path)
        return lambda: _listed(lines, os.path.dirname(path))
    except (OSError, pa.ArrowInvalid) as error:
        message = f"audio root {root!r} cannot be read: {words(error)}; check the path and its permissions"
        raise ValueError(message) from error


def _enter(place: Place, wide: bool = False) -> tuple[list, list[Step]]:
    """Every folder below, by symbolic links too, unless they lead to an ancestor."""
    try:
        info = os.stat(place.folder)
        here = (info.st_dev, info.st_ino)
        if here in place.ancestors:
            return [], []
        names = os.scandir(place.folder)
    except FileNotFoundError:  # removed since its parent was listed
        return [], []
    except OSError as error:
        return [place.problem(error)], []
    return _names(names, place._replace(ancestors=(*place.ancestors, here)))


def _names(entries: Iterator[os.DirEntry], place: Place, wide: bool = False) -> tuple[list, list[Step]]:
    """Some names of a folder, which may have millions: others look at them, while the next ones are read."""
    try:
        names = [entry.name for entry in islice(entries, CHUNK)]
    except OSError as error:
        return [place.problem(error)], []
    if len(names) < CHUNK:
        return _look_at(names, place)
    return [], [partial(_names, entries, place), partial(_look_at, names, place)]


def _look_at(names: list[bytes], place: Place, wide: bool = False) -> tuple[list, list[Step]]:
    found, folders = [], []
    for name in sorted(names):
        one = _look(os.path.join(place.folder, name), place.prefix + name)
        is_folder = one.problem == IS_DIRECTORY
        if not place.include_hidden and (pattern := _sidecar(name, is_folder)):
            found.append(LeftOut(pattern, sidecar=True))
        elif is_folder:
            below = place._replace(folder=one.path_bytes, prefix=one.name_bytes + b"/")
            folders.append(partial(_enter, below))
        elif not _is_audio(name):
            found.append(LeftOut(_ending(name)))
        elif one.problem != MISSING:
            found.append(one)
    return found, folders


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


def left_out(name: bytes, include_hidden: bool = False) -> LeftOut | None:
    """Why the scan of a root does not take this file, by its path below the root; None if it does."""
    *folders, last = name.split(b"/")
    sidecar = _sidecar(last, False) or next(filter(None, (_sidecar(f, True) for f in folders)), None)
    if sidecar and not include_hidden:
        return LeftOut(sidecar, sidecar=True)
    return None if _is_audio(last) else LeftOut(_ending(last))


def _is_audio(name: bytes) -> bool:
    return _ending(name)[1:] in EXTENSIONS


def _ending(name: bytes) -> str:
    """With its dot, in lower case, without spaces that a user's program left after it."""
    ending = os.path.splitext(name.rstrip())[1].lower().decode("ascii", "replace")
    return ending or "no ending"


def _sidecar(name: bytes, is_folder: bool) -> str | None:
    """The pattern that a sidecar's name matches."""
    lower = name.lower().decode("latin-1")
    patterns = SIDECAR_FOLDERS if is_folder else SIDECAR_FILES
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(lower, pattern)), None)


def _key(path: bytes) -> str:
    return path[len(S3) :].decode()


def _page(
    base: str, folder: str, include_hidden: bool, wide: bool, apart: bool | None = None, more: str = ""
) -> tuple[list, list[Step]]:
    """One request's keys below a folder of `bucket/prefix`. `apart`: only those in the folder itself; the
    folders in it are listed by themselves, as long as threads are short of work."""
    apart = wide if apart is None else apart
    page = objects.page(folder, apart, more)
    if page.folders and page.more:  # more than a page of folders: one stream needs fewer requests
        return [], [partial(_page, base, folder, include_hidden, apart=False)]
    found, further = [], [partial(_page, base, below, include_hidden) for below in page.folders]
    for key, size, mtime_ns in page.keys:
        if not key.endswith("/"):  # which stands for a folder
            name = key[len(base) + 1 :].encode()
            own = Found(S3 + key.encode(), name, size, mtime_ns, None if size else EMPTY)
            found.append(left_out(name, include_hidden) or own)
    if page.more:
        further.append(partial(_page, base, folder, include_hidden, apart=apart, more=page.more))
    return found, further


def _found_s3(info: FileInfo, name: bytes) -> Found:
    path = S3 + info.path.encode()
    if info.type == FileType.File:
        return Found(path, name, info.size, info.mtime_ns or 0, None if info.size else EMPTY)
    return Found(path, name, problem=MISSING if info.type == FileType.NotFound else IS_DIRECTORY)


def _read_list(root: str, path: bytes) -> list[bytes]:
    """Paths as listed: one a line, or the column `path` (text or binary: names may hold newlines).

    Raises ValueError naming the list and the line of what is no path."""
    with open_bytes(path) as file:
        if path.endswith(b".txt"):
            paths = [line.rstrip(b"\r") for line in _utf8(root, file.read()).split(b"\n")]
        else:
            table = pq.read_table(file)
            if "path" not in (columns := table.column_names):
                raise ValueError(f"audio root {root!r}: no column `path`, only {columns}; rename the column")
            paths = pc.cast(table["path"], pa.binary()).to_pylist()
    return [_local(root, number, path) for number, path in enumerate(paths, 1) if path]


def _utf8(root: str, data: bytes) -> bytes:
    """A list's bytes, from UTF-8 or UTF-16 with a byte-order mark; without one as they are."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            try:
                return data.decode(encoding).encode()
            except UnicodeDecodeError as error:
                line = data[: error.start].count(b"\n") + 1
                how = f"line {line} is not {encoding}, which its first bytes promise; save it as UTF-8"
                raise ValueError(f"audio root {root!r}: {how}") from None
    return data


def _local(root: str, number: int, line: bytes) -> bytes:
    """A listed path with `~` and file:// resolved."""
    scheme, found, rest = line.partition(b"://")
    shown = line.decode("utf-8", "backslashreplace")
    if b"\0" in line:
        problem = "holds a zero byte: is the list UTF-16 without a byte-order mark? Save it as UTF-8"
        raise ValueError(f"audio root {root!r}, line {number} {problem}")
    if found and scheme.lower() == b"file":
        host, slash, place = rest.partition(b"/")
        if not slash or host.lower() not in (b"", b"localhost"):
            raise ValueError(f"audio root {root!r}, line {number}: {shown!r} is on another machine")
        return slash + unquote_to_bytes(place)
    if found and b"/" not in scheme and scheme.isalnum() and scheme != b"s3":
        problem = f"{shown!r} is neither a path, file:// nor s3://; download it first"
        raise ValueError(f"audio root {root!r}, line {number}: {problem}")
    return os.path.expanduser(line)


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
