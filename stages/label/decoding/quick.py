"""The quick hash of a file. Imports no numpy, so that header probes start fast."""

import hashlib
from typing import Any

MIB = 1 << 20


def read_ends(file: Any, size: int) -> list[bytes]:
    """The first and the last MiB; they overlap in files under 2 MiB. Raises OSError."""
    ends, count = [], min(MIB, size)
    for start in (0, size - count):
        file.seek(start)
        end = file.read(count)
        while len(end) < count and (
            part := file.read(count - len(end))
        ):  # a network file system's short reads
            end += part
        ends.append(end)
    return ends


def hash_ends(head: bytes, tail: bytes, size: int) -> str:
    """Hex sha256 of the first MiB, then the last MiB, then the decimal size."""
    digest = hashlib.sha256(head)
    digest.update(tail)
    digest.update(str(size).encode())
    return digest.hexdigest()
