import pytest

from stages.evaluate.probe.sets import emomusic
from tests.stages.evaluate.probe.sets.layout import audio, sides, targets, text

# By sha1sum modulo 10, `tango` is 7 and `victor` 8: the latter is valid.
SONGS = """song_id,file_name,Artist,Song title,Mediaeval 2013 set
2,\t2.mp3\t,\tTango 7\t,\tA\t,\tdevelopment
3,\t3.mp3\t,\tVictor!\t,\tB\t,\tdevelopment
4,\t4.mp3\t,\tTango 7\t,\tC\t,\tevaluation
"""
MEANS = """song_id,mean_arousal,std_arousal,mean_valence,std_valence
2,3.1,1.5,3,0.67
3,3.5,1.8,3.3,1.7
4,5.7,1.2,5.25,1.9
"""


def write(root, name="clips_45seconds/{}.mp3", songs=SONGS, means=MEANS):
    text(root, "annotations/songs_info.csv", songs)
    text(root, "annotations/static_annotations.csv", means)
    audio(root, *(name.format(number) for number in (2, 3, 4)))


def test_an_artist_is_hashed_in_small_letters_of_ascii():
    assert emomusic._artist("  The Üpper  Crust & 3 Cats!") == "the pper crust cats"


def test_sides_are_the_published_ones(tmp_path):
    write(tmp_path)
    (task,) = emomusic.read(tmp_path)
    assert (task.name, task.kind, task.note) == ("emomusic", "numbers", "")
    assert sides(task) == {
        "clips_45seconds/2.mp3": "train",
        "clips_45seconds/3.mp3": "valid",
        "clips_45seconds/4.mp3": "test",
    }
    assert targets(task) == {"2": "3.1 3", "3": "3.5 3.3", "4": "5.7 5.25"}  # arousal, valence


def test_clips_may_have_marbles_names(tmp_path):
    write(tmp_path, "wav/{:04}.wav")
    assert sides(emomusic.read(tmp_path)[0]).keys() == {"wav/0002.wav", "wav/0003.wav", "wav/0004.wav"}


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no songs_info.csv: expected the CSV files"):
        emomusic.read(tmp_path)
    write(tmp_path)
    (tmp_path / "clips_45seconds/4.mp3").unlink()
    with pytest.raises(ValueError, match="no audio of test lies below .*: expected clips_45seconds/2.mp3"):
        emomusic.read(tmp_path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"means": MEANS.replace("5.7", "calm")},
            "static_annotations.csv: arousal is 'calm', expected a number",
        ),
        (
            {"means": MEANS.replace("\n4,", "\n5,")},
            "static_annotations.csv has no song 4: expected the CSV files",
        ),
        ({"songs": SONGS.replace("Mediaeval 2013 set", "set")}, "has no column 'Mediaeval 2013 set'"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path, change, sentence):
    write(tmp_path, **change)
    with pytest.raises(ValueError, match=sentence):
        emomusic.read(tmp_path)
