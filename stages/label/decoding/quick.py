"""The quick hash of a file. Imports no numpy, so that header probes start fast."""

import hashlib
from typing import Any

MIB = 1 << 20


def hash_ends(file: Any, size: int) -> tuple[str, bytes, bytes]:
    """Hex sha256 of the first MiB, then the last MiB, then the decimal size; and both ends, which overlap in
    files under 2 MiB. Raises OSError."""
    ends, count, digest = [], min(MIB, size), hashlib.sha256()
    for start in (0, size - count):
        file.seek(start)
        end = file.read(count)
        while len(end) < count and (part := file.read(count - len(end))):  # network file systems give less
            end += part
        digest.update(end)
        ends.append(end)
    digest.update(str(size).encode())
    return digest.hexdigest(), *ends
