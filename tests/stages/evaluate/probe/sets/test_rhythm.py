import json

import pytest

from stages.evaluate.probe.sets import rhythm
from tests.stages.evaluate.probe.sets.layout import audio, sides, targets, text

# Folds by sha1sum of the album, modulo 5.
BALLROOM = {
    "ChaChaCha/Albums-Cafe_Paradiso-08": "2",
    "Rumba-American/Albums-Latin_Jam-04": "4",
    "Rumba-international/Albums-Latin_Jam-08": "4",
    "Samba/Albums-Macumba-01": "3",
    "Waltz/Media-103402": "0",
    "VienneseWaltz/Media-103407": "0",
    "Tango/Media-103501": "1",
}


def ballroom(root, beats=True):
    audio(root, *(f"BallroomData/{name}.wav" for name in BALLROOM))
    for name in BALLROOM if beats else ():
        text(root, f"BallroomAnnotations/{name.split('/')[1]}.beats", "9.430022675 3\n9.9 4\n")


def test_ballroom_keeps_an_album_in_one_fold(tmp_path):
    ballroom(tmp_path)
    genre, beats = rhythm.ballroom(tmp_path)
    assert (genre.name, genre.kind, beats.name, beats.kind) == (
        "ballroom_genre",
        "class",
        "ballroom_beats",
        "beats",
    )
    assert (
        sides(genre) == sides(beats) == {f"BallroomData/{name}.wav": fold for name, fold in BALLROOM.items()}
    )
    assert {item.group for item in genre.items} == {
        "Albums-Cafe_Paradiso",
        "Albums-Latin_Jam",
        "Albums-Macumba",
        "Media-1034",
        "Media-1035",
    }
    assert genre.note == beats.note == "678 of 685 recordings without audio"


def test_ballroom_has_8_dances_and_beats_in_seconds(tmp_path):
    ballroom(tmp_path)
    genre, beats = rhythm.ballroom(tmp_path)
    dances = {name.split("/")[1]: name.split("/")[0].split("-")[0] for name in BALLROOM}
    assert targets(genre) == dances
    assert set(targets(beats).values()) == {"9.430022675 9.9"}


def test_ballroom_leaves_out_duplicates_and_what_is_no_dance(tmp_path):
    assert len(rhythm.TWICE) == 13
    ballroom(tmp_path)
    audio(tmp_path, "BallroomData/Samba/Albums-Fire-09.wav", "BallroomData/other/Media-104001.wav")
    assert len(rhythm.ballroom(tmp_path)[0].items) == len(BALLROOM)


def test_ballroom_says_that_beats_are_missing(tmp_path):
    ballroom(tmp_path, beats=False)
    (genre,) = rhythm.ballroom(tmp_path)
    assert genre.note.startswith(
        "678 of 685 recordings without audio; no beats are annotated, expected .beats files"
    )
    ballroom(tmp_path)
    text(tmp_path, "BallroomAnnotations/Albums-Latin_Jam-04.beats", "-1\n")
    (tmp_path / "BallroomAnnotations/Albums-Latin_Jam-08.beats").unlink()
    audio(tmp_path, "BallroomData/Jive/Albums-Latin_Jam-09.wav")
    text(tmp_path, "BallroomAnnotations/Albums-Latin_Jam-09.beats", "1.5 1\n")
    note = rhythm.ballroom(tmp_path)[1].note
    assert note.endswith("; 2 of 8 recordings without beats, for example Albums-Latin_Jam-04")


def test_ballroom_names_what_is_wrong(tmp_path):
    audio(tmp_path, "Media-103402.wav")
    with pytest.raises(ValueError, match=f"no audio lies below {tmp_path}: expected BallroomData/ChaChaCha"):
        rhythm.ballroom(tmp_path)
    audio(tmp_path, "Waltz/Media-103402.wav", "Waltz/Media-103403.wav")
    with pytest.raises(
        ValueError, match="ballroom_genre: fold is .*expected train, valid and test, or three or more"
    ):
        rhythm.ballroom(tmp_path)


CHORDS = [(0.0, 2.5, "Eb:maj"), (2.5, 2.5, "C:hdim7"), (5.0, 1.0, "N"), (6.0, 2.0, "Bb:7")]


def jams(**without):
    def events(*triples):
        return [{"time": t, "duration": d, "value": v, "confidence": None} for t, d, v in triples]

    found = {
        "note_midi": events((0.0, 1.0, 51.0)),
        "beat_position": events(*((t, 0.0, {"position": 1, "measure": 1}) for t in (0.5, 1.0, 1.5))),
        "chord": events(*CHORDS),
        "key_mode": events((0.0, 8.0, "Eb:major")),
    } | without
    annotations = [{"namespace": name, "data": data} for name, data in found.items() if data]
    performed = {"namespace": "chord", "data": events((0.0, 8.0, "A:min"))}
    return json.dumps({"annotations": [*annotations, performed]})


def guitarset(root, kinds=("mic", "mix"), players=6):
    for player in range(players):
        name = f"0{player}_BN1-129-Eb_comp"
        text(root, f"annotation/{name}.jams", jams())
        audio(root, *(f"audio_mono-{kind}/{name}_{kind}.wav" for kind in kinds))


def test_guitarset_folds_are_its_players(tmp_path):
    guitarset(tmp_path)
    tasks = rhythm.guitarset(tmp_path)
    assert [(task.name, task.kind) for task in tasks] == [
        ("guitarset_beats", "beats"),
        ("guitarset_key", "key"),
        ("guitarset_chords", "class"),
    ]
    name = "audio_mono-mic/0{}_BN1-129-Eb_comp_mic.wav"
    assert sides(tasks[0]) == sides(tasks[1]) == {name.format(n): str(n) for n in range(6)}
    assert {item.group for item in tasks[2].items} == {"00", "01", "02", "03", "04", "05"}
    assert {task.note for task in tasks} == {"354 of 360 annotations are not there"}


def test_guitarset_targets(tmp_path):
    guitarset(tmp_path)
    beats, key, chords = rhythm.guitarset(tmp_path)
    assert set(targets(beats).values()) == {"0.5 1 1.5"}
    assert set(targets(key).values()) == {"D# major"}
    assert [(i.start_s, i.end_s, i.target) for i in chords.items if i.fold == "3"] == [
        (0.0, 2.5, "D# major"),
        (2.5, 5.0, "C minor"),
        (6.0, 8.0, "A# major"),
    ]


def test_guitarset_hears_the_pickup_where_there_is_no_microphone(tmp_path):
    guitarset(tmp_path, kinds=("mix",))
    assert all(item.audio.endswith("_mix.wav") for task in rhythm.guitarset(tmp_path) for item in task.items)


def test_guitarset_names_what_is_wrong(tmp_path):
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds no annotation/00_BN1-129-Eb_comp.jams: expected audio_"
    ):
        rhythm.guitarset(tmp_path)
    guitarset(tmp_path)
    (tmp_path / "audio_mono-mic/03_BN1-129-Eb_comp_mic.wav").unlink()
    with pytest.raises(
        ValueError, match="guitarset_beats: no audio of 3 lies below .*: expected audio_mono-mic"
    ):
        rhythm.guitarset(tmp_path)
    guitarset(tmp_path)
    path = text(tmp_path, "annotation/03_BN1-129-Eb_comp.jams", jams(beat_position=[]))
    with pytest.raises(ValueError, match="03_BN1-129-Eb_comp.jams has no annotation 'beat_position'"):
        rhythm.guitarset(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="03_BN1-129-Eb_comp.jams is no JAMS file: get it again"):
        rhythm.guitarset(tmp_path)
