from pathlib import Path

import pytest

from stages.evaluate.probe.sets.folder import Folder, hashed, table, task
from stages.evaluate.probe.task import Item
from tests.stages.evaluate.probe.sets.layout import audio, text

SPLIT = [
    Item(name, None, None, name, side, "x")
    for name, side in zip("abc", ("train", "valid", "test"), strict=True)
]


def test_audio_is_found_at_any_depth_and_in_any_format_wav_first(tmp_path):
    audio(tmp_path, "a.mp3", "one/a.wav", "one/deeper/b.AU", "c.flac")
    text(tmp_path, "c.txt", "no audio")
    assert Folder(tmp_path).audio == {"a": "one/a.wav", "b": "one/deeper/b.AU", "c": "c.flac"}


def test_hidden_and_empty_files_are_no_audio(tmp_path):
    audio(tmp_path, ".hidden/a.wav", "._b.wav")
    text(tmp_path, "c.wav", "")
    assert Folder(tmp_path).audio == {}


def test_links_are_followed_once(tmp_path):
    audio(tmp_path, "elsewhere/a.wav")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "set")
    assert Folder(tmp_path / "set").files == [Path("link/a.wav")]


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=f"the set's folder is '{tmp_path}/absent': expected an existing folder"
    ):
        Folder(tmp_path / "absent")


def test_a_file_is_taken_from_the_folder_it_belongs_to(tmp_path):
    text(tmp_path, "a/list.csv", "")
    text(tmp_path, "split-0/list.csv", "")
    folder = Folder(tmp_path)
    assert folder.named("list.csv", "get it", parent="split-0") == tmp_path / "split-0/list.csv"
    assert folder.named("list.csv", "get it") == tmp_path / "a/list.csv"
    with pytest.raises(ValueError, match=f"{tmp_path} holds no other.csv: get it"):
        folder.named("other.csv", "get it")


def test_a_task_counts_what_is_missing(tmp_path):
    audio(tmp_path, "a.wav", "b.wav", "c.wav")
    assert task(Folder(tmp_path), "t", "class", SPLIT, "get it").note == ""
    more = [*SPLIT, Item("d", None, None, "d", "test", "x"), Item("d", 1.0, 2.0, "d", "test", "y")]
    found = task(Folder(tmp_path), "t", "class", more, "get it", "and more")
    assert found.note == "1 of 4 recordings without audio, for example d; and more"
    assert [(item.audio, item.fold) for item in found.items] == [
        ("a.wav", "train"),
        ("b.wav", "valid"),
        ("c.wav", "test"),
    ]


def test_a_task_without_a_side_is_refused(tmp_path):
    audio(tmp_path, "a.wav", "b.wav")
    with pytest.raises(ValueError, match=f"t: no audio of test lies below {tmp_path}: get it"):
        task(Folder(tmp_path), "t", "class", SPLIT, "get it")
    with pytest.raises(ValueError, match=f"t: no audio lies below {tmp_path}: get it"):
        task(Folder(tmp_path), "t", "class", SPLIT[2:], "get it")


def test_a_table_is_stripped_and_its_columns_are_checked(tmp_path):
    path = text(tmp_path, "t.csv", "\ufeffid, name\n1, x y \n\n2,z\n")
    assert table(path, ("id", "name")) == [{"id": "1", "name": "x y"}, {"id": "2", "name": "z"}]
    with pytest.raises(ValueError, match="t.csv has no column 'tag': expected the file as it was published"):
        table(path, ("id", "tag"))
    with pytest.raises(ValueError, match=r"t.csv row 3 is \['2'\]: a column is missing"):
        table(text(tmp_path, "t.csv", "id,name\n1,x\n2\n"), ("id", "name"))


def test_the_hash_is_that_of_jukemir():
    assert [hashed("moby", 10), hashed("moby", 116)] == [3, 49]  # by sha1sum
