"""`pin`: find a run's shards, join and check their columns once, keep the result on a local disk."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from stages.pretrain.data import corpora, counter_rng, index
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.data.corpora import PinnedCorpus
from stages.pretrain.data.index import CqtColumn, Facts, Pinned
from stages.pretrain.data.joining import join
from stages.pretrain.data.settings import Data
from stages.shards import frames
from stages.shards.storage import Storage
from stages.signal.rates import HOP_SAMPLES, RATE_HZ


def pin(data: Data, previous: dict | None = None, allow: set[str] = frozenset()) -> Pinned:
    """`previous`: `Pinned.to_json` of when the run was begun; its shards are used again, and those added
    since are not seen, unless "data" is in `allow`. ValueError: an unreadable root, no finished shard, a key
    missing in a column or frame counts that differ (naming shard and column), a record of another recipe, no
    segment left, or other data than `previous` without "data"."""
    before = None if previous is None or "data" in allow else Facts.from_json(previous)
    if before is not None:
        _check_settings(before, data)
        cqt = before.cqt.name if before.cqt and before.cqt.name != "online" else data.cqt
        data = replace(data, codes=tuple(c.name for c in before.codes), cqt=cqt)
        kept = index.load(data.cache_folder / "index" / before.fingerprint, data.corpora)
        if kept is not None:
            _check_recordings(before, data)
            return kept
    earlier = zip(before.audio, before.shards, strict=True) if before else [None] * len(data.corpora)
    found = [corpora.find(root, data, own) for root, own in zip(data.corpora, earlier, strict=True)]
    facts, arrays = _joined(found, data, before.identity if before else data.identity())
    if before is not None and facts.fingerprint != before.fingerprint:
        raise ValueError(
            f"data has fingerprint {facts.fingerprint[:12]}…, this run was begun with "
            f"{before.fingerprint[:12]}…: {_difference(before, facts)}; put it back, or go on with what is "
            "there by --set resume.allow=data"
        )
    folder = data.cache_folder / "index" / facts.fingerprint
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if index.load(folder, data.corpora) is None:
            index.store(folder, facts, arrays)
    except OSError as error:
        raise ValueError(
            f"data.cache is {data.cache_folder}: the index cannot be written there ({error}); name a folder "
            "on a local disk"
        ) from None
    return Pinned(facts, folder, data.corpora)


def _check_settings(before: Facts, data: Data) -> None:
    if len(data.corpora) != len(before.shards):
        raise ValueError(
            f"data.corpora names {len(data.corpora)} corpora, this run was begun with {len(before.shards)}: "
            "set it back, or --set resume.allow=data"
        )
    for name, value in json.loads(json.dumps(data.identity())).items():
        if (was := before.identity.get(name)) != value:
            raise ValueError(
                f"data.{'passes' if name == 'weights' else name} is {value!r}, this run was begun with "
                f"{was!r}: set it back, or go on with the new value by --set resume.allow=data"
            )


def _check_recordings(before: Facts, data: Data) -> None:
    """Recordings tombstoned since are other data, also where the rows are in the cache."""
    for root, shards, digest in zip(data.corpora, before.shards, before.tombstones, strict=True):
        try:
            seen = corpora.live_digest(Storage(root), shards)
        except OSError as error:
            raise ValueError(
                f"data.corpora: {root} cannot be read ({error}): give an OUT that every rank can see"
            ) from None
        if seen != digest:
            raise ValueError(
                f"{root}: recordings of the pinned shards were edited, excluded or have vanished since this "
                f"run was begun (digest {seen[:12]}…, was {digest[:12]}…): go on without them by --set "
                "resume.allow=data"
            )


def _difference(before: Facts, now: Facts) -> str:
    if before.tombstones != now.tombstones:
        return "recordings were edited, excluded or have vanished since"
    if before.segments != now.segments:
        return f"{now.segments} segments, there were {before.segments}"
    return "the shards were made anew with other bytes"


def _joined(found: list[PinnedCorpus], data: Data, identity: dict) -> tuple[Facts, dict[str, np.ndarray]]:
    codes, dtypes = _code_columns(found)
    audio, shards = [c.audio for c in found], [list(c.shards) for c in found]
    facts = Facts("", identity, audio, codes, dtypes, _cqt_column(found, data), shards, [], 0, 0, {}, {}, {})
    rows, per_shard, dropped = defaultdict(list), defaultdict(list), Counter()
    for number, corpus in enumerate(found):
        for batch in join(corpus, data, len(per_shard["corpus_S"]), facts.labels):
            dropped.update(filter(None, batch.column("dropped").to_pylist()))
            for name, values in _rows(batch, len(codes)).items():
                rows[name].append(values)
        for shard in corpus.shards:
            stored = corpus.records[corpus.cqt, shard].facts.get("uint8", {}) if corpus.cqt else {}
            per_shard["corpus_S"].append(number)
            per_shard["offset_S"].append(stored.get("offset", 0.0))
            per_shard["scale_S"].append(stored.get("scale", 1.0))
    arrays = {name: np.concatenate(values) for name, values in rows.items()}
    valid_R = arrays.pop("valid_R", np.zeros(0, bool))
    counts = _counts(arrays, valid_R) if arrays else {"hours": 0}
    if not counts["hours"]:
        why = ", ".join(f"{n} of {reason}" for reason, n in dropped.items()) or "the shards are empty"
        raise ValueError(
            f"data: no segment is left to train on ({why}): loosen the filters, shorten data.crop_s, or "
            "label more audio"
        )
    size = len(per_shard["corpus_S"])
    arrays["ends_R"] = np.cumsum(arrays["crops_R"], dtype=np.int64)
    per_shard["row_S"] = np.searchsorted(arrays["shard_R"], np.arange(size + 1))
    per_shard["crops_S"] = np.bincount(arrays["shard_R"], arrays["crops_R"], size)
    arrays |= {name: np.asarray(values, dtype=index.PER_SHARD[name]) for name, values in per_shard.items()}
    arrays["valid_V"] = np.flatnonzero(valid_R)
    tombstones = [corpora.live_digest(c.storage, c.shards) for c in found]
    counts |= {"fingerprint": _fingerprint(facts, found, arrays), "dropped": dict(dropped)}
    return replace(facts, tombstones=tombstones, **counts), arrays


def _counts(arrays: dict[str, np.ndarray], valid_R: np.ndarray) -> dict[str, Any]:
    """Segments, hours and recordings of each split, as fields of `Facts`."""
    counts = {"segments": {}, "recordings": {}}
    recording_R = np.cumsum(arrays["start_R"] == 0)  # the rows of a recording begin with its first segment
    for split, hours, chosen_R in (
        ("train", "hours", arrays["crops_R"] > 0),
        ("valid", "valid_hours", valid_R),
    ):
        firsts = np.unique(recording_R[chosen_R], return_index=True)[1]
        keys = arrays["key_R"][chosen_R][firsts].tolist()
        counts["segments"][split] = int(chosen_R.sum())
        counts["recordings"][split] = len({key.rpartition(b"-")[0] for key in keys})
        counts[hours] = int(arrays["samples_R"][chosen_R].sum(dtype=np.int64)) / RATE_HZ / 3600
    return counts


def _rows(batch: pa.RecordBatch, codes: int) -> dict[str, np.ndarray]:
    """The arrays of `Pinned`, and valid_R: bool, held out."""
    columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
    none, at_R = np.full(len(batch), -1), [columns[f"at{i}"] for i in range(codes)]
    columns["codes_RC"] = np.stack(at_R, 1) if codes else np.zeros((len(batch), 0))
    columns["cqt_R"] = columns.get(f"at{codes}", none)
    rows = {name: columns[name].astype(dtype) for name, dtype in index.ROWS.items() if name in columns}
    kept_R = batch.column("dropped").is_null().to_numpy(zero_copy_only=False)
    return rows | {"key_R": columns["key"].astype(bytes), "valid_R": columns["valid"] & kept_R}


def _code_columns(found: list[PinnedCorpus]) -> tuple[tuple[CodeColumn, ...], tuple[str, ...]]:
    first, *others = found
    for other in others:
        if other.codes != first.codes:
            raise ValueError(
                f"data.codes: {first.storage.root} has {', '.join(first.codes)} and {other.storage.root} "
                f"{', '.join(other.codes)}: codes of different teachers do not mix; label both with one "
                "teacher's file, or name columns that both have"
            )
    columns, dtypes = [], []
    for name in first.codes:
        record = first.records[name, first.shards[0]]
        own = frames.describe_codes(record.facts, record.recipe)
        dtype, width = corpora.stored_form(found, name, ("uint16", own.codebooks))
        if width != own.codebooks or own.hop_samples != HOP_SAMPLES or np.dtype(dtype).kind != "u":
            raise ValueError(
                f"{first.storage.root}: {name} has {width} {dtype} codes every {own.hop_samples} samples, "
                f"expected {own.codebooks} unsigned ones every {HOP_SAMPLES}, as in its record: label it "
                "again"
            )
        columns.append(CodeColumn(name, own.codebooks, own.size, own.hop_samples))
        dtypes.append(dtype)
    return tuple(columns), tuple(dtypes)


def _cqt_column(found: list[PinnedCorpus], data: Data) -> CqtColumn | None:
    if data.cqt == "none":
        return None
    if data.cqt == "online":
        from stages.signal.cqt import CqtSpec  # torch and nnAudio's facts, where they are needed

        spec = CqtSpec()
        return CqtColumn("online", spec.bins, context_samples=spec.context_samples, dtype="")
    first, *others = found
    for other in others:
        if other.cqt != first.cqt:
            raise ValueError(
                f"data.cqt: {first.storage.root} has {first.cqt} and {other.storage.root} {other.cqt}: label "
                "both with one recipe.cqt, or set data.cqt to online or none"
            )
    record = first.records[first.cqt, first.shards[0]]
    dtype, bins = corpora.stored_form(found, first.cqt, ("float16", record.recipe["bins"]))
    known = {"magnitude": "linear"} | record.recipe | record.facts
    own = {name: known[name] for name in ("magnitude", "fmin_hz", "bins_per_octave")}
    return CqtColumn(first.cqt, bins, dtype=dtype, **own)


def _fingerprint(facts: Facts, found: list[PinnedCorpus], arrays: dict[str, np.ndarray]) -> str:
    """Of what decides the samples and their order: settings, the tars' bytes and the rows drawn."""
    deciding = {
        "identity": facts.identity,
        "columns": [c.columns for c in found],
        "shards": facts.shards,
        "tars": [[[c.records[name, s].sha256 for name in c.columns] for s in c.shards] for c in found],
        "codes": [asdict(c) for c in facts.codes],
        "cqt": asdict(facts.cqt) if facts.cqt else None,
        "draws": counter_rng.VERSION,
    }
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    for name in ("crops_R", "samples_R", "valid_V"):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
