"""Fitted weights in OUT/teachers: found by what they were fitted for, and fitted again when their file is
lost."""

import pytest

from pipeline.labelling import teachers
from stages.label import recipe as recipes
from stages.label.codes import Codes
from stages.label.recipe import Recipe
from stages.label.shard import Job, ShardWorker
from stages.label.teachers.kmeans import KMeans
from stages.shards.record import recipe8
from stages.shards.storage import Storage

RECIPE = Recipe(codes=KMeans(codebook_size=64, fit_minutes=1.0))


@pytest.fixture
def stored(tmp_path) -> tuple[Storage, teachers.Weights]:
    out = Storage(tmp_path)
    about = {"fit_recipe8": recipe8(recipes.fit_recipe(RECIPE, "audio8")), "fit": 0}
    return out, teachers.store(out, "kmeans", b"weights", about)


def test_a_fit_is_found_by_its_recipe_and_audio(stored):
    out, weights = stored
    assert teachers.fitted(out, RECIPE, "audio8") == weights
    assert teachers.fitted(out, RECIPE, "other") is None
    assert teachers.fitted(out, Recipe(codes=KMeans(codebook_size=32, fit_minutes=1.0)), "audio8") is None


def test_a_lost_file_is_fitted_again(stored):
    out, weights = stored
    out.delete(weights.name)
    assert teachers.fitted(out, RECIPE, "audio8") is None


def test_a_damaged_file_is_refused_with_its_path_and_both_checksums(stored):
    out, weights = stored
    out.write(weights.name, b"weight")
    job = Job(Codes(RECIPE.codes), "codes-x", "audio", {}, out.base, weights.name, weights.sha256)
    with pytest.raises(
        ValueError,
        match=rf"{weights.name} has sha256 [0-9a-f]{{12}}…, expected {weights.sha256[:12]}….*restore "
        rf"it from a copy",
    ):
        ShardWorker(job)
