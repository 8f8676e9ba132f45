"""Names of files for people, and for libraries that take only UTF-8."""

import contextlib
import hashlib
import os

from stages.shards import scratch


def printable(text: str) -> str:
    """Text with control characters as \\xNN (a terminal obeys them) and bytes that are not UTF-8 likewise."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def utf8_alias(path: str) -> str:
    """The same absolute path for libraries: itself, or a link to it where its bytes are not UTF-8."""
    raw = os.fsencode(path)
    with contextlib.suppress(UnicodeDecodeError):
        raw.decode()
        return path
    name = hashlib.sha256(raw).hexdigest()[:16]
    alias = os.path.join(scratch.folder(), f"link-{name}")
    with contextlib.suppress(FileExistsError):
        os.symlink(raw, alias)
    return alias
