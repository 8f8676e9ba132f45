import pytest

from stages.label import recipe
from tests.conftest import ROOT

CONFIGS = ROOT / "configs" / "labels"
GOOD = "recipe: {codes: {teacher: mel_rvq}}\nrun: {audio: [a]}\n"


def load(tmp_path, text=GOOD, *overrides):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return recipe.load(str(path), list(overrides))


def test_defaults_and_overrides(tmp_path):
    config = load(
        tmp_path,
        GOOD,
        "run.out=data/x",
        "recipe.codes.codebooks=4",
        "recipe.plan.shard_minutes=2",
        "recipe.cqt=null",
    )
    assert config.run.audio == ("a",) and config.run.out == "data/x"
    assert config.recipe.codes.codebooks == 4 and config.recipe.cqt is None
    assert config.recipe.plan.shard_minutes == 2.0 and isinstance(config.recipe.plan.shard_minutes, float)


@pytest.mark.parametrize(
    ("text", "value"), [("6e1", 60), ("600e-1", 60), ("1.5E2", 150), ("1.5e+2", 150), ("60.", 60)]
)
def test_numbers_with_an_exponent_are_numbers(tmp_path, text, value):
    """YAML 1.1 reads some of them as text."""
    assert load(tmp_path, GOOD, f"recipe.plan.shard_minutes={text}").recipe.plan.shard_minutes == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.plan.shard_minute=2", "recipe.plan.shard_minute: did you mean 'shard_minutes'"),
        ("recipe.codes.codebook=2", "recipe.codes.codebook: did you mean 'codebooks'"),
        ("recipe.codes.teacher=encodek", "did you mean 'encodec'"),
        ("recipe.codes.teacher=os:Nothing", "cannot be imported"),
        ("rcipe.plan=2", "did you mean 'recipe'"),
        ("recipe.plan.shard_minutes=long", "expected a number"),
        ("recipe.plan.shard_minutes=0", "recipe.plan.shard_minutes is 0.0"),
        ("recipe.plan.shard_minutes=.nan", "finite"),
        ("recipe.threads=true", "expected a whole number"),
        ("recipe.threads=1.5", "expected a whole number"),
        ("recipe.decode.segment_s=0.001", "segment_s"),
        ("recipe.decode.format=mp3", "format"),
        ("run.audio=[]", "run.audio"),
        ("run.pools.codes.cpu=1", "did you mean 'cpus'"),
        ("run.out", "expected FIELD=VALUE"),
        ("run.out.x.y=1", "it has no field"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, override, said):
    with pytest.raises(ValueError) as error:
        load(tmp_path, "recipe: {codes: {teacher: mel_rvq}}\nrun: {audio: [a], out: o}\n", override)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: {}\nrecipe: {}\n", "stands twice"),
        ("a: [", "not valid YAML"),
        ("[]", "expected keys"),
        ("recipe: {codes: mel_rvq}\nrun: {audio: [a]}", "expected a mapping"),
        ("recipe: {}\n", "run is missing"),
        ("recipe: {codes: {codebooks: 4}}\nrun: {audio: [a]}", "recipe.codes.teacher"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, said):
    with pytest.raises(ValueError) as error:
        load(tmp_path, text)
    assert said in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.yaml cannot be read"):
        recipe.load(str(tmp_path / "none.yaml"))


SHIPPED = {  # teacher, codebooks, codes of one
    "best_rq": ("best_rq", 1, 8192),
    "encodec": ("encodec", 8, 1024),  # MERT's: 6 kbps
    "kmeans": ("kmeans", 1, 1024),
    "mel_rvq": ("mel_rvq", 8, 1024),
    "quickstart": ("mel_rvq", 4, 16),
}


def test_every_file_that_ships_has_a_row():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_names_the_labels(name):
    config = recipe.load(str(CONFIGS / f"{name}.yaml"))
    codes, cqt = config.recipe.codes, config.recipe.cqt
    assert (codes.name, codes.codebooks, codes.codebook_size) == SHIPPED[name]
    assert (cqt.bins, cqt.bins_per_octave, cqt.fmin_hz) == (336, 48, 32.7)
    assert config.run.audio == (("examples/quickstart",) if name == "quickstart" else ("music",))
    assert config.run.out == f"data/{name}"
    assert config.recipe.plan.shard_minutes == (1 if name == "quickstart" else 60)
