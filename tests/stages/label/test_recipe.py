"""Names of columns stay; a teacher of one's own is a class anywhere on PYTHONPATH."""

import dataclasses

import pytest

from stages.label import recipe
from stages.shards.record import recipe8
from tests.conftest import ROOT

CONFIGS = ROOT / "configs" / "labels"
NAMES = {  # of columns and fits, as commit e6828d6 gave them: codes, and what a fit depends on
    "best_rq": ("d737662a", "edcbd0a9"),
    "encodec": ("f6a4e049", "552c3b79"),
    "kmeans": ("492ba72b", "ea026885"),
    "mel_rvq": ("8688d3f0", "18555755"),
}


@pytest.mark.parametrize("name", NAMES)
def test_columns_keep_their_names(name):
    own = recipe.load(str(CONFIGS / f"{name}.yaml")).recipe
    assert (
        recipe8(recipe.audio_recipe(own)) == "fb6f524a"
        and recipe8(recipe.cqt_recipe(own, "audio8")) == "170ae9e6"
    )
    assert recipe8(recipe.codes_recipe(own, "audio8", "x")) == NAMES[name][0]
    assert recipe8(recipe.fit_recipe(own, "audio8")) == NAMES[name][1]


OWN = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Loudness:
    name: ClassVar[str] = "loudness"
    version: ClassVar[int] = 1
    codebooks: ClassVar[int] = 1
    codebook_size: ClassVar[int] = 64
    step_db: float = 2.0
    bands: tuple[int, ...] = (1,)
    count: int = 3
    label: str = "a"

    def __post_init__(self):
        if self.step_db <= 0:
            raise ValueError(f"step_db is {self.step_db}: expected above 0")
        if self.label == "z":
            raise ValueError("there is no z")

    def open(self, weights, device, threads): ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Loads a recipe with a teacher that knows nothing of this package."""
    (tmp_path / "ours_of_config.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def read(*overrides):
        text = "recipe: {codes: {teacher: 'ours_of_config:Loudness'}}\nrun: {audio: [a]}\n"
        (tmp_path / "c.yaml").write_text(text)
        overrides = [f"recipe.codes.{override}" for override in overrides]
        return recipe.load(str(tmp_path / "c.yaml"), overrides).recipe.codes

    return read


def test_a_teacher_of_ones_own_is_made_of_its_own_fields(own):
    assert dataclasses.asdict(own()) == {"step_db": 2.0, "bands": (1,), "count": 3, "label": "a"}
    made = own("step_db=1", "bands=[1, 2]", "count=4", "label=b")
    assert dataclasses.asdict(made) == {"step_db": 1.0, "bands": (1, 2), "count": 4, "label": "b"}
    assert isinstance(made.step_db, float) and own("step_db=1e-1").step_db == 0.1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("step_dbs=1", "recipe.codes.step_dbs is no known key: did you mean 'step_db'?"),
        ("step_db=long", "recipe.codes.step_db is 'long': expected a number"),
        ("step_db=true", "recipe.codes.step_db is True: expected a number"),
        ("step_db=.inf", "recipe.codes.step_db is inf: expected a finite number"),
        ("step_db=0", "recipe.codes.step_db is 0.0: expected above 0"),
        ("count=true", "recipe.codes.count is True: expected a number"),
        ("count='4'", "recipe.codes.count is '4': expected a number"),
        ("label=5", "recipe.codes.label is 5 (int): expected text, in quotes"),
        ("label=z", "recipe.codes: there is no z"),
    ],
)
def test_its_mistakes_are_named_too(own, override, said):
    with pytest.raises(ValueError) as error:
        own(override)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"hop_samples": 100},
            "Recipe.codes.hop_samples is 100: of teacher loudness; expected a multiple of 320",
        ),
        ({"hop_samples": 0}, "Recipe.codes.hop_samples is 0"),
        (
            {"codebook_size": 1},
            "Recipe.codes.codebook_size is 1: of teacher loudness; expected 2 to 65536, codes are",
        ),
        ({"codebook_size": 65_537}, "Recipe.codes.codebook_size is 65537"),
    ],
)
def test_what_no_column_can_hold_is_refused(own, facts, said):
    teacher = type(own())
    with pytest.raises(ValueError) as error:
        recipe.Recipe(codes=type("Own", (teacher,), facts)())
    assert str(error.value).startswith(said)
    for facts in ({"hop_samples": 640}, {"codebook_size": 2}, {"codebook_size": 65_536}):
        assert recipe.Recipe(codes=type("Own", (teacher,), facts)())
