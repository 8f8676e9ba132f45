"""Whole runs in plain processes: what a defect, a bad disk, too many rejections and files of another version
do to the rest of a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import chain
from pipeline.labelling import run as runs
from pipeline.labels import LabelOptions, label
from stages.label import recipe as recipes
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.conftest import tars
from tests.object_store import Faults, served

CONFIG = """
recipe:
  plan: {{shard_minutes: 0.2, validation_share: 0.1}}
  decode: {{segment_s: 8}}
  codes: {{teacher: "tests.pipeline.labelling.odd_teachers:Odd", {teacher}}}
  cqt: null
run: {{audio: {audio}, out: {out}, scan_workers: 1, attempts: 2}}
"""
PLAIN = LabelOptions(plain=True)


@pytest.fixture
def three(tmp_path, excerpts) -> Path:
    """Three recordings of 9, 10 and 12 s, in a shard each."""
    folder = tmp_path / "music"
    folder.mkdir()
    for path in sorted(excerpts.iterdir())[:3]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def configured(tmp_path, three):
    def config(teacher: str, *settings: str) -> recipes.Config:
        text = CONFIG.format(
            teacher=teacher, audio=json.dumps(str(three)), out=json.dumps(str(tmp_path / "out"))
        )
        (tmp_path / "config.yaml").write_text(text)
        return recipes.load(str(tmp_path / "config.yaml"), list(settings))

    return config


def log(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]


def test_a_defect_of_a_teacher_fails_its_shard_and_rejects_nothing(tmp_path, configured):
    outcome = label(configured("what: defect, over_s: 11"), PLAIN)
    assert (outcome.code, outcome.kept, outcome.rejected, len(outcome.failed)) == (1, 3, 0, 1)
    [why] = outcome.failed.values()
    assert why == "codes: IndexError: list index out of range"
    assert f"what raised each: {tmp_path}/out/log.jsonl" in outcome.text
    [traceback] = [event["traceback"] for event in log(tmp_path) if event.get("traceback")]
    assert "odd_teachers.py" in traceback and "return [][1]" in traceback
    assert len(tars(tmp_path / "out")) == 3 + 2
    mended = label(configured("what: '', over_s: 11"), PLAIN)
    assert mended.code == 0 and not mended.failed


def test_what_fails_for_a_while_is_tried_again(tmp_path, configured, monkeypatch):
    monkeypatch.setattr(chain, "PAUSE_S", 0.01)
    outcome = label(configured(f"what: busy, over_s: 11, once: {json.dumps(str(tmp_path / 'once'))}"), PLAIN)
    assert outcome.code == 0 and outcome.kept == 3
    [again] = [event for event in log(tmp_path) if event["event"] == "shard-again"]
    assert again["stage"] == "codes" and "the disk is busy" in again["error"]
    assert 2 in {event["attempts"] for event in log(tmp_path) if event["event"] == "shard-end"}


def test_a_run_that_rejects_too_much_stops_while_it_runs(tmp_path, configured, monkeypatch):
    monkeypatch.setattr(runs, "ENOUGH", 1)
    outcome = label(configured("what: reject"), PLAIN)
    assert outcome.code == 1 and outcome.too_many_rejected and not outcome.failed
    [line] = [line for line in outcome.text.splitlines() if "stopped:" in line]
    assert line.strip() == (
        "stopped: 1 of 1 recordings of the shards so far were rejected, more than run.max_rejected_share "
        f"5.0%; raise it to label the others all the same; see {tmp_path}/out/rejected.parquet"
    )
    assert "not to my taste" in outcome.text
    others = label(configured("what: reject", "run.max_rejected_share=1"), PLAIN)
    assert others.code == 0 and others.rejected == 3 and len(tars(tmp_path / "out")) == 6


def test_a_scan_that_rejects_too_much_is_not_labelled(tmp_path, configured, three, monkeypatch):
    monkeypatch.setattr(runs, "ENOUGH", 4)
    (three / "torn.wav").write_bytes(b"RIFF")
    outcome = label(configured("what: ''"), PLAIN)
    assert outcome.code == 1 and "stopped: 1 of 4 recordings of the scan were rejected" in outcome.text
    assert not tars(tmp_path / "out")
    assert label(configured("what: ''", "run.max_rejected_share=0.3"), PLAIN).code == 0


def test_what_a_newer_version_wrote_is_refused_and_left_alone(tmp_path, configured):
    assert label(configured("what: ''"), PLAIN).code == 0
    out, before = Storage(tmp_path / "out"), tars(tmp_path / "out")
    shard = sorted(records.finished(out, "audio"))[0]
    name = records.file("audio", shard, "json")
    newer = json.dumps(json.loads(out.read(name)) | {"format": 2, "invented": 1}).encode()
    out.write(name, newer)
    outcome = label(configured("what: reject, over_s: 100"), PLAIN)  # another column of the same audio
    assert outcome.code == 1 and {
        "has format 2; this version reads 1" in why for why in outcome.failed.values()
    }
    assert (
        out.read(name) == newer and {k: v for k, v in tars(tmp_path / "out").items() if k in before} == before
    )


def test_what_was_finished_and_audited_is_not_done_again_after_a_kill_before_the_tables(tmp_path, configured):
    assert label(configured("what: ''"), PLAIN).code == 0
    out, before = Storage(tmp_path / "out"), tars(tmp_path / "out")
    tables = {name: out.read(name) for name in ("index.parquet", "shards.parquet", "segments.parquet")}
    for name in tables:
        out.delete(name)
    begun = len(log(tmp_path))
    outcome = label(configured("what: ''"), PLAIN)
    assert outcome.code == 0 and outcome.kept == 3
    assert not [event for event in log(tmp_path)[begun:] if event["event"] == "shard-begin"]
    assert tars(tmp_path / "out") == before and set(out.names("")) >= set(tables)


def test_a_restart_reads_what_is_missing_and_little_else(tmp_path, three):
    """Six of seven shards are finished, and the seventh is lost with the tables."""
    faults = Faults()
    with served("labels", faults=faults):
        out = Storage("s3://labels/restart")
        text = CONFIG.format(teacher="what: ''", audio=json.dumps(str(three)), out=json.dumps(out.root))
        (tmp_path / "s3.yaml").write_text(text.replace("shard_minutes: 0.2", "shard_minutes: 0.1"))
        config = recipes.load(str(tmp_path / "s3.yaml"))
        assert label(config, PLAIN).code == 0
        audio, codes = sorted(out.names("columns"))
        sizes = {
            n: out.size(f"columns/{audio}/{n}") for n in out.names(f"columns/{audio}") if n.endswith(".tar")
        }
        read = {name: count for name, count in faults.given.items() if name.endswith(".tar")}
        assert not sum(read.values()), "what this machine wrote, it has"
        lost = min(sizes)[:-4]
        for column in (audio, codes):
            records.discard(out, column, lost)
        for name in ("index.parquet", "shards.parquet", "segments.parquet"):
            out.delete(name)
        faults.given.clear()
        assert label(config, PLAIN).code == 0
        read = {name: count for name, count in faults.given.items() if "/columns/" in name}
        tars_read = sum(count for name, count in read.items() if name.endswith(".tar"))
        assert tars_read <= 1.1 * sizes[f"{lost}.tar"] and len(sizes) >= 3


@pytest.mark.parametrize(
    ("limit", "pending", "most"),
    [(0, 50, 0), (0.01, 50, 10), (0.01, 160_000, 1600), (1, 50, 1), (100, 9, 100)],
)
def test_how_many_shards_may_fail(limit, pending, most):
    assert runs.most_failed(limit, pending) == most


@pytest.mark.parametrize(
    ("rejected", "recordings", "stops"),
    [(999, 999, False), (50, 1000, False), (51, 1000, True), (51, 2000, False), (0, 5000, False)],
)
def test_when_a_run_has_rejected_too_much(rejected, recordings, stops, configured):
    run = configured("what: ''").run
    assert bool(runs.too_many(run, "scan", rejected, recordings)) == stops


# Parts of a plan, on machines that know nothing of each other.


def test_parts_side_by_side_and_a_finish_are_the_whole_run(tmp_path, configured):
    config = configured("what: ''")
    assert label(config, PLAIN).code == 0
    whole = tars(tmp_path / "out")
    table = Storage(tmp_path / "out").read_table("segments.parquet").sort_by("key")
    shutil.rmtree(tmp_path / "out")

    first = label(config, replace(PLAIN, limit=1))
    assert first.code == 0 and "2 of the plan's 3 shards are still to be labelled" in first.text
    assert len(tars(tmp_path / "out")) == 2
    part = label(config, replace(PLAIN, shards="1/2"))  # the second of three
    assert part.code == 0 and "1 of the 1 shards of part 1-of-2 are finished" in part.text
    assert len(tars(tmp_path / "out")) == 4
    early = label(config, replace(PLAIN, finish=True))
    assert early.code == 1 and "1 of the plan's 3 shards are still to be labelled" in early.text
    assert label(config, replace(PLAIN, shards="0/2")).code == 0
    last = label(config, replace(PLAIN, finish=True))
    assert last.code == 0 and "still to be" not in last.text and (last.found, last.kept) == (3, 3)
    assert tars(tmp_path / "out") == whole
    again = Storage(tmp_path / "out").read_table("segments.parquet").sort_by("key")
    assert again.equals(table)


def test_a_part_needs_a_plan_and_sweeps_nobody_elses_attempts(tmp_path, configured):
    config = configured("what: ''")
    for options in (replace(PLAIN, shards="0/2"), replace(PLAIN, finish=True)):
        with pytest.raises(ValueError, match="has no plan yet.*--limit 1"):
            label(config, options)
    label(config, replace(PLAIN, limit=1))
    fitted = recipes.load(
        str(tmp_path / "config.yaml"), ["recipe.codes={teacher: mel_rvq, codebooks: 3, codebook_size: 64}"]
    )
    for options in (replace(PLAIN, shards="0/2"), replace(PLAIN, finish=True)):
        with pytest.raises(ValueError, match="is not fitted yet: run `overtone fit-codes` with it first"):
            label(fitted, options)
    attempt = tmp_path / "out" / "columns" / "audio" / ".attempt-of-another"
    attempt.write_bytes(b"half")
    assert label(config, replace(PLAIN, shards="0/2")).code == 0 and attempt.exists()
    assert label(config, PLAIN).code == 0 and not attempt.exists()


@pytest.mark.parametrize("shards", ["2/2", "3", "a/b", "-1/2", "1/0", "1/", "/2"])
def test_odd_parts_are_refused(shards):
    with pytest.raises(ValueError, match="--shards is .*: expected K/N with K from 0 to N - 1, such as 3/64"):
        LabelOptions(shards=shards)


@pytest.mark.parametrize("other", [{"finish": True}, {"refit": True}, {"retry_rejected": "all"}])
def test_what_is_of_a_whole_run_is_refused_with_a_part(other):
    with pytest.raises(ValueError, match="--shards is for a part"):
        LabelOptions(shards="0/2", **other)


def test_labels_of_another_kind_of_machine_are_not_mixed_in_unless_asked_for(tmp_path, configured):
    config = configured("what: ''")
    assert label(config, replace(PLAIN, limit=1)).code == 0
    out = Storage(tmp_path / "out")
    table = out.read_table("shards.parquet")
    facts = [
        json.dumps(json.loads(text) | {"machine": {"cpu": "riscv64"}}) for text in table["facts"].to_pylist()
    ]
    place = table.column_names.index("facts")
    out.write_table("shards.parquet", table.set_column(place, "facts", pa.array(facts)))
    refusal = "this machine: its cpu is .*, labels so far are of riscv64; "
    with pytest.raises(ValueError, match=refusal):
        label(config, PLAIN)
    out.delete("shards.parquet")  # killed before its tables were written
    for column in out.names("columns"):
        for shard in records.finished(out, column):
            old = records.read(out, column, shard)
            other = replace(old, facts=old.facts | {"machine": {"cpu": "riscv64"}})
            out.write(records.file(column, shard, "json"), other.to_bytes())
    with pytest.raises(ValueError, match=refusal):
        label(config, PLAIN)
    outcome = label(configured("what: ''", "run.mixed_devices=true"), PLAIN)
    assert outcome.code == 0
    assert "made on several kinds of machine: riscv64" in outcome.text
