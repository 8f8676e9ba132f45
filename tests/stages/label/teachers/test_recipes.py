"""What holds for the recipe of every mel teacher, and for the weights of those that are fitted."""

import subprocess
import sys

import numpy as np
import pytest

from stages.label.teachers.kmeans import KMeans
from stages.label.teachers.mel_rvq import MelRvq
from tests.conftest import ROOT
from tests.excerpt import ArrayWave, excerpt
from tests.stages.label.teachers.labels import labels, quiet

FITTED = (
    KMeans(codebook_size=48, steps=20, batch=512, fit_minutes=1.0),
    MelRvq(codebooks=2, codebook_size=48, dim=8, steps=5, batch=512, fit_minutes=1.0),
)


@pytest.mark.parametrize("recipe", ["best_rq BestRq", "kmeans KMeans", "mel_rvq MelRvq", "encodec Encodec"])
def test_reading_a_recipe_imports_nothing_heavy(recipe):
    module, name = recipe.split()
    code = (
        f"import sys; from stages.label.teachers.{module} import {name}; {name}()\n"
        "found = {'torch', 'sklearn', 'encodec'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("teacher", FITTED, ids=lambda teacher: teacher.name)
def test_nan_is_refused_by_name_in_fitting_and_labelling(teacher):
    whole = ArrayWave(excerpt(1, length_s=8.0))
    broken = ArrayWave(whole.sound.copy())
    broken.sound[5000] = np.nan
    weights, _ = teacher.fit([whole], "cpu", 1, quiet)
    with pytest.raises(ValueError, match="NaN or infinity first at sample 5000"):
        labels(teacher, weights, broken)
    with pytest.raises(ValueError, match="recording 1 of 2, samples: NaN"):
        teacher.fit([whole, broken], "cpu", 1, quiet)


@pytest.mark.parametrize("teacher", FITTED, ids=lambda teacher: teacher.name)
def test_too_little_audio_says_what_was_seen_and_what_to_lower(teacher):
    second = ArrayWave(np.zeros(24_000, np.float32))
    with pytest.raises(
        ValueError, match=r"codebook_size: 48 needs at least 192 frames.*1 recordings hold 75 .*at most 18"
    ):
        teacher.fit([second], "cpu", 1, quiet)
    with pytest.raises(ValueError, match="0 recordings hold 0"):
        teacher.fit([], "cpu", 1, quiet)


@pytest.mark.parametrize("teacher", [KMeans, MelRvq], ids=lambda teacher: teacher.name)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codebook_size", 1),
        ("codebook_size", 65537),
        ("codebook_size", True),
        ("mels", 5000),
        ("mels", 1),
        ("n_fft", 300),
        ("n_fft", 2049),
        ("steps", 0),
        ("batch", 0),
        ("seed", -1),
        ("fit_minutes", 0.5),
        ("fit_minutes", float("nan")),
        ("fit_minutes", float("inf")),
    ],
)
def test_impossible_values_are_refused_by_name(teacher, field, value):
    with pytest.raises(ValueError, match=rf"{teacher.__name__}.{field}( is|:) {value}"):
        teacher(**{field: value})


@pytest.mark.parametrize("teacher", [KMeans, MelRvq], ids=lambda teacher: teacher.name)
def test_four_frames_a_code_are_the_fewest_to_fit_on(teacher):
    minutes = 4 * 1024 / 75 / 60
    assert teacher(codebook_size=1024, fit_minutes=minutes + 1e-9).fit_minutes > 0.9
    with pytest.raises(
        ValueError, match=r"fit_minutes is 0\.9: too little for codebook_size 1024; .* at least 0\.91"
    ):
        teacher(codebook_size=1024, fit_minutes=0.9)
