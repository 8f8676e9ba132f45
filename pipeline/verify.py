"""`overtone verify OUT`: read every finished shard back, name the damaged ones."""

import contextlib
import sys
from functools import partial

from pipeline.labelling import registry
from pipeline.labelling.lock import locked
from pipeline.spread import spread
from stages.label import audit
from stages.shards import record
from stages.shards.storage import Storage


def verify(place: str, repair: bool) -> int:
    """1 unless every finished shard is whole. `repair` discards the damaged columns, record first."""
    out = Storage(place)
    known = registry.existing(out)
    # A shard counts as finished in a column when any of its files is there: a lost record is damage too.
    shards = sorted({name.split(".")[0] for c in known.names for name in out.names(record.folder(c))})
    unfinished = damaged = unreadable = 0
    with locked(out) if repair else contextlib.nullcontext():
        for shard, found in spread("verify", partial(_check, out, known.names), shards, out):
            # a network or a disk that does not answer: no reason to discard anything
            if isinstance(found, OSError):
                unreadable += 1
                print(f"unreadable  {shard}: {found}", flush=True)
                continue
            for column, what in found.items():
                if not any(out.exists(record.file(column, shard, kind)) for kind in ("json", "tar")):
                    unfinished += 1
                    continue
                damaged += 1
                print(f"damaged  {column}/{shard}: {what}", flush=True)
                if repair:
                    record.discard(out, column, shard)
    print(
        f"{len(shards)} shards × {len(known.names)} columns read back: {damaged} damaged"
        + (f", {unreadable} could not be read" if unreadable else "")
        + (f", {unfinished} not made yet" if unfinished else "")
        + (", sent back: run the same `labels` command to make them again" if damaged and repair else "")
    )
    if damaged and not repair:
        print("`overtone verify OUT --repair` sends them back to be made again", file=sys.stderr)
    return 1 if damaged or unreadable else 0


def _check(out: Storage, columns: tuple[str, ...], shard: str, _: str) -> dict[str, str]:
    return audit.damaged(out, shard, columns)
