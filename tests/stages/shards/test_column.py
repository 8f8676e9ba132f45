import hashlib
import io
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shards import column
from stages.shards import record as records
from stages.shards.checking import check
from stages.shards.column import ColumnWriter, npy_bytes, npy_header, publishing
from stages.shards.storage import Storage


def row(recording: str, start: int, samples: int) -> dict:
    return {"recording": recording, "start": start, "samples": samples, "frames": samples // 320}


def add(writer: ColumnWriter, key: str, frames: int = 4) -> None:
    codes_TK = np.arange(frames * 2, dtype=np.uint16).reshape(frames, 2)
    writer.add(
        key, {"codes.npy": npy_bytes(codes_TK)}, row(key.split("-")[0], 0, frames * 320), {"loud": 1.0}
    )


def record(writer: ColumnWriter, kept: int = 1, **changes) -> records.Record:
    base = {
        "shard": "s1",
        "column": "codes-x",
        "recipe": {"a": 1},
        "inputs": kept,
        "kept": kept,
        "rejects": [],
        "source_sha256": None,
        "software": {},
        "device": "cpu",
    }
    return records.Record(**(base | writer.finish() | changes))


def publish(storage: Storage, keys: list[str]) -> None:
    with publishing(storage, "codes-x", "s1") as publication:
        for key in keys:
            add(publication.writer, key)
            publication.writer.keep({"codec": "flac"})
        publication.record = record(publication.writer, len(keys))


def test_the_tar_is_read_by_tar_webdataset_and_by_position(tmp_path):
    storage = Storage(tmp_path)
    publish(storage, ["a-00000", "b-00000"])
    path = tmp_path / "columns/codes-x/s1.tar"
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True)
    assert listed.stdout.split() == ["a-00000.codes.npy", "b-00000.codes.npy"]
    samples = list(webdataset.WebDataset([str(path)], shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == ["a-00000", "b-00000"]
    expected = np.arange(8, dtype=np.uint16).reshape(4, 2)
    assert np.array_equal(samples[1]["codes.npy"], expected)
    place = column.read_index(storage, "codes-x", "s1").to_pylist()[1]
    with open(path, "rb") as f:
        f.seek(place["data_offset"] + 2 * 2 * 1)  # one frame in
        assert np.array_equal(np.frombuffer(f.read(4), np.uint16), expected[1])


def test_bytes_depend_on_the_samples_alone(tmp_path):
    for name in ("one", "two"):
        publish(Storage(tmp_path / name), ["a-00000"])
    one, two = (next((tmp_path / n).rglob("*.tar")).read_bytes() for n in ("one", "two"))
    assert one == two


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 40)), max_size=8))
def test_what_a_rejected_recording_left_is_taken_back(tmp_path_factory, recordings):
    folder = tmp_path_factory.mktemp("w")
    both, kept_only = ColumnWriter(folder / "both"), ColumnWriter(folder / "kept")
    for number, (kept, segments, frames) in enumerate(recordings):
        for writer in (both, kept_only) if kept else (both,):
            for segment in range(segments):
                add(writer, f"{number:04d}-{segment:05d}", frames)
        if kept:
            both.keep({})
            kept_only.keep({})
        else:
            both.take_back()
    assert both.finish() == kept_only.finish()
    assert (folder / "both").read_bytes() == (folder / "kept").read_bytes()
    assert both.index == kept_only.index and both.stats == kept_only.stats


@pytest.mark.parametrize("second", ["a-00000", "b-00000"])
def test_keys_must_ascend_and_come_once(tmp_path, second):
    writer = ColumnWriter(tmp_path / "t")
    add(writer, "b-00000")
    with pytest.raises(AssertionError, match=f"keys must ascend: {second} after b-00000"):
        add(writer, second)


def test_an_exception_leaves_no_real_name(tmp_path):
    storage = Storage(tmp_path)
    with pytest.raises(RuntimeError), publishing(storage, "codes-x", "s1") as publication:
        add(publication.writer, "a-00000")
        raise RuntimeError("decoder died")
    assert list((tmp_path / "columns/codes-x").iterdir()) == []
    assert records.finished(storage, "codes-x") == set()


def damage(path, change) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))


def flip(data: bytearray) -> None:
    data[700] ^= 1


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("tar", flip, "sha256"),
        ("tar", lambda d: d.__delitem__(slice(900, None)), "900 bytes"),
        ("index.parquet", lambda d: d.__delitem__(slice(40, None)), "index.parquet is damaged"),
        ("index.parquet", flip, "index.parquet is damaged"),
        ("stats.parquet", flip, "stats.parquet is damaged"),
        ("json", lambda d: d.__delitem__(slice(40, None)), "not a record"),
    ],
)
def test_audit_names_the_damage(tmp_path, kind, change, said):
    storage = Storage(tmp_path)
    publish(storage, ["a-00000", "b-00000"])
    assert check(storage, "codes-x", "s1").segments == 2
    damage(tmp_path / f"columns/codes-x/s1.{kind}", change)
    with pytest.raises(ValueError, match=said):
        check(storage, "codes-x", "s1")


@pytest.mark.parametrize("kind", ["tar", "json", "index.parquet", "stats.parquet"])
def test_audit_names_a_missing_file(tmp_path, kind):
    storage = Storage(tmp_path)
    publish(storage, ["a-00000"])
    (tmp_path / f"columns/codes-x/s1.{kind}").unlink()
    with pytest.raises(ValueError, match="missing"):
        check(storage, "codes-x", "s1")


def test_a_lying_frame_count_is_found(tmp_path):
    storage = Storage(tmp_path)
    with publishing(storage, "codes-x", "s1") as publication:
        codes_TK = npy_bytes(np.zeros((3, 2), np.uint16))
        publication.writer.add("a-00000", {"codes.npy": codes_TK}, row("a", 0, 4 * 320), {})
        publication.writer.keep({})
        publication.record = record(publication.writer)
    with pytest.raises(ValueError, match="expected 4 frames"):
        check(storage, "codes-x", "s1")


@given(st.sampled_from(["<u2", "<f2", "<f4", "|u1"]), st.integers(0, 500), st.integers(1, 400))
@settings(max_examples=50, deadline=None)
def test_npy_header_is_read_from_the_first_bytes(dtype, frames, width):
    data = npy_bytes(np.zeros((frames, width), dtype))
    header, shape, seen = npy_header(data[:128])
    assert shape == (frames, width) and seen == np.dtype(dtype)
    assert header + frames * width * seen.itemsize == len(data)
    assert np.load(io.BytesIO(data)).shape == shape


def test_members_are_in_a_plain_old_tar(tmp_path):
    publish(Storage(tmp_path), ["a-00000"])
    with tarfile.open(next(tmp_path.rglob("*.tar"))) as tar:
        [member] = tar.getmembers()
    assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_labels_of_another_audio_tar_are_damage(tmp_path):
    from stages.label.audit import damaged

    storage = Storage(tmp_path)
    sha256 = {}
    for name, source in (
        ("audio", lambda: None),
        ("codes-x", lambda: sha256["audio"]),
        ("codes-y", lambda: "0" * 64),
    ):
        with publishing(storage, name, "s1") as publication:
            add(publication.writer, "a-00000")
            publication.writer.keep({})
            publication.record = record(publication.writer, column=name, source_sha256=source())
        sha256[name] = publication.record.sha256
    assert damaged(storage, "s1", ["audio", "codes-x"]) == {}
    assert "made from another audio tar" in damaged(storage, "s1", ["audio", "codes-x", "codes-y"])["codes-y"]


def test_members_are_sorted_whatever_order_they_come_in(tmp_path):
    members = {"wav": b"x" * 700, "json": b"{}", "codes.npy": npy_bytes(np.zeros((2, 1), np.uint16))}
    files = []
    for number, names in enumerate((list(members), list(members)[::-1])):
        writer = ColumnWriter(tmp_path / str(number))
        writer.add("a-00000", {name: members[name] for name in names}, row("a", 0, 640), {})
        writer.keep({})
        writer.finish()
        files.append((tmp_path / str(number)).read_bytes())
    with tarfile.open(tmp_path / "0") as tar:
        assert tar.getnames() == ["a-00000.codes.npy", "a-00000.json", "a-00000.wav"]
        assert {m.name.removeprefix("a-00000."): tar.extractfile(m).read() for m in tar} == members
    assert files[0] == files[1] and files[0].endswith(bytes(1024)) and len(files[0]) % 512 == 0


def test_a_note_goes_to_each_segment_of_its_recording_and_replaces_nothing(tmp_path):
    writer = ColumnWriter(tmp_path / "t")
    for key, note in (
        ("a-00000", None),
        ("a-00001", {"loud": 2.0, "codec": "flac"}),
        ("b-00000", {"codec": "mp3"}),
    ):
        add(writer, key)
        if note:
            writer.keep(note)
    assert [(r["key"], r["loud"], r["codec"]) for r in writer.stats.to_pylist()] == [
        ("a-00000", 1.0, "flac"),
        ("a-00001", 1.0, "flac"),
        ("b-00000", 1.0, "mp3"),
    ]


def test_a_shard_of_nothing_is_a_tar_without_members(tmp_path):
    writer = ColumnWriter(tmp_path / "t")
    totals = writer.finish()
    assert (totals["bytes"], totals["segments"], totals["samples"], totals["frames"]) == (1024, 0, 0, 0)
    assert (
        writer.index.schema == column.INDEX
        and writer.index.num_rows == 0
        and writer.stats.column_names == ["key"]
    )
    with tarfile.open(tmp_path / "t") as tar:
        assert tar.getnames() == []


def test_totals_are_of_what_was_written(tmp_path):
    writer = ColumnWriter(tmp_path / "t")
    for key, frames in (("a-00000", 3), ("b-00000", 5)):
        add(writer, key, frames)
        writer.keep({})
    totals, data = writer.finish(), (tmp_path / "t").read_bytes()
    assert totals == {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "segments": 2,
        "samples": 8 * 320,
        "frames": 8,
    }


def test_a_shard_without_a_record_or_without_sums_writes_none(tmp_path):
    storage = Storage(tmp_path)
    publish(storage, ["a-00000"])
    assert storage.names("columns/codes-x") == {
        f"s1.{kind}" for kind in ("tar", "json", "index.parquet", "stats.parquet")
    }
    with pytest.raises(AssertionError, match="without a record"), publishing(storage, "codes-y", "s1"):
        pass
    assert not storage.names("columns/codes-y")


def test_arrays_are_stored_as_plain_npy(tmp_path):
    turned = np.arange(6, dtype=np.uint16).reshape(2, 3).T
    data = npy_bytes(turned)
    assert data[:8] == b"\x93NUMPY\x01\x00" and np.array_equal(np.load(io.BytesIO(data)), turned)
    with pytest.raises(ValueError):
        npy_bytes(np.array([object()]))
    fortran = io.BytesIO()
    np.save(fortran, np.asfortranarray(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="Fortran order"):
        npy_header(fortran.getvalue())
    assert [column.data_offset(kind, data) for kind in ("wav", "codes.npy", "flac")] == [44, 128, None]
