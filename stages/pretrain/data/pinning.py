"""`pin`: find the finished shards of a run's corpora, join and check their columns once, and keep the result
on a local disk."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from stages.pretrain.data import counter_rng, index, joining
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.data.index import CqtColumn, Facts, Pinned
from stages.pretrain.data.joining import Corpus
from stages.pretrain.data.settings import Data
from stages.shards import frames
from stages.signal.rates import HOP_SAMPLES, RATE_HZ


def pin(data: Data, previous: dict | None = None, allow: set[str] = frozenset()) -> Pinned:
    """The data of a run. `previous`: what `Pinned.to_json` gave when the run was begun; its shards are used
    again, and shards added since are not seen, unless "data" is in `allow`.

    Every rank may call it: the arrays are kept below data.cache, by fingerprint, and found again in a second.
    ValueError: an unreadable root, no finished shard, a key missing in a column or frame counts that differ
    (naming shard and column), a record of another recipe, no segment left, or other data than `previous`
    without "data".
    """
    before = None if previous is None or "data" in allow else Facts.from_json(previous)
    if before is not None:
        _same_settings(before, data)
        names = tuple(c.name for c in before.codes)
        cqt = before.cqt.name if before.cqt and before.cqt.name != "online" else data.cqt
        data = replace(data, codes=names, cqt=cqt)
        kept = index.load(data.cache_folder / "index" / before.fingerprint, data.corpora)
        if kept is not None:
            _same_recordings(before, data)
            return kept
    corpora = [
        joining.find(root, data, (before.audio[i], before.shards[i]) if before else None)
        for i, root in enumerate(data.corpora)
    ]
    facts, arrays = _compact(corpora, data, before.identity if before else data.identity())
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
            f"data.cache is {data.cache_folder}: the index cannot be written there ({error}); name a "
            f"folder on a local disk"
        ) from None
    return Pinned(facts, folder, data.corpora)


def _same_settings(before: Facts, data: Data) -> None:
    now = json.loads(json.dumps(data.identity()))
    if len(data.corpora) != len(before.shards):
        raise ValueError(
            f"data.corpora names {len(data.corpora)} corpora, this run was begun with {len(before.shards)}: "
            f"set it back, or --set resume.allow=data"
        )
    for name, value in now.items():
        if before.identity.get(name) != value:
            name, was = ("passes" if name == "weights" else name), before.identity.get(name)
            remedy = "set it back, or go on with the new value by --set resume.allow=data"
            raise ValueError(f"data.{name} is {value!r}, this run was begun with {was!r}: {remedy}")


def _same_recordings(before: Facts, data: Data) -> None:
    """Recordings tombstoned since the run was pinned are other data, also where the rows are still in the
    cache."""
    for i, root in enumerate(data.corpora):
        try:
            seen = joining.live_digest(
                joining.Corpus(joining.Storage(root), before.audio[i], (), None, tuple(before.shards[i]))
            )
        except OSError as error:
            raise ValueError(
                f"data.corpora: {root} cannot be read ({error}): give an OUT that every rank can see"
            ) from None
        if seen != before.tombstones[i]:
            raise ValueError(
                f"{root}: recordings of the pinned shards were edited, excluded or have vanished since this "
                f"run was begun (digest {seen[:12]}…, was {before.tombstones[i][:12]}…): go on without them "
                "by --set resume.allow=data"
            )


def _difference(before: Facts, now: Facts) -> str:
    if before.tombstones != now.tombstones:
        return "recordings were edited, excluded or have vanished since"
    if before.segments != now.segments:
        return f"{now.segments} segments, there were {before.segments}"
    return "the shards were made anew with other bytes"


def _compact(corpora: list[Corpus], data: Data, identity: dict) -> tuple[Facts, dict[str, np.ndarray]]:
    codes, dtypes = _code_columns(corpora)
    cqt = _cqt_column(corpora, data)
    parts: dict[str, list[np.ndarray]] = {}
    seen, per_shard = _Seen(), {name: [] for name in index.PER_SHARD}
    for number, corpus in enumerate(corpora):
        widths = [c.codebooks * np.dtype(t).itemsize for c, t in zip(codes, dtypes, strict=True)]
        widths += [cqt.bins * np.dtype(cqt.dtype).itemsize] if corpus.cqt else []
        place = {name: i + len(per_shard["corpus_S"]) for i, name in enumerate(corpus.shards)}
        for batch in joining.join(corpus, data):
            _check_bytes(corpus, batch, widths)
            for name, values in _rows(batch, place, data, len(codes)).items():
                parts.setdefault(name, []).append(values)
            seen.add(batch)
        for shard in corpus.shards:
            stored = corpus.records[corpus.cqt, shard].facts.get("uint8", {}) if corpus.cqt else {}
            per_shard["corpus_S"].append(number)
            per_shard["offset_S"].append(stored.get("offset", 0.0))
            per_shard["scale_S"].append(stored.get("scale", 1.0))
    arrays = {name: np.concatenate(values) for name, values in parts.items()} if parts else {}
    if not seen.hours["train"]:
        why = ", ".join(f"{n} of {reason}" for reason, n in seen.dropped.items()) or "the shards are empty"
        raise ValueError(
            f"data: no segment is left to train on ({why}): loosen the filters, shorten data.crop_s, "
            f"or label more audio"
        )
    shards = len(per_shard["corpus_S"])
    arrays["ends_R"] = np.cumsum(arrays["crops_R"], dtype=np.int64)
    per_shard["row_S"] = np.searchsorted(arrays["shard_R"], np.arange(shards + 1))
    per_shard["crops_S"] = np.bincount(arrays["shard_R"], arrays["crops_R"], shards)
    arrays |= {name: np.asarray(values, dtype=index.PER_SHARD[name]) for name, values in per_shard.items()}
    valid = arrays.pop("valid_R")
    arrays["valid_V"] = np.flatnonzero(valid)
    digests = [live for live in map(joining.live_digest, corpora)]
    facts = Facts(
        "",
        identity,
        [c.audio for c in corpora],
        codes,
        dtypes,
        cqt,
        [list(c.shards) for c in corpora],
        digests,
        seen.hours["train"],
        seen.hours["valid"],
        {k: len(v) for k, v in seen.recordings.items()},
        dict(seen.segments),
        dict(seen.dropped),
    )
    return replace(facts, fingerprint=_fingerprint(facts, corpora, arrays)), arrays


class _Seen:
    """Counts for people."""

    def __init__(self):
        self.dropped, self.segments = Counter(), Counter(train=0, valid=0)
        self.hours = {"train": 0.0, "valid": 0.0}
        self.recordings: dict[str, set[str]] = {"train": set(), "valid": set()}

    def add(self, batch: pa.RecordBatch) -> None:
        table = pa.Table.from_batches([batch])
        self.dropped.update(reason for reason in table["dropped"].to_pylist() if reason)
        kept = pa.compute.is_null(table["dropped"])
        for split, chosen in (("valid", table["valid"]), ("train", pa.compute.invert(table["valid"]))):
            own = table.filter(pa.compute.and_(kept, chosen))
            self.segments[split] += own.num_rows
            self.hours[split] += (pa.compute.sum(own["samples"]).as_py() or 0) / RATE_HZ / 3600
            self.recordings[split].update(pa.compute.unique(own["recording"]).to_pylist())


def _rows(batch: pa.RecordBatch, place: dict[str, int], data: Data, codes: int) -> dict[str, np.ndarray]:
    """The batch as the arrays of `Pinned`, and valid_R: bool, segments held out."""

    def numbers(name: str, empty: int = -1) -> np.ndarray:
        return batch.column(name).fill_null(empty).to_numpy(zero_copy_only=False)

    names = batch.column("shard").dictionary_encode()
    shard_R = np.array([place[n] for n in names.dictionary.to_pylist()], dtype=np.int32)[
        names.indices.to_numpy()
    ]
    samples_R = numbers("samples")
    fit_R = (
        samples_R // data.samples
        if data.crops_per_segment is None
        else np.full(len(samples_R), data.crops_per_segment)
    )
    kept_R = batch.column("dropped").is_null().to_numpy(zero_copy_only=False)
    valid_R = batch.column("valid").to_numpy(zero_copy_only=False)
    key_R = np.array(batch.column("key").to_pylist(), dtype=bytes)
    codes_RC = (
        np.stack([numbers(f"at{i}") for i in range(codes)], 1) if codes else np.zeros((len(samples_R), 0))
    )
    cqt_R = numbers(f"at{codes}") if f"at{codes}" in batch.schema.names else np.full(len(samples_R), -1)
    found = {
        "shard_R": shard_R,
        "start_R": numbers("start"),
        "samples_R": samples_R,
        "audio_R": numbers("audio_at"),
        "packed_R": numbers("packed"),
        "codes_RC": codes_RC,
        "cqt_R": cqt_R,
        "crops_R": np.where(kept_R & ~valid_R, np.minimum(fit_R, np.iinfo(np.uint16).max), 0),
    }
    return {name: values.astype(index.ROWS[name]) for name, values in found.items()} | {
        "key_R": key_R,
        "valid_R": valid_R & kept_R,
    }


def _check_bytes(corpus: Corpus, batch: pa.RecordBatch, widths: list[int]) -> None:
    """A member holds as many bytes as its frames have; a column's shape is the same in every shard."""
    table = pa.Table.from_batches([batch])
    for i, (name, width) in enumerate(zip(corpus.labels, widths, strict=True)):
        wrong = table.filter(
            pa.compute.not_equal(table[f"bytes{i}"], pa.compute.multiply(table["frames"], width))
        )
        if wrong.num_rows:
            row = wrong.slice(0, 1).to_pylist()[0]
            raise ValueError(
                f"{corpus.storage.root}: {name}/{row['shard']} has {row[f'bytes{i}']} bytes at {row['key']}, "
                f"expected {row['frames']} frames of {width}: `overtone verify --repair`, then label again"
            )


def _code_columns(corpora: list[Corpus]) -> tuple[tuple[CodeColumn, ...], tuple[str, ...]]:
    first = corpora[0]
    for other in corpora[1:]:
        if other.codes != first.codes:
            raise ValueError(
                f"data.codes: {first.storage.root} has {', '.join(first.codes)} and {other.storage.root} "
                f"{', '.join(other.codes)}: codes of different teachers do not mix; label both with one "
                "teacher's file, or name columns that both have"
            )
    columns, dtypes = [], []
    for name in first.codes:
        record = first.records[name, first.shards[0]]
        said = frames.describe_codes(record.facts, record.recipe)
        dtype, width = next(
            filter(None, (joining.label_bytes(c, name) for c in corpora)), ("uint16", said.codebooks)
        )
        if width != said.codebooks or said.hop_samples != HOP_SAMPLES or np.dtype(dtype).kind != "u":
            raise ValueError(
                f"{first.storage.root}: {name} has {width} {dtype} codes every {said.hop_samples} "
                f"samples, expected "
                f"{said.codebooks} unsigned ones every {HOP_SAMPLES}, as its record says: label it again"
            )
        columns.append(CodeColumn(name, said.codebooks, said.size, said.hop_samples))
        dtypes.append(dtype)
    return tuple(columns), tuple(dtypes)


def _cqt_column(corpora: list[Corpus], data: Data) -> CqtColumn | None:
    first = corpora[0]
    if data.cqt == "none":
        return None
    from stages.signal.cqt import CqtSpec  # torch and nnAudio's facts, where they are needed

    if data.cqt == "online":
        spec = CqtSpec()
        return CqtColumn("online", spec.bins, context_samples=spec.context_samples, dtype="")
    for other in corpora[1:]:
        if other.cqt != first.cqt:
            raise ValueError(
                f"data.cqt: {first.storage.root} has {first.cqt} and {other.storage.root} {other.cqt}: label "
                "both with one recipe.cqt, or set data.cqt to online or none"
            )
    record = first.records[first.cqt, first.shards[0]]
    dtype, bins = next(
        filter(None, (joining.label_bytes(c, c.cqt) for c in corpora)), ("float16", record.recipe["bins"])
    )
    known: dict[str, Any] = {"magnitude": "linear"} | record.recipe | record.facts
    return CqtColumn(first.cqt, bins, known["magnitude"], dtype, known["fmin_hz"], known["bins_per_octave"])


def _fingerprint(facts: Facts, corpora: list[Corpus], arrays: dict[str, np.ndarray]) -> str:
    """sha256 of what decides the samples and their order: settings, the tars' bytes and the rows drawn; not
    where they lie."""
    digest = hashlib.sha256()
    tars = [[[c.records[name, shard].sha256 for name in c.columns] for shard in c.shards] for c in corpora]
    said = {
        "identity": facts.identity,
        "columns": [c.columns for c in corpora],
        "shards": facts.shards,
        "tars": tars,
        "codes": [asdict(c) for c in facts.codes],
        "cqt": asdict(facts.cqt) if facts.cqt else None,
        "draws": counter_rng.VERSION,
    }
    digest.update(json.dumps(said, sort_keys=True).encode())
    for name in ("crops_R", "samples_R", "valid_V"):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
