"""`overtone status --watch`: a run seen by its log while it goes on."""

import json

import pytest

from pipeline.watching import Watched, watch
from stages.shards.storage import Storage
from tests.object_store import served

NOW = 2_000_000_000.0


def line(event: str, ago: float, **facts) -> str:
    return json.dumps({"time": NOW - ago, "event": event, **facts}) + "\n"


def ended(shard: str, stage: str, ago: float, host: str, status: str = "finished", **facts) -> str:
    own = {"shard": shard, "stage": stage, "host": host, "status": status, "samples": 60 * 24_000}
    return line("shard-end", ago, **own | facts)


EARLIER = line("start", 9000) + line("stages", 8999, totals={"decode": 7}) + ended("s0", "decode", 8990, "a")
BEGUN = EARLIER + line("start", 300) + line("stages", 299, totals={"decode": 8, "codes": 8})
MORE = (
    ended("s1", "decode", 200, "a")
    + ended("s2", "decode", 150, "b", rejected=2)
    + ended("s3", "decode", 100, "a")
    + ended("s4", "decode", 90, "a", "failed")
    + line("shard-again", 80, shard="s5", stage="codes", host="b", error="503", pause_s=2)
    + line("left-out", 70, shard="s5", stage="codes", node="c", error="no GPU")
    + ended("s1", "codes", 60, "b")
)


def shown(watched: Watched) -> list[str]:
    return watched.read().text(NOW).splitlines()


def test_what_a_run_has_done_and_how_fast_and_what_is_left_out(tmp_path):
    out = Storage(tmp_path)
    watched = Watched(out)
    assert shown(watched) == [f"{tmp_path}: no run has begun yet"]
    (tmp_path / "log.jsonl").write_text(BEGUN)
    head, decode, codes = shown(watched)
    assert head.endswith("it goes on; last word 299 s ago") or head.endswith(
        "it goes on; last word 0:04:59 ago"
    )
    assert decode.split() == ["decode", "0/8", "shards"] and codes.split() == ["codes", "0/8", "shards"]

    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(MORE[:-20])  # the last line is not whole yet
    _, decode, codes, *rest = shown(watched)
    assert decode == "  decode         3/8 shards  1 audio-s/s  0:03:20 left  2 rejected  1 failed"
    assert codes == "  codes          0/8 shards  1 tried again"
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(MORE[-20:] + "torn\n[]\n")
    _, _, codes, a, b, left_out = shown(watched)
    assert codes == "  codes          1/8 shards  0 audio-s/s  1 tried again"
    assert (a, b) == ("  a: audio-s/s decode 0, codes 0", "  b: audio-s/s decode 0, codes 0")
    assert left_out == "  node c is left out for codes: no GPU"


@pytest.mark.parametrize(
    ("event", "said"), [("end", "has ended"), ("stopped", "was stopped"), ("failed", "has failed")]
)
def test_it_ends_with_the_run(tmp_path, capsys, event, said):
    (tmp_path / "log.jsonl").write_text(BEGUN + MORE + line(event, 5))
    watch(str(tmp_path), 60)
    assert f"it {said}" in capsys.readouterr().out


def test_on_a_store_each_part_of_the_log_is_read_once():
    with served("labels"):
        out = Storage("s3://labels/watched")
        watched = Watched(out)
        out.write("log/20260101T000000Z-a-1-000000.jsonl", EARLIER.encode())
        assert "0/" not in shown(watched)[0] and len(shown(watched)) == 2
        out.write("log/20260102T000000Z-a-2-000000.jsonl", (BEGUN.removeprefix(EARLIER) + MORE).encode())
        assert shown(watched)[1].split()[:2] == ["decode", "3/8"]
        assert shown(watched)[1].split()[:2] == ["decode", "3/8"]


def test_no_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match="none is no folder: give the OUT of a `labels` run"):
        watch(str(tmp_path / "none"), 1)
