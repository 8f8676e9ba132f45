"""The codes and cqt stages over waves in memory: facts, refusals, teachers of other rates, magnitudes and
storage."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from stages.label.base import Kept, Rejected, Sample
from stages.label.codes import Codes
from stages.label.cqt import CqtStage
from stages.label.recipe import Recipe, cqt_recipe
from stages.shards.frames import decode_cqt
from tests.excerpt import ArrayWave


@dataclass
class Recording(ArrayWave):
    """An `ArrayWave` cut in two segments, as the stages take it."""

    recording: str = "r0"
    rate_hz: int = 24_000
    segments: list = field(default_factory=list)

    def __post_init__(self):
        half = len(self.sound) // 640 * 320
        for start, stop in ((0, half), (half, len(self.sound))):
            row = {
                "recording": self.recording,
                "start": start,
                "samples": stop - start,
                "frames": (stop - start) // 320,
            }
            self.segments.append(row | {"key": f"{self.recording}-{start:09d}"})


@dataclass(frozen=True)
class Counting:
    """A toy: frame i of the teacher has the codes (i mod 7, i mod 3)."""

    name = "counting"
    version = 1
    codebooks = 2
    codebook_size = 7
    hop_samples: int = 320
    dtype: str = "uint16"

    def open(self, weights, device, threads):
        def label(wave) -> Iterator[np.ndarray]:
            i = np.arange(-(-(wave.samples // 320 * 320) // self.hop_samples))
            yield np.stack([i % 7, i % 3], 1).astype(self.dtype)

        return label


def tones(seconds: float = 3.0, gain: float = 0.3) -> np.ndarray:
    t = np.arange(int(seconds * 24_000)) / 24_000
    return (gain * (np.sin(2 * np.pi * 220 * t) + 0.1 * np.sin(2 * np.pi * 3000 * t))).astype(np.float32)


def frames(items: list, extension: str) -> np.ndarray:
    return np.concatenate([np.load(io.BytesIO(i.members[extension])) for i in items if isinstance(i, Sample)])


def run_cqt(waves: list, **recipe) -> tuple[list, dict]:
    run = CqtStage(fmin_hz=110.0, bins=96, bins_per_octave=24, **recipe).open(None, "cpu", 1)
    return list(run(iter(waves))), run.facts()


def test_a_record_says_what_its_codes_are():
    run = Codes(Counting()).open(None, "cpu", 1)
    codes_TK = frames(list(run([Recording(tones())])), "codes.npy")
    assert codes_TK.shape == (225, 2) and codes_TK[8].tolist() == [1, 2]
    assert run.facts() == {"codebooks": 2, "codebook_size": 7, "hop_samples": 320, "teacher_hop_samples": 320}


@pytest.mark.parametrize("samples", [320 * 2, 320 * 7 + 319, 320 * 9])
def test_a_slower_teachers_code_stands_in_every_row_it_covers(samples):
    run = Codes(Counting(hop_samples=960)).open(None, "cpu", 1)
    codes_TK = frames(list(run([Recording(tones()[:samples])])), "codes.npy")
    assert codes_TK[:, 0].tolist() == [i // 3 for i in range(samples // 320)]
    assert run.facts()["hop_samples"] == 320 and run.facts()["teacher_hop_samples"] == 960


def test_a_teacher_that_breaks_its_contract_fails_the_shard():
    with pytest.raises(RuntimeError, match=r"counting gave int64 \(225, 2\), expected uint16 \(t, 2\)"):
        list(Codes(Counting(dtype="int64")).open(None, "cpu", 1)([Recording(tones())]))


def test_a_teachers_rate_and_codes_must_fit_the_format():
    with pytest.raises(
        ValueError, match="hop_samples is 480: of teacher counting; expected a multiple of 320"
    ):
        Recipe(codes=Counting(hop_samples=480))


@pytest.mark.parametrize("storage, step", [("float16", 2**-10), ("uint8", 0.51 / 255)])
@pytest.mark.parametrize("magnitude", ["linear", "log"])
def test_stored_frames_read_back_within_the_error_that_the_facts_state(magnitude, storage, step):
    waves = [Recording(tones(), "a"), Recording(tones(2.0, 0.01), "b")]
    exact = frames(run_cqt(waves)[0], "cqt.npy").astype(np.float32)
    items, facts = run_cqt(waves, magnitude=magnitude, storage=storage)
    stored_TF = frames(items, "cqt.npy")
    assert (
        stored_TF.dtype == np.dtype(storage)
        and facts["storage"] == storage
        and facts["magnitude"] == magnitude
    )
    wanted = np.log(np.maximum(exact, 1e-6)) if magnitude == "log" else exact
    spread = wanted.max() - wanted.min()
    read = decode_cqt(stored_TF, facts)
    loud = exact > 1e-3  # float16, of which `exact` is made, knows nothing relative below
    assert 0 < facts[storage]["max_abs_error"] <= step * spread
    assert np.abs(read - wanted)[loud].max() <= facts[storage]["max_abs_error"] + 2e-3 * (
        1 if magnitude == "log" else spread
    )


def test_a_shard_of_silence_is_stored_in_eight_bits_too():
    items, facts = run_cqt([Recording(np.zeros(24_000, np.float32))], magnitude="log", storage="uint8")
    assert np.allclose(decode_cqt(frames(items, "cqt.npy"), facts), np.log(1e-6))


@pytest.mark.parametrize("storage", ["float16", "uint8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_broken_recording_is_rejected_with_a_reason_and_the_others_are_kept(value, storage):
    broken = tones()
    broken[50_000] = value
    items, facts = run_cqt([Recording(broken, "a"), Recording(tones(), "b")], storage=storage)
    outcomes = [i for i in items if not isinstance(i, Sample)]
    assert outcomes == [
        Rejected(
            "a", "samples: NaN or infinity first at sample 50000; leave this recording out or repair it"
        ),
        Kept("b"),
    ]
    assert np.isfinite(decode_cqt(frames(items, "cqt.npy"), facts)).all()


@pytest.mark.parametrize(
    "wave, reason",
    [
        (Recording(tones(), rate_hz=44_100), "sample rate 44100 Hz: teachers take 24000"),
        (Recording(np.zeros((24_000, 2), np.float32)), r"shape \(\d+, 2\): teachers take one channel"),
        (Recording(np.zeros(24_000, np.int16)), "dtype int16: teachers take float32"),
    ],
)
def test_a_rate_channels_or_dtype_that_cannot_be_taken_is_named(wave, reason):
    items, _ = run_cqt([wave])
    [rejected] = items
    assert isinstance(rejected, Rejected) and re.search(reason, rejected.reason)


def test_options_that_came_later_leave_older_columns_their_names():
    plain = cqt_recipe(Recipe(cqt=CqtStage()), "audio8")
    assert "magnitude" not in plain and "storage" not in plain
    assert cqt_recipe(Recipe(cqt=CqtStage(magnitude="log")), "audio8") == plain | {"magnitude": "log"}


@pytest.mark.parametrize(
    "wrong", [{"magnitude": "db"}, {"storage": "float32"}, {"block_s": 0.0}, {"bins": 0}]
)
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=f"CqtStage.{next(iter(wrong))} is "):
        CqtStage(**wrong)
