import json
from collections import Counter

import pytest

from stages.evaluate.probe.sets import gtzan
from tests.stages.evaluate.probe.sets.layout import audio, sides, targets, text

GENRES = {"blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock"}
FILES = ("blues.00029", "rock.00000", "jazz.00002", "pop.00096", "reggae.00002")


def write(root, suffix=".wav"):
    audio(root, *(f"genres/{name.split('.')[0]}/{name}{suffix}" for name in FILES))


def beats(root, *names):
    for name in names:
        text(root, f"beats/gtzan_{name.replace('.', '_')}.beats", "0.5\t1\n1.0\t2\n")


def test_the_filtered_split_is_whole():
    split = list(gtzan._split())
    assert Counter(side for _, side in split) == {"train": 443, "valid": 197, "test": 290}
    assert len({name for name, _ in split}) == 930
    assert {name.split(".")[0] for name, _ in split} == GENRES
    of = dict(split)
    assert (of["blues.00029"], of["classical.00076"], of["rock.00090"]) == ("train", "valid", "test")
    assert "hiphop.00039" not in of and "pop.00015" not in of  # faults


@pytest.mark.parametrize("suffix", [".wav", ".au", ".mp3", ".flac"])
def test_a_genre_is_the_name_of_the_recording(tmp_path, suffix):
    write(tmp_path / "Data", suffix)
    (task,) = gtzan.read(tmp_path)
    assert (task.name, task.kind, task.root) == ("gtzan_genre", "class", tmp_path)
    assert sides(task) == {
        f"Data/genres/blues/blues.00029{suffix}": "train",
        f"Data/genres/jazz/jazz.00002{suffix}": "valid",
        f"Data/genres/pop/pop.00096{suffix}": "test",
        f"Data/genres/reggae/reggae.00002{suffix}": "train",
        f"Data/genres/rock/rock.00000{suffix}": "train",
    }
    assert {item.target for item in task.items} == {"blues", "jazz", "pop", "reggae", "rock"}
    assert task.note.startswith(
        "925 of 930 recordings without audio, for example blues.00000; no beats are annotated"
    )


def test_faults_are_left_out(tmp_path):
    write(tmp_path)
    audio(tmp_path, "genres/pop/pop.00015.wav")
    assert "genres/pop/pop.00015.wav" not in sides(gtzan.read(tmp_path)[0])


def test_beats_of_gtzan_tempo_beat(tmp_path):
    write(tmp_path)
    beats(tmp_path, "blues.00029", "jazz.00002", "pop.00096")
    text(tmp_path, "beats/gtzan_reggae_00002.beats", "")
    genre, task = gtzan.read(tmp_path)
    assert (task.name, task.kind) == ("gtzan_beats", "beats")
    assert targets(task) == dict.fromkeys(("blues.00029", "jazz.00002", "pop.00096"), "0.5 1")
    assert sorted(sides(task).values()) == ["test", "train", "valid"]
    assert task.note == "927 of 930 recordings without beats, for example blues.00030"
    assert genre.note == "925 of 930 recordings without audio, for example blues.00000"


def test_beats_of_gtzan_rhythm(tmp_path):
    write(tmp_path)
    beats(tmp_path, "jazz.00002", "pop.00096")
    down, beat = ({"annotation_type": kind} for kind in ("downbeat", "beat"))
    both = [
        {"namespace": "beat", "sandbox": down, "data": [{"time": 9.0}]},
        {"namespace": "beat", "sandbox": beat, "data": [{"time": 0.25}, {"time": 0.75}]},
    ]
    for name in ("blues.00029", "pop.00096"):  # of pop.00096, the .beats file counts
        text(tmp_path, f"rhythm/jams/{name}.wav.jams", json.dumps({"annotations": both}))
    assert targets(gtzan.read(tmp_path)[1]) == {
        "blues.00029": "0.25 0.75",
        "jazz.00002": "0.5 1",
        "pop.00096": "0.5 1",
    }


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=f"gtzan_genre: no audio lies below {tmp_path}: expected genres/blues/"
    ):
        gtzan.read(tmp_path)
    audio(tmp_path, "genres/blues/blues.00029.wav", "genres/jazz/jazz.00002.wav")
    with pytest.raises(ValueError, match="gtzan_genre: no audio of test lies below"):
        gtzan.read(tmp_path)
    write(tmp_path)
    text(tmp_path, "beats/gtzan_blues_00029.beats", "half past\n")
    with pytest.raises(ValueError, match="gtzan_blues_00029.beats line 1 is 'half past'"):
        gtzan.read(tmp_path)
