"""The EnCodec teacher gives the package's codes for the uninterrupted recording, from its own fast
encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.label.recipe import Recipe, teacher_recipe
from stages.label.teachers import encodec_model
from stages.label.teachers.encodec import Encodec, Labeller
from tests.encodec_weights import cached_weights, load_model
from tests.excerpt import ArrayWave, excerpt
from tests.stages.label.teachers.labels import labels

pytestmark = pytest.mark.usefixtures("one_thread")

AGREE = 0.99999


def codes(sound: np.ndarray, weights: bytes, **recipe) -> np.ndarray:
    """uint16 (T, K) of one recording by a freshly opened teacher."""
    return labels(Encodec(**recipe), weights, ArrayWave(sound))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float((a == b).mean())


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """The worker's own comparison with the package takes two seconds: see test_encodec_package.py."""
    monkeypatch.setattr(Labeller, "_check_against_package", lambda self, wave: None)


@pytest.fixture(scope="session")
def weights_file() -> Path:
    return cached_weights()


@pytest.fixture(scope="session")
def weights(weights_file) -> bytes:
    return Encodec().locate(str(weights_file))


@pytest.fixture(scope="session")
def package_codes(weights_file):
    model = load_model(weights_file)

    def encode(sound: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            ((codes_BKT, _),) = model.encode(torch.tensor(sound)[None, None])
        return codes_BKT[0].t().numpy()

    return encode


@pytest.fixture(scope="session")
def expected(package_codes) -> np.ndarray:
    return package_codes(excerpt(1))


# What the codes are


def test_codes_are_those_of_the_package(weights, expected):
    ours = codes(excerpt(1), weights)
    assert ours.dtype == np.uint16 and ours.shape == (1500, 8)
    assert agreement(ours, expected) >= AGREE


def test_these_weights_use_many_codes_at_every_level(weights):
    """Otherwise agreement would say nothing."""
    ours = np.concatenate([codes(excerpt(n, length_s=10.0), weights) for n in range(4)])
    assert min(len(np.unique(level)) for level in ours.T) >= 256


@pytest.mark.parametrize("block_s", [1.0, 1.04, 7.0])
def test_blocks_do_not_show(weights, expected, block_s):
    assert agreement(codes(excerpt(1), weights, block_s=block_s), expected) >= AGREE


@pytest.mark.parametrize(("piece", "chunk"), [(8, 16), (1500, 1500), (33, 500)])
def test_pieces_and_chunks_do_not_show(weights, expected, monkeypatch, piece, chunk):
    monkeypatch.setattr(encodec_model, "PIECE_FRAMES", piece)
    monkeypatch.setattr(encodec_model, "CHUNK_FRAMES", chunk)
    assert agreement(codes(excerpt(1), weights), expected) >= AGREE


LENGTHS = [
    1,
    2,
    3,
    5,
    7,
    8,
    41,
    161,
    319,
    320,
    321,
    639,
    641,
    1920,
    2240,
    2241,
    23_999,
    24_000,
    24_001,
    24_007,
    48_327,
]


@pytest.mark.parametrize("samples", LENGTHS)
def test_every_length_is_padded_as_the_package_pads(weights, package_codes, samples):
    sound = excerpt(1)[5000 : 5000 + samples]
    ours = codes(sound, weights, block_s=1.0)
    assert len(ours) == -(-samples // 320)
    np.testing.assert_array_equal(ours, package_codes(sound))


def test_no_samples_give_no_frames(weights):
    assert list(Encodec().open(weights, "cpu", 1)(ArrayWave(np.zeros(0, np.float32)))) == []


def test_fewer_codebooks_are_the_first_ones(weights_file, expected):
    teacher = Encodec(codebooks=2)
    ours = codes(excerpt(1)[:72_000], teacher.locate(str(weights_file)), codebooks=2)
    assert agreement(ours, expected[:225, :2].astype(np.uint16)) >= AGREE


def test_a_recording_knows_nothing_of_the_one_before(weights):
    label = Encodec(block_s=1.0).open(weights, "cpu", 1)
    first = np.concatenate(list(label(ArrayWave(excerpt(1)[:60_000]))))
    next(label(ArrayWave(excerpt(2))))  # left in the middle
    again = np.concatenate(list(label(ArrayWave(excerpt(1)[:60_000]))))
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("samples", [100, 24_000])
def test_silence_has_the_packages_codes(weights, package_codes, samples):
    silence = np.zeros(samples, np.float32)
    np.testing.assert_array_equal(codes(silence, weights), package_codes(silence))


def test_the_number_of_threads_does_not_show(weights, expected):
    sound = excerpt(1)[: 24_000 * 8]
    try:
        teacher = Encodec().open(weights, "cpu", 2)
        assert agreement(np.concatenate(list(teacher(ArrayWave(sound)))), expected[:600]) >= AGREE
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda x: np.where(np.arange(len(x)) == 30_000, np.nan, x).astype(np.float32),
            "NaN or infinity first at sample 30000",
        ),
        (lambda x: x.astype(np.float64), "dtype float64: teachers take float32"),
        (lambda x: np.stack([x, x], 1), r"shape \(24000, 2\): teachers take one channel"),
    ],
)
def test_what_cannot_be_heard_is_refused_by_name(weights, damage, reason):
    with pytest.raises(ValueError, match=reason):
        codes(damage(excerpt(1)[:48_000]), weights, block_s=1.0)


# Half precision, where it is chosen


@pytest.mark.parametrize(("dtype", "first", "last"), [("bf16", 0.5, 0.05), ("fp16", 0.9, 0.5)])
def test_half_precision_says_how_many_tokens_it_changes(weights, expected, dtype, first, last):
    label = Encodec(dtype=dtype, block_s=5.0).open(weights, "cpu", 1)
    label.restart_facts()
    sound = excerpt(1)[: 24_000 * 6]
    ours = np.concatenate(list(label(ArrayWave(sound))))
    stated = label.facts()
    assert stated["dtype"] == dtype and stated["agreement_with_fp32"]["frames"] == 300
    shares = stated["agreement_with_fp32"]["by_codebook"]
    np.testing.assert_allclose(shares, (ours[:300] == expected[:300]).mean(0), atol=0.01)
    assert first < shares[0] <= 1 and last < shares[-1] < 1
    label.restart_facts()
    assert label.facts()["agreement_with_fp32"]["frames"] == 0


def test_fp32_states_nothing_and_keeps_its_columns_name(weights):
    assert Encodec().open(weights, "cpu", 1).facts() == {}
    assert "dtype" not in teacher_recipe(Recipe(codes=Encodec())) and "dtype" in teacher_recipe(
        Recipe(codes=Encodec(dtype="bf16"))
    )


# What the tests above would notice


def test_a_shift_by_one_frame_would_be_noticed(weights, expected):
    assert agreement(codes(excerpt(1)[320:], weights)[:1400], expected[:1400]) < 0.9
    assert agreement(expected[1:], expected[:-1]) < 0.9


def test_a_cold_lstm_would_be_noticed(weights, expected, monkeypatch):
    warm = encodec_model.Lstm.run
    monkeypatch.setattr(encodec_model.Lstm, "run", lambda self, x: (self.restart(), warm(self, x))[1])
    assert agreement(codes(excerpt(1), weights, block_s=1.0), expected) < AGREE


@pytest.mark.parametrize("wrong", ["forgets its tail", "zeros at the start", "zeros at the end"])
def test_wrong_padding_would_be_noticed(weights, package_codes, monkeypatch, wrong):
    right = encodec_model.EncodecConvolution.pad

    def pad(self, whole, length):
        start, end = self.tail is None, self.left + length
        if wrong == "forgets its tail":
            self.tail = None
        right(self, whole, length)
        if wrong == "zeros at the start" and start:
            whole[: self.left] = 0
        if wrong == "zeros at the end":
            whole[end:] = 0

    sound = excerpt(1)[: 3 * 24_000 + 7]
    reference = package_codes(sound)
    assert agreement(codes(sound, weights, block_s=1.0), reference) >= AGREE
    monkeypatch.setattr(encodec_model.EncodecConvolution, "pad", pad)
    assert agreement(codes(sound, weights, block_s=1.0), reference) < AGREE


@pytest.mark.parametrize(("forget_bias", "feedback", "passes"), [(0.0, 1.0, 1), (20.0, 0.1, 3)])
def test_chunks_side_by_side_are_one_uninterrupted_lstm(monkeypatch, forget_bias, feedback, passes):
    """Also with a memory that never fades, for which every guess is wrong and is run again."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.nn.LSTM(512, 512, 1)
    reruns, rerun = [], encodec_model.Lstm._rerun
    monkeypatch.setattr(encodec_model.Lstm, "_rerun", lambda *args: (reruns.append(1), rerun(*args))[1])
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) / 512**0.5)
        reference.bias_ih_l0[512:1024] += forget_bias
        reference.weight_hh_l0 *= feedback  # at full feedback a memory that never fades is chaotic
        frames = torch.randn(1000, 512, generator=generator)
        weights = {f"lstm.{name}": value.clone() for name, value in reference.state_dict().items()}
        ours = encodec_model.Lstm(weights, 0)
        got = torch.cat([ours.run(frames[:900]), ours.run(frames[900:])])
        wanted, (_, cell) = reference.double()(frames.double())
    assert len(reruns) == passes  # of the four chunks in 900 frames
    torch.testing.assert_close(got.double(), wanted, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(ours.state[1].double(), cell[0], atol=1e-4, rtol=1e-4)


# The recipe


@pytest.mark.parametrize(
    "wrong", [{"codebooks": 0}, {"codebooks": 33}, {"codebook_size": 512}, {"block_s": 0.1}, {"dtype": "fp8"}]
)
def test_a_recipe_that_cannot_be_is_refused(wrong):
    with pytest.raises(
        ValueError, match=f"Encodec.{next(iter(wrong))} is {next(iter(wrong.values()))!r}: expected "
    ):
        Encodec(**wrong)
