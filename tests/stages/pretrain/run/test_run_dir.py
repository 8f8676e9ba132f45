"""RUN: what its lines keep."""

import json
from dataclasses import replace

from stages.pretrain.config import Config
from stages.pretrain.data.settings import Data
from stages.pretrain.run.run_dir import RunDir
from stages.pretrain.run.world import joined


def test_a_line_keeps_milliseconds_and_figures_and_says_null_for_what_is_not_finite(tmp_path):
    config = Config(data=Data())
    with joined(60) as world:
        folder = RunDir(replace(config, run=replace(config.run, dir=str(tmp_path), name="a")), world)
        folder.log("update", time=1_795_394_123.456, loss=1 / 3, norms=[float("nan"), float("inf"), 2.0])
    (row,) = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert row == {
        "kind": "update",
        "time": 1_795_394_123.456,
        "loss": row["loss"],
        "norms": [None, None, 2.0],
    }
    assert abs(row["loss"] - 1 / 3) < 1e-12
