"""pyproject.toml has ranges; requirements.txt has the exact versions, and names no package registry."""

import re
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_floors import FILES, ROOT, tops

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "threadpoolctl": "scikit-learn"}
MODULES |= {"pydantic_core": "pydantic", "torchaudio": "encodec", "botocore": "boto3"}
BY_CHOICE = {"wandb", "transformers"}  # named in a message or in text for the user
OWN = {"pipeline", "stages", "cluster"}


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [line.partition("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in found}


def ranges() -> list[Requirement]:
    return [Requirement(text) for part in (PROJECT["dependencies"], *EXTRAS.values()) for text in part]


def test_every_range_holds_its_pin():
    pinned = pins()
    for wanted in ranges():
        assert wanted.name == "overtone" or pinned[canonicalize_name(wanted.name)] in wanted.specifier, wanted
        assert all(part.operator == ">=" for part in wanted.specifier), (
            f"{wanted}: pins are in requirements.txt"
        )


def test_the_command_that_made_the_pins_is_at_their_head_and_no_host_is_named():
    text = (ROOT / "requirements.txt").read_text()
    assert "uv pip compile pyproject.toml --all-extras" in text.splitlines()[1]
    assert "torchaudio" not in pins() and not re.search("://|index-url|find-links|nvidia", text)


def test_every_package_that_is_imported_is_declared():
    declared = {canonicalize_name(r.name) for r in ranges()} - {canonicalize_name(t) for t in EXTRAS["test"]}
    imported = set().union(*map(tops, FILES)) - OWN - BY_CHOICE - set(sys.stdlib_module_names)
    assert {canonicalize_name(MODULES.get(name, name)) for name in imported} <= declared


def test_all_is_everything_that_a_user_runs():
    assert EXTRAS["all"] == ["overtone[train,report,probe]"]
    assert set(EXTRAS) == {"train", "report", "probe", "all", "test"}
