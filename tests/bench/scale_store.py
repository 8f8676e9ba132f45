"""An S3 server in a process of its own, for benchmarks: moto, with faults, and with as many keys as a lab
has, which it lists but does not hold."""

import bisect
import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs, quote, unquote

from tests.object_store import Faults, served

BUCKET, SHARE, LATE_S = "bench", 0.05, 2.0
LIST_S = 0.1  # of a store, for a page of a thousand keys


class Keys:
    """Around an S3 application: lists these keys of a bucket, where `below` begins what is asked for.
    moto itself goes through all keys of a bucket for each page."""

    def __init__(
        self, keys: Iterable[str], below: tuple[str, ...], latency_s: float = LIST_S, page: int = 1000
    ):
        self.keys, self.below, self.latency_s, self.page = sorted(keys), below, latency_s, page

    @classmethod
    def of(cls, folder: str, root: str) -> "Keys":
        """The columns of a local OUT, and the notes of its audit."""
        tops = ("columns", "audited")
        places = [f"{top}/{name}" for top in tops for name in os.listdir(f"{folder}/{top}")]
        keys = [f"{root}/{place}/{name}" for place in places for name in os.listdir(f"{folder}/{place}")]
        return cls(keys, tuple(f"{root}/{top}/" for top in tops))

    def around(self, application: Callable) -> Callable:
        def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
            asked = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
            if "list-type" not in asked or not asked.get("prefix", "").startswith(self.below):
                return application(environ, start_response)
            time.sleep(self.latency_s)
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [self._page(asked).encode()]

        return answer

    def _page(self, asked: dict[str, str]) -> str:
        prefix, delimiter, found = asked["prefix"], asked.get("delimiter", "\0"), []
        token, after = unquote(asked.get("continuation-token", "")), asked.get("start-after", "")
        at = bisect.bisect_left(self.keys, token) if token else bisect.bisect_left(self.keys, prefix)
        at = max(at, bisect.bisect_right(self.keys, after))
        while at < len(self.keys) and self.keys[at].startswith(prefix) and len(found) < self.page:
            name, folder, _ = self.keys[at][len(prefix) :].partition(delimiter)
            key, kind = quote(prefix + name + folder), "CommonPrefixes" if folder else "Contents"
            inner = f"<Prefix>{key}</Prefix>" if folder else f"<Key>{key}</Key>{ABOUT}"
            found.append(f"<{kind}>{inner}</{kind}>")
            at = bisect.bisect_left(self.keys, prefix + name + "0") if folder else at + 1  # "0" follows "/"
        more = at < len(self.keys) and self.keys[at].startswith(prefix)
        token = f"<NextContinuationToken>{quote(self.keys[at])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<KeyCount>{len(found)}</KeyCount>{token}{''.join(found)}</ListBucketResult>"
        )


ABOUT = (
    "<LastModified>2026-01-02T03:04:05.678Z</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;"
    "</ETag><Size>1000</Size><StorageClass>STANDARD</StorageClass>"
)


@contextlib.contextmanager
def store(share: float = 0.0, keys: Callable[[], Keys] | None = None) -> Iterator[list[int]]:
    """What it has counted when the block has ended: requests, refused, late."""
    here, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, share, keys), daemon=True
    )
    process.start()
    before, counts = dict(os.environ), []
    os.environ |= here.recv()
    try:
        yield counts
        here.send(None)
        counts += here.recv()
    finally:
        process.kill()
        os.environ.clear()
        os.environ |= before


def _serve(pipe, share: float, keys: Callable[[], Keys] | None) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    faults = Faults(share, late_s=LATE_S)
    listed = keys() if keys else None
    with served(BUCKET, faults=faults, around=listed.around if listed else None) as environment:
        pipe.send(environment)
        pipe.recv()
        pipe.send([sum(faults.seen.values()), faults.refused, faults.late])
