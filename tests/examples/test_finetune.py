"""The fine-tuning example learns two made-up genres, and what it saves is a model again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.cli import main
from stages.evaluate.run import open_backbone
from tests.stages.evaluate.conftest import write_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


@pytest.mark.parametrize("choices", [{"front_end": "mel"}, {}], ids=["own layout", "HuBERT's"])
def test_two_genres_are_told_apart(tmp_path, choices):
    run, _ = write_run(tmp_path / "run", **choices)
    assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    music, draw = tmp_path / "genres", np.random.default_rng(0)
    for genre, hz in {"blues": 150, "metal": 3000}.items():
        (music / genre).mkdir(parents=True)
        for number in range(12):
            tone = np.sin(2 * np.pi * hz * draw.uniform(0.9, 1.1) / 22_050 * np.arange(22_050 * 2))
            soundfile.write(music / genre / f"{genre}.{number:05}.wav", 0.3 * tone, 22_050)
    listed = [f"{genre}/{genre}.{number:05}.wav" for genre in ("blues", "metal") for number in range(12)]
    (tmp_path / "train").write_text("\n".join(listed[:9] + listed[12:21]))
    (tmp_path / "valid").write_text("\n".join(listed[9:12] + listed[21:]))
    call = [sys.executable, str(EXAMPLE), str(tmp_path / "model"), str(music), "--out", str(tmp_path / "out")]
    call += ["--epochs", "6", "--batch", "6", "--crop-s", "1", "--lr", "1e-3", "--head-lr", "1e-2"]
    call += ["--train", str(tmp_path / "train"), "--valid", str(tmp_path / "valid")] if not choices else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    valid = [float(found) for found in re.findall(r"([\d.]+) in validation", done.stdout)]
    assert len(valid) == 6 and max(valid) == 1.0
    before, after = open_backbone(tmp_path / "model"), open_backbone(tmp_path / "out")
    assert not torch.equal(before.encoder.layers[0].wide.weight, after.encoder.layers[0].wide.weight)
    assert torch.load(tmp_path / "out" / "head.pt")["genres"] == ["blues", "metal"]
