"""What `make schema` writes is up to date, describes every key, and judges files as the loader does."""

import json

import jsonschema
import pytest
import yaml

from configs.schema import __main__ as schema
from tests.conftest import ROOT

LABELS, PRETRAIN = (json.loads((ROOT / f"configs/schema/{kind}.json").read_text()) for kind in schema.KINDS)
SHIPPED = [path for kind in schema.KINDS for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))]


@pytest.mark.parametrize("path", schema.files(), ids=lambda path: path.name)
def test_the_files_are_those_of_today(path):
    assert path.read_text() == schema.files()[path], f"run `make schema`: {path} is out of date"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_names_its_schema_and_fits_it(path):
    first, text = path.read_text().split("\n", 1)
    named = path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert named.resolve() == ROOT / "configs/schema" / f"{path.parent.name}.json"
    jsonschema.validate(yaml.safe_load(text), json.loads(named.read_text()))


@pytest.mark.parametrize("whole", [LABELS, PRETRAIN], ids=schema.KINDS)
def test_every_key_is_described(whole):
    for name, part in whole["$defs"].items():
        assert part["additionalProperties"] is False and part["description"], name
        for key, field in part["properties"].items():
            section = "$ref" in json.dumps(field)
            assert section or key == "teacher" or field["description"], f"{name}.{key} has no comment"
            assert not {"gt", "ge", "lt", "le", "title"} & set(field), f"{name}.{key}"


@pytest.mark.parametrize(
    ("whole", "data", "fits"),
    [
        (LABELS, {"recipe": {}, "run": {"audio": "music"}}, True),
        (LABELS, {"recipe": {}, "run": {"audio": ["a", "b"]}}, True),
        (LABELS, {"recipe": {}, "run": {"audio": []}}, False),
        (LABELS, {"recipe": {}}, False),
        (LABELS, {"recipe": {"plan": {"shard_minute": 1}}, "run": {"audio": "a"}}, False),
        (LABELS, {"recipe": {"plan": {"shard_minutes": 0}}, "run": {"audio": "a"}}, False),
        (LABELS, {"recipe": {"codes": {"teacher": "mel_rvq", "dim": 8}}, "run": {"audio": "a"}}, True),
        (LABELS, {"recipe": {"codes": {"teacher": "encodec", "dim": 8}}, "run": {"audio": "a"}}, False),
        (LABELS, {"recipe": {"codes": {"teacher": "ours:Own", "any": 8}}, "run": {"audio": "a"}}, True),
        (LABELS, {"recipe": {"codes": {"codebooks": 8}}, "run": {"audio": "a"}}, False),
        (LABELS, {"recipe": {"codes": None, "cqt": None}, "run": {"audio": "a"}}, True),
        (PRETRAIN, {"data": {"corpora": "data/mine", "cqt": "cqt-01234567"}}, True),
        (PRETRAIN, {"data": {"cqt": "cqts"}}, False),
        (PRETRAIN, {"data": {}, "optim": {"lr": 0}}, False),
        (PRETRAIN, {"data": {}, "optim": {"betas": [0.9, 0.99]}}, True),
        (PRETRAIN, {"data": {}, "optim": {"betas": [0.9]}}, False),
        (PRETRAIN, {"data": {}, "optim": {"betas": 0.9}}, False),
        (PRETRAIN, {"data": {}, "guard": {"spike": None}}, True),
        (PRETRAIN, {"data": {}, "guard": {"spike": 1}}, False),
        (PRETRAIN, {"data": {}, "model": {"front_end": "mell"}}, False),
    ],
)
def test_the_schema_takes_and_refuses_what_the_loader_does(whole, data, fits, tmp_path):
    assert jsonschema.Draft202012Validator(whole).is_valid(data) is fits
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    module = schema.recipe if whole is LABELS else schema.pretrain
    if fits and "ours:Own" not in json.dumps(data):
        module.load(str(tmp_path / "c.yaml"))
    elif not fits:
        with pytest.raises(ValueError):
            module.load(str(tmp_path / "c.yaml"))


def test_comments_are_read_above_and_behind_a_field():
    found = schema.comments(schema.pretrain.Optim)
    assert found["lr"] == "at the peak" and found["cqt_head_lr_scale"].startswith(
        "factor of `lr` for the CQT"
    )


def test_the_reference_has_the_default_of_the_place():
    text = (ROOT / "docs/configuration.md").read_text()
    audit = text[text.index("### `run.pools.audit`") :]
    assert "| `cpus` | number, above 0 | `0.5` |" in audit and "| `optim.rate` | `optim.lr` |" in text
