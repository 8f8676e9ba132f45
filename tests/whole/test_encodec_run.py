"""The full configuration, `configs/labels/encodec.yaml`, on real music: its codes are the encodec
package's."""

import numpy as np
import pytest
import torch

from stages.shards import column
from stages.shards.recordings import stored_recordings
from stages.shards.storage import Storage
from tests.encodec_weights import cached_weights, load_model


@pytest.mark.slow  # the teacher itself is tested in stages/label/teachers
def test_codes_of_a_run_equal_the_package_on_the_stored_audio(tmp_path, excerpts, overtone):
    weights, out = cached_weights(), tmp_path / "out"
    audio = tmp_path / "audio"
    audio.mkdir()
    for path in sorted(excerpts.iterdir())[2:5]:
        (audio / path.name).symlink_to(path)
    done = overtone(
        "labels",
        "configs/labels/encodec.yaml",
        "--audio",
        audio,
        "--out",
        out,
        "--set",
        f"run.weights={weights}",
        "--set",
        "recipe.decode.segment_s=8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((out / "teachers").glob("encodec-*.safetensors"))
    [shard] = [p.stem for p in out.glob("columns/audio/*.tar")]
    [codes] = [p.name for p in out.glob("columns/codes-*")]
    storage, model = Storage(out), load_model(weights)
    index = column.read_index(storage, codes, shard).to_pylist()
    same = total = 0
    distinct = [set() for _ in range(8)]
    for wave in stored_recordings(
        out / f"columns/audio/{shard}.tar", column.read_index(storage, "audio", shard)
    ):
        with torch.no_grad():
            [(expected_1KT, _)] = model.encode(torch.from_numpy(wave.read(0, wave.samples))[None, None])
        with open(out / f"columns/{codes}/{shard}.tar", "rb") as f:
            parts = []
            for row in (r for r in index if r["recording"] == wave.recording):
                f.seek(row["offset"])
                parts.append(np.load(f))
        stored_TK = np.concatenate(parts)
        assert stored_TK.dtype == np.uint16 and len(stored_TK) == wave.samples // 320
        same += (stored_TK == expected_1KT[0].T[: len(stored_TK)].numpy()).sum()
        total += stored_TK.size
        for level in range(8):
            distinct[level] |= set(stored_TK[:, level].tolist())
    assert same / total >= 0.99999
    assert min(map(len, distinct)) >= 64  # no level is dead: half a minute of music
