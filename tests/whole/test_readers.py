"""What is on disk is what the layout says: stock `webdataset` and `tar` read it, `verify` finds damage,
and what is sent back comes again with the same bytes."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset as wds

from tests.conftest import SMALL, tars

IDENTITY = {"recording", "start", "samples", "rate_hz", "source_rate_hz", "source_channels", "source_codec"}


def columns(out: Path) -> dict[str, list[Path]]:
    """Kind of column → its tars."""
    return {p.name.split("-")[0]: sorted(p.glob("*.tar")) for p in sorted((out / "columns").iterdir())}


def samples(paths: list[Path]) -> dict[str, dict]:
    found = {}
    for sample in wds.WebDataset([str(p) for p in paths], shardshuffle=False):
        assert sample["__key__"] not in found
        found[sample["__key__"]] = sample
    return found


def array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


@pytest.fixture(scope="module")
def merged(labelled, tmp_path_factory, run_overtone) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    for attempt in ("once", "again"):
        done = run_overtone("merge", labelled, "--to", folder / attempt)
        assert done.returncode == 0, done.stderr
    assert digests(folder / "once") == digests(folder / "again")
    return folder / "once"


def digests(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_stock_webdataset_reads_each_column(labelled):
    found = {kind: samples(paths) for kind, paths in columns(labelled).items()}
    assert set(found) == {"audio", "codes", "cqt"}
    assert set(found["audio"]) == set(found["codes"]) == set(found["cqt"]) and len(found["audio"]) >= 20
    for key, audio in found["audio"].items():
        wave_N, rate_hz = soundfile.read(io.BytesIO(audio["wav"]), dtype="int16")
        identity = json.loads(audio["json"])
        assert rate_hz == 24_000 and wave_N.ndim == 1 and wave_N.any()
        assert set(identity) == IDENTITY and identity["samples"] == len(wave_N)
        assert key.startswith(identity["recording"] + "-")
        codes_TK, cqt_TF = array(found["codes"][key]["codes.npy"]), array(found["cqt"][key]["cqt.npy"])
        frames = len(wave_N) // 320
        assert codes_TK.shape == (frames, 3) and codes_TK.dtype == np.uint16 and codes_TK.max() < 64
        assert cqt_TF.shape == (frames, 336) and cqt_TF.dtype == np.float16 and np.isfinite(cqt_TF).all()
    distinct = np.unique(np.concatenate([array(s["codes.npy"])[:, 0] for s in found["codes"].values()]))
    assert len(distinct) > 30, "a teacher that always says the same"


def test_segments_follow_one_another(labelled):
    """Only a recording's last segment may leave a remainder, and none is shorter than three seconds."""
    index = pq.read_table(labelled / "index.parquet").to_pylist()
    by_recording: dict[str, list[dict]] = {}
    for row in index:
        if row["column"] == "audio":
            by_recording.setdefault(row["recording"], []).append(row)
    assert len(by_recording) == 10
    for rows in by_recording.values():
        at = 0
        for row in sorted(rows, key=lambda r: r["key"]):
            assert row["start"] == at and row["frames"] == row["samples"] // 320
            assert row["samples"] >= 3 * 24_000
            at += row["samples"]
        assert all(row["samples"] == 8 * 24_000 for row in rows[:-1])


def test_the_index_gives_the_place_of_every_frame(labelled):
    for row in pq.read_table(labelled / "index.parquet").to_pylist():
        with open(labelled / "columns" / row["column"] / f"{row['shard']}.tar", "rb") as tar:
            tar.seek(row["offset"])
            data = tar.read(row["size"])
        if row["member"] == "wav":
            assert (
                data[row["data_offset"] - row["offset"] :]
                == soundfile.read(io.BytesIO(data), dtype="int16")[0].tobytes()
            )
        else:
            assert data[row["data_offset"] - row["offset"] :] == array(data).tobytes()


def test_the_tar_program_reads_columns_and_merged_tars(labelled, merged, tmp_path):
    for path in [paths[0] for paths in columns(labelled).values()] + sorted(merged.iterdir())[:1]:
        listed = subprocess.run(
            ["tar", "-tvf", path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        names = [line.split()[-1] for line in listed]
        keys = [name.split(".")[0] for name in names]
        assert keys == sorted(keys) and len(set(names)) == len(names) > 0
        assert all("1970-01-01" in line for line in listed), "a time of writing would change the bytes"
        subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
        assert all((tmp_path / name).stat().st_size > 0 for name in names)


def test_merged_tars_hold_all_columns_of_each_segment(labelled, merged):
    whole = samples(sorted(merged.iterdir()))
    parts = {kind: samples(paths) for kind, paths in columns(labelled).items()}
    assert set(whole) == set(parts["audio"])
    for key, sample in whole.items():
        assert {"wav", "json", "codes.npy", "cqt.npy"} <= set(sample)
        assert sample["wav"] == parts["audio"][key]["wav"] and sample["json"] == parts["audio"][key]["json"]
        assert (
            sample["codes.npy"] == parts["codes"][key]["codes.npy"]
            and sample["cqt.npy"] == parts["cqt"][key]["cqt.npy"]
        )


def test_merge_by_split(labelled, tmp_path, run_overtone):
    keys = {}
    for split in ("train", "valid"):
        done = run_overtone(
            "merge", labelled, "--to", tmp_path / split, "--split", split, "--columns", "audio"
        )
        assert done.returncode == 0, done.stderr
        keys[split] = {k.rsplit("-", 1)[0] for k in samples(sorted((tmp_path / split).iterdir()))}
    assert (
        len(keys["valid"]) >= 1
        and len(keys["train"]) + len(keys["valid"]) == 10
        and not keys["train"] & keys["valid"]
    )


def test_status_counts(labelled, run_overtone):
    found = json.loads(run_overtone("status", labelled, "--json").stdout)
    assert (found["recordings"], found["tombstoned"], found["rejected"]) == (10, 0, {}) and found[
        "validation"
    ] >= 1
    assert found["finished"] and {c["shards"] for c in found["columns"].values()} == {found["shards"]}
    assert "finished" in run_overtone("status", labelled).stdout


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verify_finds_damage_and_repair_gives_the_same_bytes(labelled, excerpts, tmp_path, run_overtone):
    out = tmp_path / "out"
    shutil.copytree(labelled, out)
    assert run_overtone("verify", out).returncode == 0
    audio, codes, cqt = columns(out).values()
    damage = {
        cqt[0]: "sha256",
        codes[1]: "bytes, its record says",
        codes[2]: "json is missing",
        cqt[3]: "index.parquet is damaged",
        audio[4]: "tar is missing",
    }
    flip(cqt[0])
    codes[1].write_bytes(codes[1].read_bytes()[:-700])
    codes[2].with_suffix(".json").unlink()
    flip(cqt[3].with_suffix(".index.parquet"))
    audio[4].unlink()

    for repair in ([], ["--repair"]):
        done = run_overtone("verify", out, *repair)
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        named = {
            line.split()[1].rstrip(":"): line
            for line in done.stdout.splitlines()
            if line.startswith("damaged")
        }
        for path, words in damage.items():
            assert words in named[f"{path.parent.name}/{path.stem}"], named
        assert len(named) <= len(damage) + 2, "only what hangs on the lost audio may be named besides"
    untouched = {
        p: p.stat().st_mtime_ns
        for p in out.glob("columns/*/*.tar")
        if p not in damage and p.stem != audio[4].stem
    }
    assert len(untouched) >= 3 * len(audio) - len(damage) - 3

    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(str(out))))
    done = run_overtone("labels", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tars(out) == tars(labelled)
    assert untouched == {p: p.stat().st_mtime_ns for p in untouched}
    assert run_overtone("verify", out).returncode == 0


@pytest.mark.parametrize("place", ["columns/audio", "", "new", "../link"])
def test_merged_tars_replace_no_tar_of_a_column(labelled, tmp_path, run_overtone, place):
    out = tmp_path / "out"
    shutil.copytree(labelled, out)
    (tmp_path / "link").symlink_to(out / "columns")
    before = tars(out)
    done = run_overtone("merge", out, "--to", f"{out}/{place}".rstrip("/"))
    assert done.returncode == 2 and "holds labels, whose tars it would replace: give a folder" in done.stderr
    assert tars(out) == before
