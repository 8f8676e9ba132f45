import pytest

from stages.evaluate.probe.sets import giantsteps
from tests.stages.evaluate.probe.sets.layout import audio, lines, sides, targets, text

MTG, KEY = "giantsteps-mtg-key-dataset-fd7b8c5", "giantsteps-key-dataset-c8cb8aa"
# By sha1sum modulo 116, artist32 is 100 and thus valid, artist175 is 99, artist2 to artist6 are below.
ARTISTS = {
    "1": "Artist175",
    "2": "artist32",
    "3": "artist2, artist32",
    "4": "artist2, artist3",
    "5": "artist4",
    "6": "artist5",
    "7": "artist6",
}
KEYS = {
    "1": ("D# minor", "2"),
    "2": ("A major", "2"),
    "3": ("C minor", "2"),
    "4": ("F# major", "2"),
    "5": ("C minor / F# minor", "2"),
    "6": ("C minor", "1"),
    "7": ("-", "0"),
}


def write(root, artists=ARTISTS, keys=KEYS):
    head = ("ID", "ARTIST", "SONG TITLE")
    rows = [head, *((number, names, "Title") for number, names in artists.items())]
    text(root, f"{MTG}/annotations/beatport_metadata.txt", lines(*rows))
    rows = [("ID", "MANUAL KEY", "C"), *((number, *key) for number, key in keys.items())]
    text(root, f"{MTG}/annotations/annotations.txt", lines(*rows))
    for number in keys:
        text(root, f"{MTG}/annotations/key/{number}.LOFI.key", "nonsense: annotations.txt counts")
        audio(root, f"{MTG}/audio/{number}.LOFI.mp3")
    for number, key in {"10089": "Eb minor", "61415": "G\tmajor\n"}.items():
        text(root, f"{KEY}/annotations/key/{number}.LOFI.key", key)
        text(root, f"{KEY}/annotations/giantsteps/{number}.LOFI.key", "another format")
        audio(root, f"{KEY}/audio/{number}.LOFI.mp3")


def test_sides_are_by_artist_and_the_test_is_the_other_set(tmp_path):
    write(tmp_path)
    (task,) = giantsteps.read(tmp_path)
    assert (task.name, task.kind, task.note) == ("giantsteps_key", "key", "")
    assert sides(task) == {
        f"{MTG}/audio/1.LOFI.mp3": "train",
        f"{MTG}/audio/2.LOFI.mp3": "valid",
        f"{MTG}/audio/3.LOFI.mp3": "valid",  # together with artist32
        f"{MTG}/audio/4.LOFI.mp3": "valid",  # with artist2, who recorded with artist32
        f"{KEY}/audio/10089.LOFI.mp3": "test",
        f"{KEY}/audio/61415.LOFI.mp3": "test",
    }


def test_keys_are_spelled_with_sharps(tmp_path):
    write(tmp_path)
    assert targets(giantsteps.read(tmp_path)[0]) == {
        "1.LOFI": "D# minor",
        "2.LOFI": "A major",
        "3.LOFI": "C minor",
        "4.LOFI": "F# major",
        "10089.LOFI": "D# minor",
        "61415.LOFI": "G major",
    }


def test_missing_audio_is_counted(tmp_path):
    write(tmp_path)
    (tmp_path / MTG / "audio/3.LOFI.mp3").unlink()
    (tmp_path / KEY / "audio/10089.LOFI.mp3").write_bytes(b"")
    (task,) = giantsteps.read(tmp_path)
    assert task.note == "2 of 6 recordings without audio, for example 10089.LOFI"
    assert len(task.items) == 4


@pytest.mark.parametrize(
    "gone, sentence",
    [
        (
            f"{MTG}/annotations/annotations.txt",
            "holds no annotations.txt: expected the repository giantsteps-mtg",
        ),
        (
            f"{MTG}/annotations/beatport_metadata.txt",
            "holds no beatport_metadata.txt: expected the repository",
        ),
        (
            f"{KEY}/annotations/key/*",
            "holds no annotations/key/10089.LOFI.key: expected .* giantsteps-key-dataset",
        ),
        (f"{MTG}/audio/[234]*", "no audio of valid lies below .*: expected audio/10089.LOFI.mp3"),
    ],
)
def test_what_is_missing_is_named(tmp_path, gone, sentence):
    write(tmp_path)
    for path in tmp_path.glob(gone):
        path.unlink()
    with pytest.raises(ValueError, match=sentence):
        giantsteps.read(tmp_path)


def test_a_wrong_annotation_is_named(tmp_path):
    write(tmp_path, artists={k: v for k, v in ARTISTS.items() if k != "4"})
    with pytest.raises(ValueError, match="beatport_metadata.txt has no recording 4: expected the repository"):
        giantsteps.read(tmp_path)
    write(tmp_path, keys=KEYS | {"1": ("D# lydian", "2")})
    with pytest.raises(ValueError, match="annotations.txt: 'D# lydian' is no key"):
        giantsteps.read(tmp_path)
    write(tmp_path)
    text(tmp_path, f"{MTG}/annotations/annotations.txt", "ID\tKEY\n1\tC major\n")
    with pytest.raises(ValueError, match="annotations.txt has no column 'MANUAL KEY'"):
        giantsteps.read(tmp_path)
