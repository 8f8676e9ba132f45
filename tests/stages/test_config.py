import dataclasses
import pickle
import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from stages import config
from stages.label import recipe
from stages.label.recipe import Plan, Pool, Recipe
from stages.label.teachers.mel_rvq import MelRvq
from stages.pretrain import config as pretrain
from stages.pretrain.data.masking import Masking
from stages.pretrain.run.settings import Optim
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
        (
            "recipe.plan.shard_minute=2",
            "recipe.plan.shard_minute is no known key: did you mean 'shard_minutes'",
        ),
        ("recipe.codes.codebook=2", "recipe.codes.codebook is no known key: did you mean 'codebooks'"),
        ("recipe.codes.teacher=encodek", "did you mean 'encodec'"),
        ("recipe.codes.teacher=os:Nothing", "cannot be imported"),
        ("rcipe.plan=2", "rcipe is no known key: did you mean 'recipe'?"),
        ("recipe.plan.shard_minutes=long", "expected a number"),
        (
            "recipe.plan.shard_minutes=0",
            "recipe.plan.shard_minutes is 0: expected a number, above 0, at most 1440",
        ),
        ("recipe.plan.shard_minutes=.nan", "finite"),
        ("recipe.threads=true", "expected a whole number"),
        ("recipe.threads=1.5", "expected a whole number"),
        ("recipe.decode.segment_s=0.001", "segment_s"),
        ("recipe.decode.format=mp3", "format"),
        ("run.audio=[]", "run.audio"),
        ("recipe.threads=0", "recipe.threads is 0: expected a whole number, 1 to 64"),
        ("recipe.threads=65", "recipe.threads is 65: expected a whole number, 1 to 64"),
        ("recipe.threads=null", "recipe.threads is empty: expected a whole number"),
        ("recipe.plan.shard_minutes=.inf", "shard_minutes is inf: expected a finite number"),
        ("recipe.plan.validation_share=1", "validation_share is 1: expected a number, 0 or more, below 1"),
        ("recipe.plan={1: 2}", "recipe.plan.1 is no known key: expected one of shard_minutes, valid"),
        ("recipe.plan=7", "recipe.plan is 7: expected a mapping"),
        ("recipe.decode.rate_hz=44100", "rate_hz is 44100: expected 24000; every label is defined at it"),
        ("recipe.codes.codebooks=65", "recipe.codes.codebooks is 65: expected a whole number, 1 to 64"),
        ("recipe.codes.n_fft=2049", "n_fft is 2049: expected a whole number, 320 to 65536, a multiple of 2"),
        ("recipe.codes.mels=1000", "recipe.codes.mels: 1000 leaves"),
        ("recipe.codes={teacher: mel_rvq, n_fft: 320, mels: 161}", "mels is 161: expected 2 to 160, half of"),
        ("recipe.cqt.bins=3000", "recipe.cqt.bins is 3000: the top bin is at"),
        ("rum={}", "rum is no known key: did you mean 'run'?"),
        ("recipe.codes.dim=129", "recipe.codes.dim is 129: expected 2 to 128, mels times stack"),
        (
            "recipe.codes.teacher=7",
            "recipe.codes.teacher is 7: name one of encodec, mel_rvq, best_rq",
        ),
        (
            "recipe.codes.teacher=pathlib:Path",
            "recipe.codes.teacher is 'pathlib:Path': the class is no dataclass",
        ),
        ("recipe.codes.teacher=zzz", "recipe.codes.teacher is 'zzz': name one of encodec, mel_rvq, best_rq"),
        (
            "recipe.codes={teacher: encodec, codebooks: 33}",
            "codebooks is 33: expected a whole number, 1 to 32",
        ),
        ("run.audio=null", "run.audio[0] is empty"),
        ("run.audio=[a, '']", "run.audio[1] is '': an empty path; is a variable of your command unset?"),
        ("run.out=5", "run.out is 5 (int): expected text, in quotes where YAML would read a number"),
        ("run.out=2020-01-01", "expected text, in quotes where YAML would read a number, a date"),
        (
            "run.pools.codes.cpus=0",
            "run.pools.codes.cpus is 0: expected a number, above 0; fractions such as",
        ),
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
        ("recipe: {}\nrecipe: {}\n", "is written twice"),
        ("a: [", "not valid YAML"),
        ("[]", "expected keys"),
        ("recipe: {codes: mel_rvq}\nrun: {audio: [a]}", "expected a mapping"),
        ("recipe: {}\n", "run is missing: expected a mapping"),
        ("recipe: {}\nrum: {}\n", "rum is no known key: did you mean 'run'?"),
        (
            "recipe: {}\nrun: {out: x}",
            "run.audio is missing: name at least one folder, s3:// prefix or list of files",
        ),
        ("recipe: {codes: {codebooks: 4}}\nrun: {audio: [a]}", "recipe.codes.teacher"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, said):
    with pytest.raises(ValueError) as error:
        load(tmp_path, text)
    assert said in str(error.value)


def test_keys_of_the_files_own_teacher_do_not_fit_another(tmp_path):
    given = "recipe: {codes: {teacher: mel_rvq, n_fft: 4096}}\nrun: {audio: [a]}"
    whole = r"give the whole teacher, for example --set 'recipe.codes=\{teacher: best_rq\}'"
    message = f"^recipe.codes.n_fft is a key of another teacher than best_rq: {whole}"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, given, "recipe.codes.teacher=best_rq")
    assert load(tmp_path, given, "recipe.codes={teacher: best_rq}").recipe.codes.name == "best_rq"


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


def test_a_section_without_keys_has_its_defaults(tmp_path):
    found = load(
        tmp_path, "recipe: {plan: , decode: , codes: , cqt: }\nrun: {audio: [a], pools: {codes: }}\n"
    )
    assert found.recipe.plan == Plan() and found.run.pools.codes == Pool()
    assert found.recipe.codes is None and found.recipe.cqt is None, "which may be left out, and null does"


def test_one_value_is_a_list_of_one(tmp_path):
    assert load(tmp_path, GOOD, "run.audio=b", "run.exclude='*.mp3'").run.audio == ("b",)


def leaves(schema: dict, whole: dict, path: tuple[str, ...] = ()):
    """(path, JSON Schema) of each key that is no section."""
    for key, field in schema["properties"].items():
        choice = field.get("anyOf", [field])[0]
        parts = [part for part in choice.get("oneOf", [choice]) if "$ref" in part]
        for part in parts:
            inner = whole["$defs"][part["$ref"].rpartition("/")[2]]
            teacher = inner["properties"].get("teacher", {}).get("const")
            yield from leaves(inner, whole, (*path, key if teacher is None else f"{key}:{teacher}"))
        if not parts:
            yield (*path, key), choice


WRONG = {
    "integer": ("x", True, 1.5, "1"),
    "number": ("x", True, "1", float("nan"), float("-inf")),
    "boolean": ("yes", 1, 0.0),
    "string": (5, True, ["a"]),
    "array": ({"a": 1}, [None]),
}


@pytest.mark.parametrize("cls", [recipe.Config, pretrain.Config])
def test_every_key_refuses_what_is_of_another_kind(cls):
    whole, seen = TypeAdapter(cls).json_schema(), 0
    start = {"recipe": {}, "run": {"audio": ["a"]}} if cls is recipe.Config else {"data": {}}
    for path, schema in leaves(whole, whole):
        assert not set(schema) & {"gt", "ge", "lt", "le", "minLength"} - {"minLength"}, path
        for value in WRONG[schema["type"]] if path[-1] != "teacher" else ():
            data = {name: dict(section) for name, section in start.items()}
            place = data
            for part in path[:-1]:
                name, _, teacher = part.partition(":")
                place = place.setdefault(name, {"teacher": teacher} if teacher else {})
            place[path[-1]] = value
            where = ".".join(part.partition(":")[0] for part in path)
            with pytest.raises(ValueError) as error:
                config.build(cls, data)
            assert str(error.value).startswith(where) and " is " in str(error.value), (where, value)
            assert "\n" not in str(error.value)
            seen += 1
    assert seen > 100


def test_python_gets_the_same_sentences():
    for wrong, said in (
        (lambda: Optim(lr=-1.0), "Optim.lr is -1.0: expected a number, above 0"),
        (lambda: Optim(0), "Optim.updates is 0: expected a whole number, 1 or more"),
        (lambda: Optim(ir=1.0), "Optim.ir is no known key: did you mean 'lr'?"),
        (lambda: Masking(0.8, 5, 2, 1), "Masking.3 is no known key: expected one of min_spans, prob, span"),
        (lambda: Recipe(codes="mel_rvq"), "Recipe.codes is 'mel_rvq': expected a mapping"),
        (lambda: Recipe(plan=7), "Recipe.plan is 7: expected a mapping"),
        (
            lambda: Recipe(plan={"shard_minutes": 0}),
            "Recipe.plan.shard_minutes is 0: expected a number, above 0",
        ),
        (lambda: dataclasses.replace(Plan(), shard_minutes=0), "Plan.shard_minutes is 0: expected a number"),
        (lambda: recipe.Run(), "Run.audio is missing: name at least one folder"),
    ):
        with pytest.raises(ValueError) as error:
            wrong()
        assert str(error.value).startswith(said) and type(error.value) is ValueError


def test_settings_are_dataclasses_like_any_other():
    own = Recipe(codes=MelRvq(codebooks=2), plan=Plan(shard_minutes=2))
    assert pickle.loads(pickle.dumps(own)) == own and hash(own) == hash(pickle.loads(pickle.dumps(own)))
    assert dataclasses.asdict(own)["plan"] == {"shard_minutes": 2.0, "validation_share": 0.02}
    assert dataclasses.replace(own, threads=2).codes is own.codes
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.threads = 2
    assert [f.default for f in dataclasses.fields(Pool)] == [1.0, 0.0, 2.0, None]


def test_reading_a_configuration_imports_nothing_heavy():
    code = (
        "import sys; from stages.label import recipe; from stages.pretrain import config\n"
        "config.load('configs/pretrain/tiny.yaml'); recipe.load('configs/labels/encodec.yaml')\n"
        "found = {'torch', 'ray', 'deepspeed', 'sklearn'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
