"""The quick hash of a file. Imports no numpy, so that header probes start fast."""

import hashlib
from typing import Any

MIB = 1 << 20


def hash_ends(file: Any, size: int) -> tuple[str, bytes, bytes]:
    """Hex sha256 of the first MiB, then the last MiB, then the decimal size; and both ends, which overlap in
    files under 2 MiB. Raises OSError."""
    ends, count, digest = [], min(MIB, size), hashlib.sha256()
    for start in (0, size - count):
        end = read_at(file, start, count)
        digest.update(end)
        ends.append(end)
    digest.update(str(size).encode())
    return digest.hexdigest(), *ends


def read_at(file: Any, at: int, count: int) -> bytes:
    """`count` bytes from `at` on, fewer only at the file's end."""
    file.seek(at)
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):  # network file systems give less
        data += more
    return data
