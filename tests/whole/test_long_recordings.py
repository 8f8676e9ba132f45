"""Long recordings: no seam where a block ends, and memory bounded by the block."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from stages.label import recipe as recipes
from stages.label.plan import plan
from stages.label.scan.scan import scan
from stages.label.shard import Job, ShardWorker
from stages.label.teachers.mel_rvq import MelRvq
from stages.shards import catalog, column
from stages.shards import record as records
from stages.shards.recordings import stored_recordings
from stages.shards.storage import Storage
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SMALL = MelRvq(codebooks=2, codebook_size=64, dim=8, steps=20, batch=256, fit_minutes=1)


def tune(music: list[Path], seconds: float) -> np.ndarray:
    """Real music at 24 kHz, repeated to a length."""
    parts = []
    for path in music:
        wave, rate = soundfile.read(path, dtype="float32")
        parts.append(soxr.resample(wave.mean(axis=1), rate, 24_000))
    wave = np.concatenate(parts)
    return np.resize(wave, int(seconds * 24_000))


def prepare(out: Path, audio: Path) -> str:
    out.mkdir()
    scan([str(audio)], None, out / "catalog.parquet", workers=1)
    plan(None, out / "catalog.parquet", out / "plan.parquet", shard_minutes=60, validation_share=0.1)
    [shard] = catalog.shard_slices(catalog.read_plan(out / "plan.parquet"))
    return shard


def jobs(out: Path) -> tuple[Job, Job]:
    recipe = recipes.Recipe()
    audio = recipes.audio_recipe(recipe)
    own = recipes.cqt_recipe(recipe, records.recipe8(audio))
    return Job(recipe.decode, "audio", "audio", audio, str(out)), Job(
        recipe.cqt, "cqt-x", "audio", own, str(out)
    )


def member(out: Path, column_name: str, row: dict) -> np.ndarray:
    with open(next(out.glob(f"columns/{column_name}/*.tar")), "rb") as f:
        f.seek(row["offset"])
        return np.load(f)


@pytest.fixture(scope="module")
def long_out(tmp_path_factory, music) -> Path:
    """25 minutes and a bit in one recording, decoded and transformed."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "audio").mkdir()
    soundfile.write(folder / "audio" / "long.flac", tune(music, 25 * 60 + 1.237), 24_000)
    out = folder / "out"
    shard = prepare(out, folder / "audio")
    for job in jobs(out):
        assert ShardWorker(job)(shard)["status"] == "finished"
    return out


def test_segments_cover_the_recording_and_only_the_last_leaves_a_remainder(long_out):
    rows = column.read_index(
        Storage(long_out), "audio", next(long_out.glob("columns/audio/*.tar")).stem
    ).to_pylist()
    samples = [r["samples"] for r in rows]
    assert samples[:-1] == [720_000] * (len(rows) - 1) and samples[-1] == 720_000 + int(1.237 * 24_000)
    assert [r["start"] for r in rows] == [720_000 * i for i in range(len(rows))]
    assert sum(samples) == int((25 * 60 + 1.237) * 24_000)


def test_the_cqt_shows_no_seam_between_blocks_or_segments(long_out):
    from stages.signal.cqt import ConstantQ

    storage, shard = Storage(long_out), next(long_out.glob("columns/audio/*.tar")).stem
    [wave] = stored_recordings(
        long_out / f"columns/audio/{shard}.tar", column.read_index(storage, "audio", shard)
    )
    rows = column.read_index(storage, "cqt-x", shard).to_pylist()
    stored_TF = np.concatenate([member(long_out, "cqt-x", r) for r in rows]).astype(np.float32)
    transform = ConstantQ()
    for second in (30, 120, 600, 1200, 1500):  # borders of a segment, of blocks, and the end
        first = second * 75 - 100
        start = first * 320
        count = min(200, len(stored_TF) - first)
        piece = wave.read(start - 60_000, start + count * 320 + 60_000)
        exact_TF = transform.frames(torch.from_numpy(piece)[None], 60_000, count)[0].numpy()
        scale = stored_TF.max(axis=0)
        error = np.abs(stored_TF[first : first + count] - exact_TF)
        assert (error <= 1e-3 * scale + 1e-4).all()  # float16 keeps 11 bits


def test_codes_show_no_seam(long_out):
    storage, shard = Storage(long_out), next(long_out.glob("columns/audio/*.tar")).stem
    [wave] = stored_recordings(
        long_out / f"columns/audio/{shard}.tar", column.read_index(storage, "audio", shard)
    )
    weights, _ = SMALL.fit([wave], "cpu", 1, lambda event: None)
    label = SMALL.open(weights, "cpu", 1)
    codes_TK = np.concatenate(list(label(wave)))
    assert len(codes_TK) == wave.samples // 320

    class Window:
        """A minute of the recording, with two seconds around it."""

        def __init__(self, second: int):
            self.start, self.samples = (second - 2) * 24_000, 64 * 24_000

        def read(self, start: int, stop: int) -> np.ndarray:
            return wave.read(self.start + start, self.start + stop)

    for second in (58, 600, 1199):
        part_TK = np.concatenate(list(label(Window(second))))[150:-150]
        whole_TK = codes_TK[second * 75 : second * 75 + len(part_TK)]
        assert (part_TK == whole_TK).mean() >= 0.9999


MEASURE = """
import json, pickle, sys
from pathlib import Path
from stages.label.shard import ShardWorker

def peak_mib(pid):  # ru_maxrss would begin with the peak of the process that started this one
    line = next(s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

job, shard = pickle.load(open(sys.argv[1], "rb")), sys.argv[2]
worker = ShardWorker(job)
row = worker(shard)
assert row["status"] == "finished", row
child = worker.run._process._child.process.pid if job.stage.name == "decode" else None
print(json.dumps({"mib": peak_mib("self"), "child_mib": peak_mib(child) if child else 0}))
"""


def peak(job: Job, shard: str, folder: Path) -> dict:
    import pickle

    (folder / "job").write_bytes(pickle.dumps(job))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder / "job"), shard], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_memory_is_bounded_by_the_block_not_by_the_recording(tmp_path, music):
    peaks = {}
    for name, minutes in (("short", 20), ("long", 180)):
        folder = tmp_path / name
        (folder / "audio").mkdir(parents=True)
        soundfile.write(folder / "audio" / "a.flac", tune(music, minutes * 60), 24_000)
        out = folder / "out"
        shard = prepare(out, folder / "audio")
        decode, cqt = jobs(out)
        peaks[name, "decode"] = peak(decode, shard, folder)
        peaks[name, "cqt"] = peak(cqt, shard, folder)
        if name == "short":
            [wave] = stored_recordings(
                out / f"columns/audio/{shard}.tar", column.read_index(Storage(out), "audio", shard)
            )
            weights, _ = SMALL.fit([wave], "cpu", 1, lambda event: None)
        from pipeline.labelling import teachers
        from stages.label.codes import Codes

        stored = teachers.store(Storage(out), "mel_rvq", weights, {})
        codes = Job(Codes(SMALL), "codes-x", "audio", {"a": 1}, str(out), stored.name, stored.sha256)
        peaks[name, "codes"] = peak(codes, shard, folder)
    for stage in ("decode", "codes", "cqt"):
        grown = peaks["long", stage]["mib"] - peaks["short", stage]["mib"]
        assert grown < 100, peaks  # 160 minutes more are 920 MB as float32
        assert peaks["long", stage]["child_mib"] - peaks["short", stage]["child_mib"] < 100, peaks
