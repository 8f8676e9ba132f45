"""Names of files for people and for libraries that take only UTF-8."""

import os

import pytest

from stages.shards import names
from stages.shards.names import printable, utf8_alias


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain é 音", "plain é 音"), ("a\nb\tc", r"a\nb\tc"), ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        (os.fsdecode(b"m\xfcsic"), r"m\xfcsic"), ("right\u202eto left", r"right\u202eto left"), ("", ""),
    ],
)  # fmt: skip
def test_control_characters_and_odd_bytes_are_written_out(text, shown):
    assert printable(text) == shown and printable(shown) == shown


class TestAlias:
    def test_a_path_in_utf8_is_its_own(self, tmp_path):
        assert utf8_alias(f"{tmp_path}/é") == f"{tmp_path}/é"

    def test_any_other_is_reached_by_a_link(self, tmp_path, monkeypatch):
        monkeypatch.setattr(names.scratch, "folder", lambda: tmp_path)
        place = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"m\xfcsic"))
        alias = utf8_alias(place)
        alias.encode()
        os.mkdir(place)
        (tmp_path / alias / "x").touch()
        assert os.listdir(place) == ["x"] and utf8_alias(place) == alias
