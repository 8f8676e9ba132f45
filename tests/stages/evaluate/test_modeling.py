"""The modelling file that `export` copies: in a process that knows nothing of overtone, transformers loads
every model that can be trained, and its hidden states are ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import main
from stages.evaluate.run import open_backbone
from stages.pretrain.model.config import CqtFront
from tests.stages.evaluate.conftest import write_run

CHOICES = [
    {"front_end": "mel"},
    {"front_end": "mel", "norm": "pre", "positions": "rotary"},
    {"front_end": "cqt", "attention_bias": "alibi", "attend_masked": False, "masked_input": "line"},
    {"front_end": "cqt", "cqt": CqtFront(90, 24, 60.0), "block": "conformer", "norm": "pre"},
    {"front_end": "mel_cqt", "cqt": CqtFront(60, 12, 60.0), "stack": 3},
    {"positions": "rotary"},
    {"norm": "pre", "attention_bias": "alibi"},
    {"norm": "pre", "block": "conformer", "positions": "rotary", "attention_bias": "alibi"},
    {"front_end": "mel", "position_kernel": 7, "stack": 3},
    {"stack": 2},
]
APART = """
import json, sys
import importlib.util
assert importlib.util.find_spec("stages") is None and importlib.util.find_spec("pipeline") is None
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel
folders, waves, out = sys.argv[1:]
waves, found = dict(np.load(waves)), {}


def states(model, **inputs):
    with torch.no_grad():
        got = model(**inputs, output_hidden_states=True)
    return [x.float().numpy() for x in (*got.hidden_states, got.last_hidden_state)]


for number, folder in enumerate(json.loads(folders)):
    model, about = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    prepare = AutoFeatureExtractor.from_pretrained(folder)
    half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    for name, wave_BN in waves.items():
        inputs = prepare([*wave_BN], sampling_rate=24_000, return_tensors="pt")
        for layer, x_BTD in enumerate(states(model, **inputs)):
            found[f"{number} {name} {layer}"] = x_BTD
    found[f"{number} half"] = states(half, **inputs)[-1]
    clips = [wave_BN[0], wave_BN[0][:9_000]]
    inputs = prepare(clips, sampling_rate=24_000, padding=True, return_tensors="pt")
    found[f"{number} padded"] = states(model, **inputs)[-1][1]
    found[f"{number} alone"] = states(model, input_values=inputs.input_values[1:, :9_000])[-1][0]
np.savez(out, **found)
"""


def apart(tmp: Path, folders: list[Path], waves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `APART` finds, run where neither the working folder nor the environment leads to overtone."""
    np.savez(tmp / "waves.npz", **waves)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"HF_HOME": str(tmp / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    # oneDNN's bf16 kernels for AMX are a tenth off, with torch 2.13 on a Xeon; nothing of ours is between
    env |= {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    # -S leaves out what an editable install adds to the path; the packages themselves are put back
    packages = next(place for place in sys.path if place.endswith("site-packages"))
    code = f"import sys; sys.path.append({packages!r}){APART}"
    places = json.dumps([str(folder) for folder in folders])
    call = [sys.executable, "-S", "-c", code, places, str(tmp / "waves.npz"), str(tmp / "found.npz")]
    done = subprocess.run(call, cwd=tmp, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(tmp / "found.npz"))


def music(seconds: float, seed: int) -> np.ndarray:
    """Two clips: quiet noise under a loud tone, which leaves most bins near the floor, and noise alone."""
    draw, samples = np.random.default_rng(seed), int(seconds * 24_000)
    noise = draw.standard_normal((2, samples)) * [[1e-4], [0.1]]
    tone = 0.7 * np.sin(2 * np.pi * 440 / 24_000 * np.arange(samples))
    return (noise + [tone, 0 * tone]).astype(np.float32)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Waves, our models, and what transformers made of all of them in one process."""
    tmp, nets, waves = tmp_path_factory.mktemp("models"), [], {"short": music(0.7, 0), "long": music(9.01, 1)}
    for number, choices in enumerate(CHOICES):
        run, net = write_run(tmp / f"run{number}", **choices)
        assert main(["export", str(run), "--out", str(tmp / str(number))]) == 0
        nets.append(net)
    return waves, nets, apart(tmp, [tmp / str(number) for number in range(len(CHOICES))], waves)


@pytest.mark.parametrize("number", range(len(CHOICES)), ids=[" ".join(map(str, c)) for c in CHOICES])
def test_transformers_gives_our_hidden_states(found, number):
    waves, nets, theirs = found
    for name, wave_BN in waves.items():
        with torch.no_grad():
            hidden, last = nets[number].encode(torch.from_numpy(wave_BN))
        for layer, ours in enumerate((*hidden, last)):
            other = theirs[f"{number} {name} {layer}"]
            assert ours.shape == other.shape
            assert np.abs(ours.numpy() - other).max() <= 1e-5 * np.abs(other).max()
    assert np.abs(theirs[f"{number} half"] - other).mean() < 0.02 * np.abs(other).max()


@pytest.mark.parametrize("number", range(len(CHOICES)), ids=[" ".join(map(str, c)) for c in CHOICES])
def test_padding_changes_nothing(found, number):
    """But for convolutions, whose first norm is over the padding too."""
    _, nets, theirs = found
    padded, alone = theirs[f"{number} padded"], theirs[f"{number} alone"]
    bound = 1e-5 if nets[number].model.front_end != "conv" else 1.0
    assert np.abs(padded[: len(alone)] - alone).max() <= bound * np.abs(alone).max()


def test_a_folder_of_ours_is_read_back(tmp_path):
    run, net = write_run(tmp_path / "run", front_end="mel", norm="pre")
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    again = open_backbone(tmp_path / "out")
    assert again.model == net.model
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["model"]["wide"] = 3
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model.*wide"):
        open_backbone(tmp_path / "out")
