import pytest

from stages.evaluate.probe.sets import tags
from tests.stages.evaluate.probe.sets.layout import audio, lines, sides, targets, text

CLIPS = {
    "0/a-0-29": ("guitar", "tag00"),
    "b/b-0-29": ("guitar",),
    "c/c-0-29": ("tag01",),
    "d/d-0-29": ("rare",),
}


def magnatagatune(root, clips=CLIPS, names=None):
    names = names or ["rare", "guitar", *(f"tag{number:02}" for number in range(49))]
    rows = [("clip_id", *names, "mp3_path")]
    for count, (path, own) in enumerate(clips.items()):
        rows.append((str(count), *("1" if name in own else "0" for name in names), f"{path}.mp3"))
    text(root, "annotations_final.csv", lines(*([f'"{cell}"' for cell in row] for row in rows)))
    audio(root, *(f"{path}.mp3" for path in clips))


def test_magnatagatune_splits_by_folder(tmp_path):
    clips = {f"{digit:x}/{digit:x}-0-29": ("guitar",) for digit in range(16)}
    magnatagatune(tmp_path, clips)
    (task,) = tags.magnatagatune(tmp_path)
    assert (task.name, task.kind, task.note) == ("mtt_tags", "tags", "")
    found = {name[0]: side for name, side in sides(task).items()}
    assert found == dict.fromkeys("0123456789ab", "train") | {"c": "valid"} | dict.fromkeys("def", "test")


def test_magnatagatune_keeps_the_50_most_frequent_tags(tmp_path):
    filler = {f"e/{number}-0-29": ("guitar", *(f"tag{n:02}" for n in range(49))) for number in range(2)}
    magnatagatune(tmp_path / "mtt", CLIPS | filler)
    (task,) = tags.magnatagatune(tmp_path)
    found = targets(task)
    assert (found["a-0-29"], found["b-0-29"], found["c-0-29"]) == ("guitar|tag00", "guitar", "tag01")
    assert found["d-0-29"] == ""  # `rare` is the 51st; the clip stays
    assert len(found["0-0-29"].split("|")) == 50


def test_magnatagatune_counts_empty_clips_as_missing(tmp_path):
    magnatagatune(tmp_path, CLIPS | {"d/e-0-29": ()})
    (tmp_path / "d/e-0-29.mp3").write_bytes(b"")
    (task,) = tags.magnatagatune(tmp_path)
    assert task.note == "1 of 5 recordings without audio, for example e-0-29"


def test_magnatagatune_names_what_is_wrong(tmp_path):
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds no annotations_final.csv: expected annotations_final"
    ):
        tags.magnatagatune(tmp_path)
    magnatagatune(tmp_path, {"x/a-0-29": ()})
    with pytest.raises(
        ValueError, match="annotations_final.csv: mp3_path is 'x/a-0-29.mp3', expected one that"
    ):
        tags.magnatagatune(tmp_path)
    magnatagatune(tmp_path)
    (tmp_path / "c/c-0-29.mp3").unlink()
    with pytest.raises(
        ValueError, match="mtt_tags: no audio of valid lies below .*: expected annotations_final"
    ):
        tags.magnatagatune(tmp_path)


HEAD = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")
TRACKS = {
    "train": ("948", "7", "190.5", ("genre---rock", "instrument---piano")),
    "validation": ("1001", "8", "30.0", ("mood/theme---happy",)),
    "test": ("5602", "9", "29.9", ("genre---pop",)),
}


def jamendo(root, split="split-0", low=".low", tracks=TRACKS):
    for side, (number, artist, duration, own) in tracks.items():
        path = f"{number[-2:]}/{number}.mp3"
        row = (f"track_{number}", f"artist_{artist}", "album_1", path, duration, *own)
        name = f"data/splits/{split}/autotagging_top50tags-{side}.tsv"
        text(root, name, lines(HEAD, row))
        audio(root, f"audio/{number[-2:]}/{number}{low}.mp3")


@pytest.mark.parametrize("low", [".low", ""])
def test_jamendo_hears_the_middle_of_split_0(tmp_path, low):
    jamendo(tmp_path, low=low)
    jamendo(tmp_path, "split-1", low, {side: ("1", "1", "60", ("other",)) for side in TRACKS})
    (task,) = tags.jamendo(tmp_path)
    assert (task.name, task.kind, task.note) == ("mtg_top50", "tags", "")
    assert [(i.audio, i.start_s, i.end_s, i.group, i.fold, i.target) for i in task.items] == [
        (f"audio/48/948{low}.mp3", 80.25, 110.25, "artist_7", "train", "genre---rock|instrument---piano"),
        (f"audio/01/1001{low}.mp3", 0, 30, "artist_8", "valid", "mood/theme---happy"),
        (f"audio/02/5602{low}.mp3", 0, 30, "artist_9", "test", "genre---pop"),
    ]


def test_jamendo_counts_what_is_missing(tmp_path):
    jamendo(tmp_path)
    path = tmp_path / "data/splits/split-0/autotagging_top50tags-test.tsv"
    path.write_text(path.read_text() + "track_3\tartist_9\talbum_2\t03/3.mp3\t60\tgenre---pop\n")
    assert tags.jamendo(tmp_path)[0].note == "1 of 4 recordings without audio, for example 3"


def test_jamendo_names_what_is_wrong(tmp_path):
    with pytest.raises(
        ValueError, match="holds no autotagging_top50tags-train.tsv: expected data/splits/split-0"
    ):
        tags.jamendo(tmp_path)
    jamendo(tmp_path / "other", "split-1")
    with pytest.raises(ValueError, match="split-1/autotagging_top50tags-train.tsv is of another split"):
        tags.jamendo(tmp_path / "other")
    jamendo(tmp_path)
    test = "data/splits/split-0/autotagging_top50tags-test.tsv"
    for row, sentence in (
        (("track_3", "artist_3"), "test.tsv line 2 has 2 columns, expected 6 or more"),
        (
            ("track_3", "artist_3", "album_3", "03/3.mp3", "long", "a"),
            "duration of line 2 is 'long', expected a num",
        ),
    ):
        text(tmp_path, test, lines(HEAD, row))
        with pytest.raises(ValueError, match=sentence):
            tags.jamendo(tmp_path)
