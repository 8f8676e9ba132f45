"""The quickstart's first impression: its two commands, and the model's figures on held-out music."""

import json

import pytest

LABELS, PRETRAIN = "configs/labels/quickstart.yaml", "configs/pretrain/quickstart.yaml"


@pytest.mark.slow
def test_on_held_out_music_the_first_gain_is_above_zero_and_the_loss_falls(tmp_path, run_overtone):
    out = tmp_path / "out"
    train = ("train", PRETRAIN, "--set", f"run.dir={tmp_path}", "--set", f"data.corpora=[{out}]")
    for arguments in (("labels", LABELS, "--out", out), train):
        done = run_overtone(*arguments, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "quickstart" / "metrics.jsonl").read_text().splitlines()
    valid = [row for row in map(json.loads, lines) if row["kind"] == "valid"]
    first, last = valid[0], valid[-1]
    assert len(valid) >= 2 and last["update"] > first["update"]
    assert last["gain_over_unigram"][0] > 0 and last["loss"] < first["loss"]
    assert last["cqt_error"] < last["cqt_mean_error"]
