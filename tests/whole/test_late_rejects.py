"""Recordings that are rejected long after their first segment, through whole runs: nothing of them is left
anywhere."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.label import audit
from stages.shards import histograms
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.conftest import SMALL
from tests.stages.label.test_shard_late import late_damage, late_nan, leftovers, members

pytestmark = pytest.mark.slow

LATE = {"late nan.wav": (late_nan, "NaN"), "late damage.flac": (late_damage, "packets damaged")}


@pytest.fixture(scope="module")
def run(tmp_path_factory, excerpts, run_overtone) -> tuple[Path, set[str]]:
    """(OUT, ids of the odd files): the excerpts and two files of 70 s, broken at 60 s and at 68 s. The shards
    hold segments of 8 s."""
    folder = tmp_path_factory.mktemp("late")
    music = folder / excerpts.name
    music.mkdir()
    for path in excerpts.iterdir():
        os.link(path, music / path.name)
    wave_N = np.random.default_rng(0).normal(0, 0.1, 70 * 24_000).astype(np.float32)
    for name, (spoil, _) in LATE.items():
        spoil(music / name, wave_N)
    config, out = folder / "small.yaml", folder / "out"
    config.write_text(SMALL.format(audio=json.dumps(str(music)), out=json.dumps(str(out))))
    # No codes: the teacher is fitted to all files that are found, so that their bytes follow from the odd
    # ones too.
    done = run_overtone("labels", config, "--set", "run.max_rejected_share=1", "--set", "recipe.codes=null")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = pq.read_table(out / "plan.parquet").to_pylist()
    return out, {row["recording"] for row in plan if Path(row["path"]).name in LATE}


def test_both_are_rejected_by_the_decoder_with_their_reasons(run):
    out, odd = run
    rows = pq.read_table(out / "rejected.parquet").to_pylist()
    assert {row["recording"] for row in rows} == odd and len(rows) == 2
    for row in rows:
        assert row["stage"] == "decode" and LATE[Path(row["path"]).name][1] in row["reason"]


def test_no_member_row_or_sum_of_theirs_is_left(run, run_overtone):
    out, odd = run
    storage = Storage(out)
    columns = sorted(p.name for p in (out / "columns").iterdir())
    assert len(columns) == 2
    for recording in odd:
        for name in columns:
            assert not leftovers(storage, name, recording)
            assert not [member for member in members(out, name) if member.startswith(recording)]
        for table in ("index.parquet", "segments.parquet"):
            assert recording not in pq.read_table(out / table)["recording"].to_pylist(), table
    for shard in sorted(records.finished(storage, columns[0])):
        assert not audit.damaged(storage, shard, columns)
    assert run_overtone("verify", out).returncode == 0


def test_the_other_recordings_are_those_of_a_run_without_them(run, labelled):
    out, _ = run
    for name in sorted(p.name for p in (out / "columns").iterdir()):
        there = members(out, name)
        assert there and there == members(labelled, name), name
    totals = [
        histograms.read(
            Storage(place), next(p.name for p in (place / "columns").iterdir() if p.name.startswith("cqt"))
        )[0]["cqt"]
        for place in (out, labelled)
    ]
    assert np.allclose(*totals)
    segments = [
        {(r["key"], r["samples"]) for r in pq.read_table(place / "segments.parquet").to_pylist()}
        for place in (out, labelled)
    ]
    assert segments[0] == segments[1]
