"""Mel-RVQ: fitting repeats to the byte, levels earn their place, labelling shows no seam."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.label.teachers.mel_rvq import MelRvq
from tests.excerpt import ArrayWave, excerpt
from tests.stages.label.teachers.labels import labels, quiet

SMALL = MelRvq(codebooks=3, codebook_size=64, dim=8, steps=60, batch=512, fit_minutes=1.0)


@pytest.fixture(scope="module")
def music() -> list[ArrayWave]:
    forty_s = excerpt(2, start_s=0.0, length_s=40.0)
    return [ArrayWave(forty_s[: 24_000 * 25]), ArrayWave(forty_s[24_000 * 25 :])]


@pytest.fixture(scope="module")
def fitted(music) -> tuple[bytes, dict]:
    return SMALL.fit(music, "cpu", 1, quiet)


# Fitting


def test_the_same_waves_give_the_same_bytes_and_another_seed_others(music, fitted):
    again, _ = SMALL.fit(music, "cpu", 1, quiet)
    assert again == fitted[0]
    assert replace(SMALL, seed=1).fit(music, "cpu", 1, quiet)[0] != fitted[0]


def test_fitting_leaves_torch_as_it_was(music):
    import torch

    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    replace(SMALL, steps=2, codebooks=1).fit(music, "cpu", 1, quiet)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_num_threads() == threads


def test_heldout_error_falls_with_each_level_and_beats_a_single_level(music, fitted):
    errors = [level["heldout_error"] for level in fitted[1]["levels"]]
    assert 1 > errors[0] > errors[1] > errors[2] > 0
    _, single = replace(SMALL, codebooks=1).fit(music, "cpu", 1, quiet)
    assert errors[-1] < 0.85 * single["levels"][0]["heldout_error"]


def test_the_report_tells_the_heldout_error_on_the_way(fitted):
    history, levels = fitted[1]["history"], fitted[1]["levels"]
    assert len(history) == 10 and history[-1]["step"] == SMALL.steps
    assert all(len(row["heldout_error"]) == len(levels) for row in history)
    assert all(1 > a > b > 0 for row in history for a, b in pairwise(row["heldout_error"]))
    assert history[-1]["heldout_error"][-1] == pytest.approx(levels[-1]["heldout_error"], rel=0.2)


def test_the_report_counts_what_labelling_gives(music, fitted):
    weights, report = fitted
    assert report["fit_frames"] + report["heldout_frames"] == sum(wave.samples // 320 for wave in music)
    assert report["heldout_frames"] == pytest.approx(0.05 * report["fit_frames"], rel=0.3)
    # held-out frames are 5 % of it
    codes = np.concatenate([labels(SMALL, weights, wave) for wave in music])
    for k, level in enumerate(report["levels"]):
        share = np.bincount(codes[:, k], minlength=64) / len(codes)
        share = share[share > 0]
        assert level["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=0.05)
        assert level["used"] == 64


def test_perplexity_is_the_number_of_equally_frequent_codes():
    import torch

    from stages.label.teachers.mel_rvq_fit import perplexity

    assert perplexity(torch.tensor([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([0, 9])) == pytest.approx(1)


def test_dead_codes_move_onto_frames_and_lose_their_momentum():
    import torch

    from stages.label.teachers.mel_rvq_fit import _revive

    codebook = torch.zeros(1, 4, 2, requires_grad=True)
    adam = torch.optim.Adam([codebook], lr=0.1)
    codebook.sum().backward()
    adam.step()
    z_BE = torch.arange(20.0).reshape(10, 2) + 5
    dead = torch.tensor([[False, True, False, True]])
    _revive(codebook, adam, dead, [z_BE], torch.Generator().manual_seed(0))
    assert torch.allclose(codebook[0, ::2], torch.tensor(-0.1), atol=1e-4)
    assert all((z_BE == code).all(1).any() for code in codebook[0, 1::2])
    assert (
        not adam.state[codebook]["exp_avg"][0, 1::2].any() and adam.state[codebook]["exp_avg"][0, ::2].all()
    )


def test_codes_that_start_far_from_all_data_end_used():
    import torch

    from stages.label.teachers.mel_rvq_fit import _kmeans_round, _nearest

    z = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([0, 0, 0, 9.0])
    codes = torch.cat([z[:8], -z[:24] * 100])
    for _ in range(4):
        codes = _kmeans_round(z, codes)
    assert len(_nearest(z, codes)[0].unique()) == 32


def test_long_corpora_are_sampled_in_proportion_and_within_the_budget():
    import torch

    from stages.label.teachers.mel_rvq_frames import draw_stretches

    lengths = np.array([0, 90_000, 10, 30_000, 0, 60_000])
    pieces = draw_stretches(lengths, 18_000, torch.Generator().manual_seed(3))
    taken = np.zeros(6)
    for wave, first, count, _ in pieces:
        assert 0 <= first < first + count <= lengths[wave]
        taken[wave] += count
    assert taken.sum() == 18_000 and np.allclose(taken / 18_000, lengths / lengths.sum(), atol=0.02)
    assert sum(count for *_, count, held in pieces if held) == pytest.approx(900, abs=150)
    spans = sorted((wave, first, first + count) for wave, first, count, _ in pieces)
    assert all(a[0] < b[0] or a[2] <= b[1] for a, b in zip(spans, spans[1:], strict=False))  # none twice


def test_progress_names_its_phase_and_what_is_left(music):
    seen: list[dict] = []
    replace(SMALL, steps=5, codebooks=1).fit(music, "cpu", 1, seen.append)
    assert [row["phase"] for row in seen if row["step"] == row["steps"]] == [
        "read",
        "init",
        "train",
        "settle",
    ]
    assert all({"step", "steps", "loss", "eta_s"} <= row.keys() for row in seen)


def test_silence_fits_and_labels_without_nan():
    silence = ArrayWave(np.zeros(24_000 * 8, np.float32))
    tiny = replace(SMALL, codebook_size=32, steps=5, stack=3)
    weights, report = tiny.fit([silence], "cpu", 1, quiet)
    assert all(np.isfinite(value) for level in report["levels"] for value in level.values())
    assert report["levels"][0]["perplexity"] == pytest.approx(1)
    assert len(labels(tiny, weights, silence)) == 600


# Labelling


def test_blocks_show_no_seam(music, fitted):
    whole = labels(SMALL, fitted[0], music[0])
    assert whole.dtype == np.uint16 and whole.shape == (25 * 75, 3)
    assert np.array_equal(labels(SMALL, fitted[0], music[0], block_frames=256), whole)
    assert (labels(SMALL, fitted[0], music[0], block_frames=101) == whole).mean() >= 0.9999


@pytest.mark.parametrize("stack", [2, 3])
def test_stacked_frames_show_no_seam_either(music, stack):
    teacher = replace(SMALL, stack=stack, steps=5)
    weights, _ = teacher.fit(music, "cpu", 1, quiet)
    whole = labels(teacher, weights, music[1])
    assert np.array_equal(labels(teacher, weights, music[1], block_frames=256), whole)
    assert (labels(teacher, weights, music[1], block_frames=77) == whole).mean() >= 0.9999


def test_labels_are_the_nearest_directions_level_by_level(music, fitted):
    import torch
    from safetensors.numpy import load

    from stages.signal.mel import LogMel

    w = {key: value.astype(np.float64) for key, value in load(fitted[0]).items()}
    codes = labels(SMALL, fitted[0], music[0])[:200]
    mel_TF = LogMel(24_000, 320)(torch.tensor(music[0].sound)[None], 0, 200)[0].double().numpy()
    for frame, row in zip((mel_TF - w["mean_db"]) / w["std_db"], codes, strict=True):
        for k, code in enumerate(row):
            z = w["in_w"][k] @ frame + w["in_b"][k]
            cosine = [z @ c / np.linalg.norm(z) / np.linalg.norm(c) for c in w["codebook"][k]]
            assert cosine[code] > max(cosine) - 1e-5
            frame = frame - (w["out_w"][k] @ w["codebook"][k][code] + w["out_b"][k])


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(0, 1000))
def test_every_whole_hop_has_codes(fitted, samples):
    codes = labels(SMALL, fitted[0], ArrayWave(np.full(samples, 0.1, np.float32)))
    assert codes.shape == (samples // 320, 3) and (codes < 64).all()


# Weights


def test_weights_carry_one_deterministic_note_and_nothing_else(fitted):
    header = int.from_bytes(fitted[0][:8], "little")
    assert fitted[0][8 : 8 + header].count(b"__metadata__") == 1
    assert b'"mel_rvq"' in fitted[0][: 8 + header]


@pytest.mark.parametrize(
    "recipe, message",
    [
        (replace(SMALL, codebooks=2), r'"codebooks": 3.*"codebooks": 2'),
        (replace(SMALL, n_fft=1024, mels=64), r'"n_fft": 2048.*"n_fft": 1024'),
    ],
)
def test_weights_of_another_recipe_are_refused_with_both_values(fitted, recipe, message):
    with pytest.raises(ValueError, match=message):
        recipe.open(fitted[0], "cpu", 1)


def test_damaged_weights_are_refused(fitted):
    from safetensors.numpy import load, save

    whole, note = fitted[0], {"mel_rvq": SMALL._identity()}
    with pytest.raises(ValueError, match=rf"{len(whole) - 9} bytes of {len(whole)} announced"):
        SMALL.open(whole[:-9], "cpu", 1)
    for bad in (b"", b"no safetensors at all", whole[:100]):
        with pytest.raises(ValueError, match=f"{len(bad)} bytes"):
            SMALL.open(bad, "cpu", 1)
    with pytest.raises(ValueError, match="no weights"):
        SMALL.open(None, "cpu", 1)
    tensors = load(whole)
    with pytest.raises(ValueError, match="tensor out_b is missing"):
        SMALL.open(save({k: v for k, v in tensors.items() if k != "out_b"}, note), "cpu", 1)
    with pytest.raises(
        ValueError, match=r"in_w is \('float32', \(3, 7, 128\)\), expected \('float32', \(3, 8, 128\)\)"
    ):
        SMALL.open(save(tensors | {"in_w": tensors["in_w"][:, :7].copy()}, note), "cpu", 1)
    with pytest.raises(ValueError, match="in_b holds NaN"):
        SMALL.open(save(tensors | {"in_b": tensors["in_b"] * np.nan}, note), "cpu", 1)


# The recipe


@pytest.mark.parametrize("field, value", [("codebooks", 0), ("dim", 1), ("dim", 129), ("stack", 9)])
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"MelRvq.{field} is {value}: expected "):
        MelRvq(**{field: value})
