"""One stream: the third stage begins before the first ends, on one CPU and on two."""

import json

import pytest

from tests.conftest import SMALL


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_third_stage_begins_before_the_first_ends(tmp_path, music, overtone, cpus):
    audio = tmp_path / "audio"
    audio.mkdir()
    import soundfile

    for number in range(36):
        wave, rate = soundfile.read(
            music[number % len(music)], start=number * 44_100, frames=20 * 44_100, dtype="float32"
        )
        soundfile.write(audio / f"{number:02d}.flac", wave, rate)
    config = tmp_path / "c.yaml"
    config.write_text(SMALL.format(audio=json.dumps(str(audio)), out=json.dumps(str(tmp_path / "out"))))
    fitted = overtone("fit-codes", config, "--set", f"run.cpus={cpus}")
    assert fitted.returncode == 0, fitted.stderr
    done = overtone("labels", config, "--set", f"run.cpus={cpus}", "--set", "recipe.plan.shard_minutes=0.4")
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    decoded = [e["time_s"] for e in ends(events, "decode")]
    first_cqt = min(e["time_s"] for e in begins(events, "cqt"))
    assert len(decoded) >= 36 and first_cqt < max(decoded)


def begins(events: list[dict], stage: str) -> list[dict]:
    return [
        e | {"time_s": e["started"]} for e in events if e["event"] == "shard-begin" and e["stage"] == stage
    ]


def ends(events: list[dict], stage: str) -> list[dict]:
    return [
        e | {"time_s": e["started"] + e["wall_s"]}
        for e in events
        if e["event"] == "shard-end" and e["stage"] == stage
    ]
