"""Each worker of the EnCodec teacher compares its codes with the `encodec` package's, and refuses to write
others."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch

from stages.label.base import RejectRecording, TeacherError
from stages.label.codes import Codes
from stages.label.decode import wav_bytes
from stages.label.shard import Job, ShardWorker
from stages.label.teachers import encodec_package
from stages.label.teachers.encodec import Encodec
from stages.shards import column
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.encodec_weights import cached_weights, load_model
from tests.excerpt import ArrayWave, excerpt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def weights() -> bytes:
    return Encodec().locate(str(cached_weights()))


def music(number: int, seconds: float) -> ArrayWave:
    return ArrayWave(excerpt(number, length_s=seconds))


def label(labeller, wave) -> np.ndarray:
    return np.concatenate(list(labeller(wave)))


@pytest.mark.parametrize("block_s", [1.0, 60.0])
def test_the_reference_is_the_packages_own_model(weights, block_s):
    labeller = Encodec(block_s=block_s).open(weights, "cpu", 1)
    _, encode = encodec_package.reference(labeller.weights, 8)
    sound_N = excerpt(1)[:48_007]
    with torch.no_grad():
        ((codes_BKT, _),) = load_model(cached_weights()).encode(torch.tensor(sound_N)[None, None])
    np.testing.assert_array_equal(encode(sound_N), codes_BKT[0].T.numpy())


def test_the_share_is_measured_once_on_the_first_recording_and_its_codes_are_as_without(weights):
    labeller = Encodec().open(weights, "cpu", 1)
    assert labeller.run_facts() == {}
    first, second = label(labeller, music(1, 12.0)), label(labeller, music(2, 1.0))
    stated = labeller.run_facts()["agreement_with_package"]
    assert stated == {"package": "encodec 0.1.1", "share": 1.0, "tokens": 6000, "recording": ""}
    labeller.compared = {"share": 1.0}
    assert first.tobytes() == label(labeller, music(1, 12.0)).tobytes() and len(second) == 75
    assert labeller.facts() == {}, "nothing of one worker is in the record outside `run`"


def test_a_short_recording_is_compared_as_followed_by_silence(weights):
    labeller = Encodec().open(weights, "cpu", 1)
    assert len(label(labeller, music(1, 0.5))) == 38
    stated = labeller.run_facts()["agreement_with_package"]
    assert stated["share"] >= 0.999 and stated["tokens"] >= 5990


def test_an_unreadable_recording_is_rejected_and_the_next_is_compared(weights):
    labeller = Encodec().open(weights, "cpu", 1)
    broken = excerpt(1)[:24_000].copy()
    broken[100] = np.nan
    with pytest.raises(RejectRecording, match="sample 100;"):
        label(labeller, ArrayWave(broken))
    assert labeller.run_facts() == {}
    label(labeller, music(1, 1.0))
    assert labeller.run_facts()["agreement_with_package"]["share"] >= 0.999


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_with_one_broken_weight_is_refused_by_name_on_every_recording(weights, dtype):
    labeller = Encodec(dtype=dtype).open(weights, "cpu", 1)
    labeller.exact.first.bias[0] += 1.0
    said = (
        r"overtone's own EnCodec and the package encodec 0\.1\.1 agree on \d+\.\d\d% of \d+ tokens \(the "
        r"first 10 s of recording \), expected at least 99\.9%: no codes are written\. Label on another"
    )
    for number in (1, 2):
        with pytest.raises(TeacherError, match=said):
            next(labeller(music(number, 2.0)))
    assert labeller.run_facts()["agreement_with_package"]["share"] < 0.999


def test_half_precision_is_compared_by_its_float32_path(weights):
    labeller = Encodec(dtype="bf16").open(weights, "cpu", 1)
    label(labeller, music(1, 4.0))
    assert labeller.run_facts()["agreement_with_package"]["share"] >= 0.999
    assert labeller.facts()["agreement_with_fp32"]["by_codebook"][-1] < 0.999


# The share


def test_one_choice_counts_once_however_many_codes_follow_from_it():
    theirs = np.zeros((1000, 8), int)
    for level, tokens in ((0, 7993), (7, 8000)):
        ours = theirs.copy()
        ours[5, level:] = 1
        assert encodec_package.agreement(ours, theirs) == (round(1 - 1 / tokens, 6), tokens)
    assert encodec_package.agreement(theirs, theirs) == (1.0, 8000)
    assert encodec_package.agreement(theirs + 1, theirs) == (0.0, 1000)


# The worker, and its records


def worker(root, weights: bytes) -> ShardWorker:
    """Of two shards of one recording each."""
    storage = Storage(root)
    storage.write("teacher", weights)
    for number, shard in enumerate(("s1", "s2")):
        sound = (excerpt(number, length_s=2.0) * 32_767).astype(np.int16)
        place = {"recording": f"r{number}", "start": 0, "samples": len(sound)}
        with column.publishing(storage, "audio", shard) as publication:
            members = {"json": json.dumps(place).encode(), "wav": wav_bytes(sound)}
            publication.writer.add(f"r{number}-00000", members, place | {"frames": 150}, {})
            publication.writer.keep({})
            totals = publication.writer.finish()
            about = {"inputs": 1, "kept": 1, "rejects": [], "source_sha256": None, "software": {}, **totals}
            publication.record = records.Record(shard, "audio", {}, device="cpu", **about)
    digest = hashlib.sha256(weights).hexdigest()
    return ShardWorker(Job(Codes(Encodec()), "codes-e", "audio", {}, str(root), "teacher", digest))


def test_records_state_the_workers_share_under_run_alone(tmp_path, weights):
    run = worker(tmp_path, weights)
    assert [run(shard)["status"] for shard in ("s1", "s2")] == ["finished", "finished"]
    for shard in ("s1", "s2"):
        record = records.read(run.storage, "codes-e", shard)
        assert record.run["agreement_with_package"]["share"] >= 0.999
        assert record.run["agreement_with_package"]["recording"] == "r0", "the worker's first"
        assert "agreement_with_package" not in json.dumps(record.facts)
    name = records.file("codes-e", "s1", "json")
    fields = json.loads(run.storage.read(name))
    del fields["run"]["agreement_with_package"]  # as in records of older versions
    run.storage.write(name, json.dumps(fields).encode())
    assert records.read(run.storage, "codes-e", "s1").kept == 1 and run("s1")["status"] == "skipped"


def test_a_refusal_fails_the_shard_ends_the_run_and_leaves_no_codes(tmp_path, weights):
    run = worker(tmp_path, weights)
    run.run.label.exact.first.bias[0] += 1.0
    row = run("s1")
    assert (row["status"], row["fatal"]) == ("failed", True)
    assert row["error"].startswith(
        "TeacherError: overtone's own EnCodec and the package encodec 0.1.1 agree on"
    )
    assert "of recording r0)" in row["error"] and not list((tmp_path / "columns/codes-e").glob("s1*"))


# The package


def test_a_missing_package_is_one_sentence_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "encodec", None)
    with pytest.raises(ValueError, match=r"pip install --no-deps encodec==0\.1\.1 einops$") as refused:
        Encodec().locate(str(cached_weights()))
    assert "\n" not in str(refused.value)


def test_the_module_in_place_of_torchaudio_is_gone_after_the_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # cannot be imported
    assert encodec_package.package().__version__ == "0.1.1"
    assert sys.modules.get("torchaudio") is None
