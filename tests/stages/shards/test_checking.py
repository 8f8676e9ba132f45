"""Checking a column refuses what a defect in the writer would leave, though every sha256 fits."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from stages.shards import column
from stages.shards import record as records
from stages.shards.checking import check
from stages.shards.column import ColumnWriter, npy_bytes, publishing
from stages.shards.storage import Storage
from tests.stages.shards.test_column import damage, flip

PARTS = [("a", 0, 960), ("a", 960, 1000), ("b", 0, 640)]  # recording, start, samples; c is rejected
REJECTS = [{"recording": "c", "path": "c.wav", "reason": "odd"}]


def wav(samples: int, kind: str = "wav") -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.zeros(samples, np.int16), 24_000, format=kind.upper(), subtype="PCM_16")
    return data.getvalue()


def member(kind: str, samples: int) -> bytes:
    return npy_bytes(np.zeros((samples // 320, 2), np.uint16)) if kind.endswith("npy") else wav(samples, kind)


def publish(
    storage: Storage,
    tweak=lambda writer: None,
    kind: str = "wav",
    said=lambda identity: identity,
    make=member,
    **changes,
) -> records.Record:
    """A shard; `tweak` falsifies its writer, `said` its json members, `make` its data, `changes` its
    record."""
    with publishing(storage, "audio", "s1") as publication:
        writer = publication.writer
        for number, (recording, start, samples) in enumerate(PARTS):
            identity = {"recording": recording, "start": start, "samples": samples}
            words = said(dict(identity)) if kind in ("wav", "flac") else None
            members = {kind: make(kind, samples)} | (
                {} if words is None else {"json": json.dumps(words).encode()}
            )
            writer.add(
                f"{recording}-{start // 960:05d}",
                members,
                identity | {"frames": samples // 320},
                {},
                {"codes": np.ones((1, 2))},
            )
            if number != 0:
                writer.keep({})
        tweak(writer)
        totals = writer.finish()
        base = {
            "shard": "s1",
            "column": "audio",
            "recipe": {},
            "inputs": 3,
            "kept": 2,
            "rejects": REJECTS,
            "source_sha256": None,
            "software": {},
            "device": "cpu",
        }
        publication.record = records.Record(**(base | totals | changes))
    return publication.record


@pytest.mark.parametrize("kind", ["wav", "flac", "codes.npy"])
def test_what_the_writer_writes_passes(tmp_path, kind):
    publish(Storage(tmp_path), kind=kind)
    assert check(Storage(tmp_path), "audio", "s1").segments == 3


def test_an_empty_shard_passes(tmp_path):
    with publishing(Storage(tmp_path), "audio", "s1") as publication:
        publication.record = records.Record(
            "s1",
            "audio",
            {},
            1,
            0,
            REJECTS,
            source_sha256=None,
            software={},
            device="cpu",
            **publication.writer.finish(),
        )
    record = check(Storage(tmp_path), "audio", "s1")
    assert (record.segments, record.samples, record.frames, record.bytes) == (0, 0, 0, 1024)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"inputs": 4}, "its record says 2 kept + 1 rejected of 4 inputs"),
        ({"inputs": 2}, "its record says 2 kept + 1 rejected of 2 inputs"),
        ({"inputs": 2, "rejects": [], "kept": 1}, "its record says 1 kept + 0 rejected of 2 inputs"),
        ({"inputs": 4, "kept": 3}, "its index holds segments of 2 recordings, its record says 3 kept"),
        ({"inputs": 2, "kept": 1}, "its index holds segments of 2 recordings, its record says 1 kept"),
        ({"segments": 4}, "its index has 3 segments, its record says 4"),
        ({"segments": 2}, "its index has 3 segments, its record says 2"),
        ({"samples": 2599}, "its index has 2600 samples, its record says 2599"),
        ({"frames": 9}, "its index has 8 frames, its record says 9"),
        (
            {"rejects": [{"recording": "b", "path": "", "reason": ""}]},
            "its index holds segments of 1 rejected recordings, first b",
        ),
        (
            {"rejects": [{"recording": r, "path": "", "reason": ""} for r in "ba"], "kept": 1},
            "its index holds segments of 2 rejected recordings, first a",
        ),
        ({"bytes": 999}, "s1.tar has 11264 bytes, its record says 999"),
        ({"sha256": "0" * 64}, "its record says 000000000000…"),
    ],
)
def test_a_record_that_does_not_agree_with_its_index_or_tar_is_refused(tmp_path, changes, words):
    publish(Storage(tmp_path), **changes)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        check(Storage(tmp_path), "audio", "s1")
    assert str(refused.value).startswith("audio/s1")


def rows(number: int, **changes):
    """Index row `number` says something else."""
    return lambda writer: writer._rows[number].update(
        {k: v(writer._rows[number][k]) for k, v in changes.items()}
    )


def swap(writer: ColumnWriter) -> None:
    writer._rows.insert(0, writer._rows.pop(1))
    writer._stats.insert(0, writer._stats.pop(1))


def double(writer: ColumnWriter) -> None:
    writer._rows.insert(1, writer._rows[0])
    writer._stats.insert(1, writer._stats[0])


def more(count: int):
    return lambda value: value + count


@pytest.mark.parametrize(
    "tweak, words",
    [
        (swap, "audio/s1: a-00001 starts at sample 960, expected 0"),
        (double, "audio/s1: its index has a-00000 of recording a after a-00000"),
        (rows(2, recording=lambda _: "d"), "audio/s1: its index has b-00000 of recording d after a-00001"),
        (rows(0, start=more(320)), "audio/s1: a-00000 starts at sample 320, expected 0"),
        (rows(1, start=more(-1)), "audio/s1: a-00001 starts at sample 959, expected 960"),
        (rows(2, start=more(320)), "audio/s1: b-00000 starts at sample 320, expected 0"),
        (rows(1, frames=more(1)), "audio/s1: a-00001 has 4 frames for 1000 samples"),
        (rows(1, frames=more(-1)), "audio/s1: a-00001 has 2 frames for 1000 samples"),
        (rows(1, samples=more(1)), "audio/s1: a-00001.wav has 2044 bytes for 1001 samples"),
        (rows(1, offset=more(512)), "audio/s1.tar: member a-00001.wav is not where the index says"),
        (rows(1, size=more(2)), "audio/s1.tar: member a-00001.wav is not where the index says"),
        (rows(1, member=lambda _: "flac"), "audio/s1.tar: member a-00001.flac is not where the index says"),
        (
            rows(1, data_offset=more(2)),
            "audio/s1: the data of a-00001.wav begin at byte 5164, its index says 5166",
        ),
        (lambda writer: writer._stats.pop(), "audio/s1: its statistics are of other segments than its index"),
        (
            lambda writer: writer._stats.reverse(),
            "audio/s1: its statistics are of other segments than its index",
        ),
        (
            lambda writer: writer._member("x.wav", b"left over"),
            "audio/s1.tar holds x.wav, which the index does not name",
        ),
    ],
)
def test_an_index_or_statistics_of_other_segments_are_refused(tmp_path, tweak, words):
    publish(Storage(tmp_path), tweak)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        check(Storage(tmp_path), "audio", "s1")


def test_keys_that_do_not_ascend_are_refused(tmp_path):
    def other(writer):
        writer._rows.insert(0, writer._rows.pop())
        writer._stats.insert(0, writer._stats.pop())

    publish(Storage(tmp_path), other)
    with pytest.raises(ValueError, match="^audio/s1: its index has a-00000 of recording a after b-00000$"):
        check(Storage(tmp_path), "audio", "s1")


@pytest.mark.parametrize(
    "kind, tweak, words",
    [
        (
            "codes.npy",
            rows(1, data_offset=more(4)),
            "the data of a-00001.codes.npy begin at byte 1664, its index says 1668",
        ),
        (
            "codes.npy",
            rows(1, samples=more(320), frames=more(1)),
            "a-00001.codes.npy has shape (3, 2), expected 4 frames",
        ),
        (
            "flac",
            rows(0, data_offset=lambda _: 0),
            "the data of a-00000.flac begin at byte -1, its index says 0",
        ),
    ],
)
def test_the_place_and_shape_of_the_data_are_checked(tmp_path, kind, tweak, words):
    publish(Storage(tmp_path), tweak, kind)
    with pytest.raises(ValueError, match=re.escape(words)):
        check(Storage(tmp_path), "audio", "s1")


def test_an_array_that_breaks_off_is_refused(tmp_path):
    publish(Storage(tmp_path), kind="codes.npy", make=lambda kind, samples: member(kind, samples)[:-2])
    with pytest.raises(ValueError, match=re.escape("a-00000.codes.npy has shape (3, 2), expected 3 frames")):
        check(Storage(tmp_path), "audio", "s1")


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize(
    "said, words",
    [
        (lambda identity: identity | {"recording": "z"}, "a-00000.json says recording z, its index a"),
        (lambda identity: identity | {"start": 1}, "a-00000.json says start 1, its index 0"),
        (lambda identity: identity | {"samples": 1}, "a-00000.json says samples 1, its index 960"),
        (lambda identity: {}, "a-00000.json says recording None, its index a"),
        (lambda identity: None, "a-00000.json is missing"),
    ],
)
def test_audio_says_of_which_samples_it_is(tmp_path, kind, said, words):
    publish(Storage(tmp_path), kind=kind, said=said)
    with pytest.raises(ValueError, match=re.escape(words)):
        check(Storage(tmp_path), "audio", "s1")


def test_sums_are_vouched_for_too(tmp_path):
    storage = Storage(tmp_path)
    publish(storage)
    path = tmp_path / "columns/audio/s1.sums.parquet"
    assert set(records.read(storage, "audio", "s1").beside_sha256) == {
        "index.parquet",
        "stats.parquet",
        "sums.parquet",
    }
    whole = path.read_bytes()
    damage(path, flip)
    with pytest.raises(ValueError, match="s1.sums.parquet is damaged"):
        check(storage, "audio", "s1")
    path.write_bytes(whole)
    assert check(storage, "audio", "s1").kept == 2
    path.unlink()
    with pytest.raises(ValueError, match="s1.sums.parquet is missing"):
        check(storage, "audio", "s1")


def test_a_record_that_vouches_for_no_index_is_refused(tmp_path):
    storage = Storage(tmp_path)
    record = replace(publish(storage), beside_sha256={})
    storage.write(records.file("audio", "s1", "json"), record.to_bytes())
    with pytest.raises(ValueError, match="s1.index.parquet is damaged: .* its record says none"):
        check(storage, "audio", "s1")


def test_the_audit_returns_the_record(tmp_path):
    publish(Storage(tmp_path))
    assert check(Storage(tmp_path), "audio", "s1") == records.read(Storage(tmp_path), "audio", "s1")
    assert column.read_index(Storage(tmp_path), "audio", "s1")["frames"].to_pylist() == [3, 3, 2]
