"""`stages/signal/cqt.py` equals nnAudio's CQT of the whole, zero-padded recording, however it is cut.

Two references in float64: nnAudio's own layer (slow), and single frames as dot products with its kernels.
"""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnAudio.features.cqt import CQT as NnAudioCqt
from nnAudio.utils import create_cqt_kernels

from stages.signal import cqt_tables
from stages.signal.cqt import ConstantQ, CqtSpec, log_magnitude
from tests.conftest import ROOT
from tests.excerpt import excerpt

pytestmark = pytest.mark.usefixtures("one_thread")

RATE, HOP = 24_000, 320
SPEC = CqtSpec()
# tables in milliseconds, for tests of the cache
SMALL = CqtSpec(fmin_hz=880.0, bins=60, bins_per_octave=24)


def tolerance(reference_FK: np.ndarray) -> np.ndarray:
    """2e-4 of each bin's maximum in the recording, + 1e-6."""
    return 2e-4 * reference_FK.max(axis=0, initial=0.0) + 1e-6


def assert_close(ours_FK, reference_FK, scale_FK=None) -> None:
    allowed = tolerance(reference_FK if scale_FK is None else scale_FK)
    worst = (np.abs(np.asarray(ours_FK, np.float64) - reference_FK) / allowed).max(initial=0.0)
    assert worst < 1, f"{worst:.2f} × the tolerance"


@pytest.fixture(scope="module")
def cqt(tmp_path_factory) -> ConstantQ:
    return ConstantQ(SPEC, tmp_path_factory.mktemp("cqt"))


@cache
def kernels() -> tuple[list[np.ndarray], list[int], int]:
    """nnAudio's kernels without their zeros (complex128), where each starts, and the width they are centred
    in."""
    made, width, _, _ = create_cqt_kernels(1 / (2 ** (1 / 48) - 1), RATE, 32.7, 336, 48, 1, "hann")
    spans = [np.flatnonzero(kernel)[[0, -1]] for kernel in made]
    return (
        [k[a : b + 1].astype(complex) for k, (a, b) in zip(made, spans, strict=True)],
        [a for a, _ in spans],
        width,
    )


def by_dot_products(wave: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """float64 (len(frames), 336): nnAudio's definition, a frame at a time."""
    taps, starts, width = kernels()
    padded = np.pad(wave.astype(np.float64), width // 2)
    windows = np.stack([padded[HOP * i : HOP * i + width] for i in frames])
    dots = [windows[:, at : at + len(k)] @ k for k, at in zip(taps, starts, strict=True)]
    return np.abs(np.stack(dots, axis=1)) * np.sqrt(SPEC.lengths)


def by_layer(wave: np.ndarray) -> np.ndarray:
    layer = NnAudioCqt(
        sr=RATE, hop_length=HOP, fmin=32.7, n_bins=336, bins_per_octave=48, pad_mode="constant", verbose=False
    )
    with torch.no_grad():
        return layer.double()(torch.from_numpy(wave).double()[None])[0].T.numpy()


def whole(cqt: ConstantQ, wave: np.ndarray) -> np.ndarray:
    return cqt.frames(torch.from_numpy(wave)[None], 0, len(wave) // HOP + 1)[0].numpy()


def music(number: int, start_s: float, length_s: float) -> np.ndarray:
    """An excerpt at full scale, where the absolute part of the tolerance excuses least."""
    wave = excerpt(number, start_s, length_s)
    return wave / np.abs(wave).max()


def sine(hz: float, seconds: float, phase: float = 0.3) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE + phase).astype(np.float32)


def faded(wave: np.ndarray) -> np.ndarray:
    fade = np.hanning(RATE)[: RATE // 2]
    gain = np.ones(len(wave))
    gain[: len(fade)], gain[-len(fade) :] = fade, fade[::-1]
    return (wave * gain).astype(np.float32)


def test_equals_the_nnaudio_layer_on_music(cqt):
    wave = music(4, 10, 11)  # 826 frames: three of our blocks
    ours, reference = whole(cqt, wave), by_layer(wave)
    assert ours.dtype == np.float32
    assert ours.shape == reference.shape == (len(wave) // HOP + 1, 336)
    assert_close(ours, reference)


@pytest.mark.parametrize("number", [1, 6])
def test_equals_dot_products_on_music(cqt, number):
    wave = music(number, 0, 30)
    last, payload = len(wave) // HOP, SPEC.payload_frames
    frames = np.array(
        [0, 1, 40, 78, payload - 1, payload, payload + 1, 2 * payload, last - 60, last - 1, last]
    )
    ours = whole(cqt, wave)
    assert_close(ours[frames], by_dot_products(wave, frames), scale_FK=ours)


SIGNALS = {
    "silence": lambda: np.zeros(3 * RATE, np.float32),
    "square at full scale": lambda: np.sign(sine(100.3, 6)),
    "high square at full scale": lambda: np.sign(sine(3971.0, 6)),
    "constant": lambda: np.ones(6 * RATE, np.float32),
    "noise": lambda: np.random.default_rng(0).uniform(-1, 1, 6 * RATE).astype(np.float32),
    "low tone without onset": lambda: faded(sine(32.7, 6)),
    "highest tone without onset": lambda: faded(sine(SPEC.frequencies_hz[-1], 6)),
    "tone above all bins": lambda: faded(sine(11_000, 6)),
    "impulses at both ends": lambda: np.r_[1.0, np.zeros(6 * RATE - 2), -1.0].astype(np.float32),
    "impulse at a block's border": lambda: np.eye(1, 6 * RATE, 354 * HOP, dtype=np.float32)[0],
    "impulse off the frame grid": lambda: np.eye(1, 6 * RATE, 100 * HOP + 161, dtype=np.float32)[0],
}


@pytest.mark.parametrize("name", SIGNALS)
def test_equals_dot_products(cqt, name):
    wave = SIGNALS[name]()
    last = len(wave) // HOP
    frames = np.unique(
        np.clip([0, 1, 2, 60, 99, 100, 101, 200, 353, 354, 355, last - 2, last - 1, last], 0, last)
    )
    ours = whole(cqt, wave)
    assert_close(ours[frames], by_dot_products(wave, frames), scale_FK=ours)


def test_silence_is_zero(cqt):
    assert not whole(cqt, np.zeros(2 * RATE, np.float32)).any()


@pytest.mark.parametrize("bin_", [0, 1, 47, 100, 167, 240, 300, 334, 335])
def test_a_unit_sine_reads_half_the_root_of_its_kernels_length(cqt, bin_):
    wave = sine(SPEC.frequencies_hz[bin_], 4)
    middle = cqt.frames(torch.from_numpy(wave)[None], 2 * RATE, 1)[0, 0]
    assert int(middle.argmax()) == bin_
    assert float(middle[bin_]) == pytest.approx(np.sqrt(SPEC.lengths[bin_]) / 2, rel=1e-4)


def test_tones_at_every_bin_read_as_nnaudios_kernels_read_them(cqt):
    """One frame in the middle of each of 336 tones, every bin of it."""
    taps, starts, width = kernels()
    phase = 2 * np.pi * np.outer(SPEC.frequencies_hz, np.arange(width) - width // 2) / RATE + 0.3
    waves_KN = np.sin(phase).astype(np.float32)
    ours = cqt.frames(torch.from_numpy(waves_KN), width // 2, 1)[:, 0].numpy()
    waves_KN = waves_KN.astype(np.float64)
    parts = [
        waves_KN[:, at : at + len(k)] @ np.stack([k.real, k.imag], 1)
        for k, at in zip(taps, starts, strict=True)
    ]
    reference = np.hypot(*np.stack(parts, axis=1).transpose(2, 0, 1)) * np.sqrt(SPEC.lengths)
    assert (np.abs(ours - reference) < 2e-4 * reference + 1e-6).all()
    assert (ours.argmax(axis=1) == np.arange(336)).all()


def test_the_default_spec_is_merts():
    assert SPEC.context_samples == 25_230
    assert SPEC.lengths[[0, 335]].tolist() == [50_460, 400]  # a unit sine reads 112 and 10


@settings(max_examples=15, deadline=None)
@given(
    samples=st.one_of(st.sampled_from([0, 1, 319, 320, 321]), st.integers(0, 90_000)),
    first=st.integers(-60_000, 60_000),
    count=st.integers(0, 500),
)
def test_any_length_and_any_place(cqt, samples, first, count):
    wave = music(0, 5, 4)[:samples]
    frames = cqt.frames(torch.from_numpy(wave)[None], first, count)[0].numpy()
    assert frames.shape == (count, 336)
    assert np.isfinite(frames).all()
    # The same frames of a wave that holds the zeros explicitly.
    before, after = 60_000, max(0, first + count * HOP + 1 - samples)
    padded = np.pad(wave, (before, after))
    again = cqt.frames(torch.from_numpy(padded)[None], first + before, count)[0].numpy()
    assert_close(frames, again.astype(np.float64))


@pytest.mark.parametrize("samples", [0, 1, 319, 320])
def test_the_shortest_waves(cqt, samples):
    wave = np.linspace(1, -1, samples).astype(np.float32)
    frames = np.arange(samples // HOP + 1)
    assert_close(whole(cqt, wave), by_dot_products(wave, frames))


@pytest.mark.parametrize("cut", [1, 200, 354, 1500])
def test_blocks_with_context_give_the_whole(cqt, cut):
    wave = music(2, 20, 30)
    ours, count, context = whole(cqt, wave), len(wave) // HOP + 1, SPEC.context_samples
    starts = range(0, count, cut) if cut > 50 else [0, 77, 78, 79, 80, 1000, count - 1]
    for start in starts:
        frames = min(cut, count - start)
        lo, hi = max(0, start * HOP - context), min(len(wave), (start + frames - 1) * HOP + context)
        block = cqt.frames(torch.from_numpy(wave[lo:hi])[None], start * HOP - lo, frames)[0].numpy()
        assert_close(block, ours[start : start + frames].astype(np.float64), scale_FK=ours)


@pytest.mark.parametrize("waves", [3, 9])
def test_a_batch_is_its_waves(cqt, waves):
    batch = torch.from_numpy(music(3, 5, 6 * waves)).view(waves, -1)
    together = cqt.frames(batch, 0, 451)
    assert together.shape == (waves, 451, 336)
    for wave, frames in zip(batch, together, strict=True):
        assert_close(frames, cqt.frames(wave[None], 0, 451)[0].double().numpy())
    assert cqt.frames(batch[:0], 0, 5).shape == (0, 5, 336)


def test_the_same_bytes_again(cqt):
    wave = torch.from_numpy(music(2, 0, 10))[None]
    assert torch.equal(cqt.frames(wave, 0, 700), cqt.frames(wave.clone(), 0, 700))


def test_autocast_and_matmul_settings_change_nothing(cqt):
    wave = torch.from_numpy(music(2, 0, 10))[None]
    plain = cqt.frames(wave, 0, 700)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            within = cqt.frames(wave, 0, 700)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert within.dtype == torch.float32
    assert torch.equal(plain, within)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int16])
def test_other_dtypes_are_refused(cqt, dtype):
    with pytest.raises(ValueError, match=f"wave_BN.*{dtype}"):
        cqt.frames(torch.zeros(1, 10, dtype=dtype), 0, 1)


def test_other_shapes_and_counts_are_refused(cqt):
    with pytest.raises(ValueError, match="wave_BN: shape"):
        cqt.frames(torch.zeros(10), 0, 1)
    with pytest.raises(ValueError, match="count: -1"):
        cqt.frames(torch.zeros(1, 10), 0, -1)


def test_a_spec_that_cannot_work_is_refused():
    for bad in ({"bins": 0}, {"hop_samples": 321}, {"bins": 480}, {"fmin_hz": -1.0}, {"rate_hz": 8_000}):
        with pytest.raises(ValueError, match=next(iter(bad)) if "rate_hz" not in bad else "rate_hz"):
            CqtSpec(**bad)


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    wave_BN = torch.randn(1, 4_000, generator=torch.Generator().manual_seed(0))
    frames = ConstantQ(SMALL, tmp_path / "file" / "below").frames(wave_BN, 0, 10)
    assert torch.equal(frames, ConstantQ(SMALL).frames(wave_BN, 0, 10))


def test_the_cache_gives_the_same_tables_without_building(tmp_path, monkeypatch):
    wave = torch.from_numpy(sine(1000, 1))[None]
    built = ConstantQ(SMALL, tmp_path / "new").frames(wave, 0, 76)
    assert len(list((tmp_path / "new").iterdir())) == 1
    monkeypatch.setattr(cqt_tables, "_build", lambda spec: pytest.fail("built again"))
    assert torch.equal(built, ConstantQ(SMALL, tmp_path / "new").frames(wave, 0, 76))


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "one bit"])
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    wave = torch.from_numpy(sine(1000, 1))[None]
    built = ConstantQ(SMALL, tmp_path).frames(wave, 0, 76)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    flipped = good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
    path.write_bytes(
        {"empty": b"", "cut": good[:-1000], "garbage": b"no table" * 100, "one bit": flipped}[damage]
    )
    assert torch.equal(built, ConstantQ(SMALL, tmp_path).frames(wave, 0, 76))
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [good]


def test_other_parameters_have_another_file(tmp_path):
    ConstantQ(SMALL, tmp_path)
    ConstantQ(CqtSpec(fmin_hz=900.0, bins=60, bins_per_octave=24), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_log_magnitude_is_the_floored_natural_logarithm():
    values = log_magnitude(torch.tensor([0.0, 1e-9, 1e-6, 1.0, np.e]))
    assert values.tolist() == pytest.approx([np.log(1e-6)] * 3 + [0.0, 1.0], rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_block_of_ten_minutes_takes_bounded_memory(tmp_path):
    """Beside the wave (55 MiB) and its frames (58 MiB): the tables and eight blocks at work."""
    code = f"""
import resource, torch
torch.set_num_threads(1)
from pathlib import Path
from stages.signal.cqt import ConstantQ
cqt = ConstantQ(cache_dir=Path({str(tmp_path)!r}))
wave = torch.rand(1, 600 * 24_000) - 0.5
cqt.frames(wave[:, :240_000], 0, 700)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert cqt.frames(wave, 0, 45_000).shape == (1, 45_000, 336)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ConstantQ(SPEC, tmp_path)  # so that building does not count
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert int(done.stdout) < 400
