"""`--explain PATH`: what labels would do with one file, and why; nothing is written."""

import fnmatch
import os
import time
from collections.abc import Iterator

from pipeline.labelling.catalogs import CATALOG
from stages.label.base import Kept, ReadError, Sample
from stages.label.decoding.source import Source
from stages.label.recipe import Config
from stages.label.scan.listing import left_out
from stages.label.scan.probing import probe, recording_id
from stages.shards import catalog
from stages.shards.fetching import OneAhead
from stages.shards.names import printable
from stages.shards.storage import Storage, fetch_url


def explained(config: Config, path: str) -> str:
    """The way of this file through listing, scan and decode, as text; it ends with the outcome."""
    place = os.fsencode(path) if path.startswith("s3://") else os.path.abspath(os.fsencode(path))
    if not path.startswith("s3://") and not os.path.isfile(place):
        problem = "is not a regular file" if os.path.exists(place) else "no such file"
        raise ValueError(f"--explain {printable(path)!r}: {problem}")
    lines = [printable(os.fsdecode(place)), *_listing(config, place), *_catalog(config, place)]
    facts = probe(place)
    if facts["reason"]:
        return "\n  ".join([*lines, f"scan      rejected: {printable(facts['reason'])}"])
    taken = "by its header" if facts["duration_from"] == "header" else "estimated from its size"
    lines.append(
        f"scan      {facts['size']} bytes, container {facts['container']}, codec {facts['codec']}, "
        f"{facts['rate_hz']} Hz, {facts['channels']} channels, {facts['duration_s']:.2f} s {taken}"
    )
    name = recording_id(os.path.basename(place), facts["size"], facts["quick"])
    source = Source(name, place, facts["size"], facts.get("mtime_ns", 0), facts["quick"])
    return "\n  ".join([*lines, *_decode(config, source)])


def _listing(config: Config, place: bytes) -> Iterator[str]:
    run = config.run
    roots = [os.fsencode(r) if r.startswith("s3://") else os.path.abspath(os.fsencode(r)) for r in run.audio]
    below = [place[len(root) :].lstrip(b"/") for root in roots if place.startswith(root.rstrip(b"/") + b"/")]
    if not below:
        yield f"listing   below none of the folders {printable(', '.join(run.audio))}; a list may name it"
    for name in below[:1]:
        if one := left_out(name, run.include_hidden):
            why = "another program put it there" if one.sidecar else "no audio by its ending"
            yield f"listing   left out: {why} ({printable(one.kind)}); tried here all the same"
        elif pattern := next((p for p in run.exclude if fnmatch.fnmatch(os.fsdecode(name), p)), None):
            yield f"listing   left out by run.exclude, {pattern!r}; tried here all the same"
        else:
            yield "listing   a candidate"


def _catalog(config: Config, place: bytes) -> Iterator[str]:
    out = Storage(config.run.out)
    if not out.exists(CATALOG):
        return
    with out.fetched(CATALOG) as path:
        columns = ["path_bytes", "status", "reason", "recording", "duplicate_of"]
        rows = [row for row in catalog.read_catalog(path, columns).to_pylist() if row["path_bytes"] == place]
    for row in rows:
        of = f", the same bytes as {row['duplicate_of']}" if row["duplicate_of"] else ""
        why = f": {printable(row['reason'])}" if row["reason"] else ""
        yield f"catalog   the last scan: {row['status']}, recording {row['recording']}{of}{why}"


def _decode(config: Config, source: Source) -> Iterator[str]:
    run, since, samples, peak = config.run, time.monotonic(), 0, []
    decoder = config.recipe.decode.open(
        stall_s=run.stall_s, memory_gb=run.decode_memory_gb, fetch=OneAhead(fetch_url)
    )
    try:
        for item in decoder([source]):
            if isinstance(item, Sample):
                samples += item.row["samples"]
                peak.append(item.stats["peak_db"])
            last = item
    except ReadError as error:
        yield f"decode    the shard would fail, to be tried again: {printable(str(error))}"
        return
    finally:
        decoder.close()
    if not isinstance(last, Kept):
        yield f"decode    rejected: {printable(last.reason)}"
        yield "it costs only itself: the other recordings of its shard are labelled"
        return
    note, seconds = last.note, samples / config.recipe.decode.rate_hz
    header = "states no length" if note["header_s"] is None else f"promises {note['header_s']:.2f} s"
    yield (
        f"decode    {note['source_codec']} in {note['source_container']}, {note['source_rate_hz']} Hz, "
        f"{note['source_channels']} channels; its header {header}, {note['decoded_s']:.2f} s were decoded "
        f"in {time.monotonic() - since:.1f} s, peak {max(peak):.1f} dBFS"
    )
    yield (
        f"checks    {note['damaged_packets']} packets damaged or missing, {note['changes']} changes of "
        f"format midway, {note['other_tracks']} other audio tracks"
    )
    yield f"kept: {seconds:.2f} s in {note['segments']} segments"
