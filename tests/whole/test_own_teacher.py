"""A teacher from outside the package labels end to end: a module on PYTHONPATH, named in the
configuration."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cluster.simulate import simulated
from pipeline.labelling import teachers
from stages.label.codes import Codes
from stages.label.recipe import Recipe, codes_recipe, load
from stages.label.shard import Job, ShardWorker
from stages.label.teachers.best_rq import BestRq
from stages.label.teachers.kmeans import KMeans
from stages.pretrain.run.world import free_port
from stages.shards import checking, column
from stages.shards import record as records
from stages.shards.frames import CodesDescribed, decode_cqt, describe_codes
from stages.shards.recordings import stored_recordings
from stages.shards.storage import Storage
from tests.conftest import ROOT, tars
from tests.ranks import environment

pytestmark = pytest.mark.slow


def toy() -> str:
    """The example of docs/teachers.md, as it is printed there."""
    lines = (ROOT / "docs" / "teachers.md").read_text().splitlines()
    start = lines.index("    from dataclasses import dataclass")
    stop = next(i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith("    "))
    return textwrap.dedent("\n".join(lines[start:stop]))


@pytest.fixture(scope="module")
def out(tmp_path_factory, excerpts, run_overtone):
    folder = tmp_path_factory.mktemp("own")
    (folder / "modules").mkdir()
    (folder / "modules" / "ours.py").write_text(toy())
    audio = folder / "audio"
    audio.mkdir()
    for path in sorted(excerpts.iterdir())[:3]:
        (audio / path.name).symlink_to(path)
    config = folder / "own.yaml"
    config.write_text(f"""
recipe:
  plan: {{shard_minutes: 0.4}}
  decode: {{segment_s: 8}}
  codes: {{teacher: "ours:Loudness", step_db: 1.5}}
  cqt: {{magnitude: log, storage: uint8}}
run: {{audio: {json.dumps(str(audio))}, out: {json.dumps(str(folder / "out"))}, scan_workers: 1}}
""")
    path = os.pathsep.join(
        [str(folder / "modules"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    ).rstrip(os.pathsep)
    done = run_overtone("labels", config, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = run_overtone("labels", config, PYTHONPATH="")
    assert (
        unknown.returncode == 2
        and "recipe.codes.teacher 'ours:Loudness' cannot be imported" in unknown.stderr
    )
    return Storage(folder / "out")


def stored(out: Storage, kind: str) -> dict[str, tuple[np.ndarray, records.Record]]:
    """Frames and record by segment."""
    [name] = [n for n in out.names("columns") if n.startswith(kind)]
    found = {}
    for shard in records.finished(out, name):
        record = records.read(out, name, shard)
        with open(out.path(records.file(name, shard, "tar")), "rb") as tar:
            for row in column.read_index(out, name, shard).to_pylist():
                tar.seek(row["offset"])
                found[row["key"]] = np.load(tar), record
    return found


def test_its_codes_stand_in_every_row_and_its_record_describes_them(out):
    codes = stored(out, "codes")
    assert len(codes) >= 3
    for codes_TK, record in codes.values():
        assert describe_codes(record.facts, record.recipe) == CodesDescribed(1, 64, 320, 960)
        assert record.recipe["teacher"] == {"teacher": "loudness", "version": 1, "step_db": 1.5}
        assert codes_TK.dtype == np.uint16 and codes_TK[:, 0].max() < 64
    for shard in records.finished(out, "audio"):
        index = column.read_index(out, "audio", shard)
        for wave in stored_recordings(out.local(records.file("audio", shard, "tar")), index):
            rows = [codes[s["key"]][0] for s in wave.segments]
            codes_TK = np.concatenate(rows)
            assert len(codes_TK) == wave.samples // 320
            power = np.square(wave.read(0, 960 * 10)).reshape(10, 960).mean(1)
            expected = np.clip(-10 * np.log10(power + 1e-12) / 1.5, 0, 63).astype(np.uint16)
            assert codes_TK[:30, 0].tolist() == np.repeat(expected, 3).tolist()


def test_on_a_cluster_its_module_is_sent_to_the_nodes(out, run_overtone, tmp_path):
    """Only the driver has it on its path. The labels are those of one machine."""
    folder = Path(out.base).parent
    with simulated(2, 2) as cluster:
        done = run_overtone(
            "labels",
            folder / "own.yaml",
            "--out",
            tmp_path / "out",
            PYTHONPATH=str(folder / "modules"),
            RAY_ADDRESS=cluster.address,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert tars(tmp_path / "out") == tars(folder / "out")


def test_an_eight_bit_log_column_is_read_back_by_its_record(out):
    for frames_TF, record in stored(out, "cqt").values():
        assert frames_TF.dtype == np.uint8 and record.facts["magnitude"] == "log"
        read = decode_cqt(frames_TF, record.facts)
        assert np.log(1e-6) - 0.1 <= read.min() < read.max() < np.log(112)
        assert 0 < record.facts["uint8"]["max_abs_error"] < 0.05


def test_a_model_is_trained_with_its_labels_where_there_is_no_compiler(out, tmp_path):
    """The trainer takes codebooks and their sizes from the records: the teacher's module is not even on its
    path."""
    bare = str(Path(sys.executable).parent)
    assert not any(shutil.which(name, path=bare) for name in ("cc", "gcc", "c++", "g++", "clang++"))
    settings = {
        "data.corpora": f"[{out.base}]",
        "data.workers": 0,
        "data.crop_s": 3,
        "run.dir": tmp_path,
        "optim.updates": 2,
        "optim.warmup_updates": 1,
        "optim.global_batch": 4,
        "engine.micro_batch": 2,
        "objective.cqt_start": "fit",
        "watch.baseline_crops": 4,
        "watch.validate_every": 2,
    }
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    argv = [sys.executable, "-m", "stages.pretrain", "configs/pretrain/tiny.yaml", *overrides]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=environment(0, 1, free_port()) | {"PATH": bare},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    start, *updates = [row for row in rows if row["kind"] in ("start", "update")]
    [codes] = [name for name in out.names("columns") if name.startswith("codes")]
    assert start["codebooks"] == [f"{codes}/0"] and [row["update"] for row in updates] == [1, 2]
    for row in updates:
        assert 0 < row["ce"][0] < 10 and row["cqt_error"] > 0
    # torch's own values stand near 0, the logarithms far below it
    assert updates[0]["cqt_error"] < 2 * updates[0]["cqt_mean_error"]


@pytest.mark.parametrize(
    "teacher, described",
    [
        (KMeans(codebook_size=64, steps=10, batch=512, fit_minutes=1.0), CodesDescribed(1, 64, 320, 320)),
        (BestRq(codebooks=2, codebook_size=256), CodesDescribed(2, 256, 320, 320)),
    ],
)
def test_k_means_and_best_rq_label_through_the_same_contract(out, teacher, described):
    """Worker by worker, without a cluster: fit where there is one, label a shard, read its record."""
    recipe, shards = Recipe(codes=teacher), sorted(records.finished(out, "audio"))
    weights = teachers.Weights(None, None)
    if teachers.is_fitted(recipe):
        weights = teachers.fit(out.base, recipe, "audio", "audio8", shards, "cpu")
        assert teachers.fitted(out, recipe, "audio8") == weights
    own = codes_recipe(recipe, "audio8", weights.sha256)
    name = f"made-{records.recipe8(own)}"
    worker = ShardWorker(Job(Codes(teacher), name, "audio", own, out.base, weights.name, weights.sha256))
    row = worker(shards[0])
    assert row["status"] == "finished", row["error"]
    record = checking.check(out, name, shards[0])
    assert (
        describe_codes(record.facts, record.recipe) == described
        and record.recipe["weights_sha256"] == weights.sha256
    )


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs" / "labels").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_configuration_can_be_loaded_and_hashed(config):
    recipe = load(str(config)).recipe
    assert len(records.recipe8(codes_recipe(recipe, "audio8", None))) == 8
