import json

import pytest

from stages.evaluate.probe.sets import nsynth
from tests.stages.evaluate.probe.sets.layout import audio, sides, targets, text

NOTES = {
    "train": {"bass_synthetic_033-022-050": ("bass", 22), "flute_acoustic_001-060-100": ("flute", 60)},
    "valid": {"organ_electronic_104-060-025": ("organ", 60)},
    "test": {"synth_lead_synthetic_000-021-127": ("synth_lead", 21)},
}


def write(root):
    for side, notes in NOTES.items():
        found = {
            name: {"instrument_family_str": f, "pitch": p, "velocity": 50} for name, (f, p) in notes.items()
        }
        text(root, f"nsynth-{side}/examples.json", json.dumps(found))
        audio(root, *(f"nsynth-{side}/audio/{name}.wav" for name in notes))


def test_pitch_and_family_by_the_official_split(tmp_path):
    write(tmp_path / "nsynth")
    pitch, family = nsynth.read(tmp_path)
    assert [(task.name, task.kind, task.note) for task in (pitch, family)] == [
        ("nsynth_pitch", "class", ""),
        ("nsynth_instrument", "class", ""),
    ]
    assert sides(pitch) == sides(family)
    for side, notes in NOTES.items():
        for name, (instrument, number) in notes.items():
            assert sides(pitch)[f"nsynth/nsynth-{side}/audio/{name}.wav"] == side
            assert (targets(pitch)[name], targets(family)[name]) == (str(number), instrument)


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "nsynth-train/audio/bass_synthetic_033-022-050.wav").unlink()
    assert {task.note for task in nsynth.read(tmp_path)} == {
        "1 of 4 recordings without audio, for example bass_synthetic_033-022-050"
    }
    (tmp_path / "nsynth-valid/examples.json").unlink()
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds no nsynth-valid/examples.json: expected nsynth-train"
    ):
        nsynth.read(tmp_path)


def test_a_wrong_annotation_is_named(tmp_path):
    write(tmp_path)
    path = text(tmp_path, "nsynth-test/examples.json", '{"a": {"pitch": 3}}')
    with pytest.raises(ValueError, match="examples.json: a has no pitch or no instrument_family_str"):
        nsynth.read(tmp_path)
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match="nsynth-test/examples.json is no JSON, or breaks off: get it again"):
        nsynth.read(tmp_path)
