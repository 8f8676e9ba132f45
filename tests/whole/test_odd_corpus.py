"""A folder as people have them: one bad file costs one file, and a second run sees what has changed."""

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.conftest import SMALL, tars
from tests.whole import odd_files

NO_CODES = "recipe.codes=null"  # what is odd here is decided before; it saves the fit


def members(out: Path, kind: str) -> dict[str, bytes]:
    """Every member of a kind of column, whatever its shard."""
    found = {}
    for path in sorted(out.glob(f"columns/{kind}*/*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar}
    return found


def rows(path: Path) -> list[dict]:
    return pq.read_table(path, partitioning=None).to_pylist()


def name_of(row: dict, folder: Path) -> bytes:
    return row["path_bytes"].removeprefix(os.fsencode(folder) + b"/")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, excerpts, music) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "music"
    odd_files.make(folder, excerpts, music)
    (folder.parent / "overtone_odd_hook.py").write_text(odd_files.HOOK)
    return folder


@pytest.fixture(scope="module")
def run(corpus, run_overtone):
    """Label the odd folder; by default with the decoder that crashes on crash.wav."""
    config = corpus.parent / "small.yaml"
    config.write_text(SMALL.format(audio=json.dumps(str(corpus)), out=json.dumps(str(corpus.parent / "out"))))

    def label(*arguments: str, crashes: bool = True):
        hook = (
            {"OVERTONE_TEST_DECODER": "overtone_odd_hook:by_name", "PYTHONPATH": str(corpus.parent)}
            if crashes
            else {}
        )
        return run_overtone("labels", config, "--set", NO_CODES, *arguments, **hook)

    return label


@pytest.fixture(scope="module")
def first(run, corpus):
    """The finished process of the first run, and a copy of its OUT."""
    done = run()
    shutil.copytree(corpus.parent / "out", corpus.parent / "first")
    return done, corpus.parent / "first"


def test_every_file_has_its_fate(first, corpus, excerpts):
    done, out = first
    fates = {name_of(r, corpus): r for r in rows(out / "catalog.parquet")}
    good = {os.fsencode(p.name) for p in excerpts.iterdir()}
    refused = {os.fsencode(Path(os.fsdecode(r["path"])).name): r for r in rows(out / "rejected.parquet")}
    assert {n for n, r in fates.items() if r["status"] == "duplicate"} == odd_files.DUPLICATES
    assert set(refused) == set(odd_files.REJECTED)
    for name, (stage, words) in odd_files.REJECTED.items():
        assert refused[name]["stage"] == stage and words in refused[name]["reason"], refused[name]
        assert "Traceback" not in refused[name]["reason"] and "0x" not in refused[name]["reason"]
    labelled = {k.rsplit("-", 1)[0] for k in members(out, "audio")}
    kept = {n for n, r in fates.items() if r["recording"] in labelled}
    assert kept == odd_files.KEPT | good
    assert len(fates) == len(kept) + len(refused) + len(odd_files.DUPLICATES)
    counted = f"{len(fates)} found = {len(kept)} kept + {len(refused)} rejected + 1 duplicates"
    assert counted in done.stdout


def test_too_many_rejected_is_said_with_a_table_and_exit_code_1(first):
    done, out = first
    assert done.returncode == 1, done.stderr
    assert "more than run.max_rejected_share 5.0%" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    for name, (stage, words) in odd_files.REJECTED.items():
        [line] = {line for line in done.stdout.splitlines() if stage in line and words in line}
        assert line.split()[0].isdigit()
        assert name.decode() in done.stdout


def test_the_neighbours_of_odd_files_are_untouched(first, labelled):
    _, out = first
    for kind in ("audio", "cqt"):
        among_odd, alone = members(out, kind), members(labelled, kind)
        assert alone and alone == {k: among_odd[k] for k in alone}


def test_what_is_kept_is_whole(first, corpus):
    _, out = first
    by_name = {name_of(r, corpus): r["recording"] for r in rows(out / "catalog.parquet")}
    audio, cqt, seconds = members(out, "audio"), members(out, "cqt"), Counter()
    for key, data in audio.items():
        if key.endswith(".wav"):
            samples = soundfile.info(io.BytesIO(data)).frames
            seconds[key.rsplit("-", 1)[0]] += samples / 24_000
            frames_TF = np.load(io.BytesIO(cqt[key.removesuffix(".wav") + ".cqt.npy"]))
            assert frames_TF.shape == (samples // 320, 336) and np.isfinite(frames_TF).all()
    expected = {
        b"eight channels.wav": 2 * 44.1 / 8,
        b"fast.wav": 8 * 44.1 / 384,
        b"truncated.wav": 2.0,
        b"stem a.wav": 14.0,
        b"a.b..c.wav": 2.0,
        b"\xff\xfe bytes.wav": 2.0,
    }
    for name, length in expected.items():
        assert seconds[by_name[name]] == pytest.approx(length, abs=0.02), name
    stems = [
        [v for k, v in sorted(audio.items()) if k.startswith(by_name[name]) and k.endswith("wav")]
        for name in (b"stem a.wav", b"stem b.wav")
    ]
    assert len(stems[0]) == len(stems[1]) and stems[0] != stems[1]


@pytest.mark.slow
def test_a_second_run_sees_what_changed(first, run, corpus, run_overtone, music):
    _, before = first
    out, folder = corpus.parent / "out", corpus
    edited, vanished, excluded = (sorted(folder.glob(f"0*.{kind}"))[0] for kind in ("wav", "ogg", "flac"))
    places = {r["path"]: r for r in rows(before / "plan.parquet")}
    wave, rate = soundfile.read(music[2], frames=44_100 * 9)
    soundfile.write(edited, wave, rate)
    vanished.unlink()
    soundfile.write(folder / "added.flac", wave[: 44_100 * 4], rate)
    done = run("--set", f"run.exclude=[{json.dumps(excluded.name)}]", "--set", "run.max_rejected_share=1")
    assert done.returncode == 0, done.stdout + done.stderr

    finished = tars(before)
    assert finished == {k: v for k, v in tars(out).items() if k in finished}, "finished shards were touched"
    plan = rows(out / "plan.parquet")
    gone = {r["path"]: r["tombstone"] for r in plan if r["tombstone"]}
    copy = str(folder / "same again.ogg")
    assert {gone[str(edited)], gone[str(excluded)]} == {"edited", "excluded"}
    assert gone.get(str(vanished)) in ("vanished", None)  # its copy may take over the recording
    assert str(vanished) in gone or {r["path"] for r in plan if not r["tombstone"]} >= {copy}
    new = {r["shard"] for r in plan} - {r["shard"] for r in places.values()}
    fresh = {r["path"] for r in plan if r["shard"] in new}
    assert {str(edited), str(folder / "added.flac")} <= fresh
    assert run_overtone("verify", out).returncode == 0
    assert_merge_leaves_out(run_overtone, out, {r["recording"] for r in plan if r["tombstone"]})


def assert_merge_leaves_out(run_overtone, out: Path, gone: set[str]) -> None:
    merged = out.parent / "merged"
    done = run_overtone("merge", out, "--to", merged)
    assert done.returncode == 0, done.stderr
    keys = set()
    for path in merged.glob("*.tar"):
        with tarfile.open(path) as tar:
            keys |= {m.name.split(".")[0] for m in tar}
    assert gone and keys and not {k for k in keys if k.rsplit("-", 1)[0] in gone}
    live = {r["recording"] for r in rows(out / "plan.parquet") if not r["tombstone"]}
    refused = {r["recording"] for r in rows(out / "rejected.parquet")}
    assert {k.rsplit("-", 1)[0] for k in keys} == live - refused


@pytest.mark.slow
def test_retry_rejected_tries_again_what_is_named(run, corpus, first):
    out = corpus.parent / "out"
    before = {r["path"]: r for r in rows(out / "rejected.parquet")}
    shas = tars(out)
    done = run("--retry-rejected", "decoder crashed", "--set", "run.max_rejected_share=1", crashes=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {r["path"]: r for r in rows(out / "rejected.parquet")}
    crash = str(corpus / "crash.wav")
    assert set(before) - set(after) == {crash}
    assert shas == {k: v for k, v in tars(out).items() if k in shas}
    assert before[crash]["recording"] in {k.rsplit("-", 1)[0] for k in members(out, "audio")}
    assert {p: r["shard"] for p, r in after.items()} == {
        p: r["shard"] for p, r in before.items() if p != crash
    }
