import json

import pytest

from stages.evaluate.probe.sets import music
from tests.stages.evaluate.probe.sets.layout import text


@pytest.mark.parametrize(
    "written, key",
    [
        ("Eb minor", "D# minor"),
        ("D#\tminor\n", "D# minor"),
        ("c major", "C major"),
        ("Cb:major", "B major"),
        ("B# min", "C minor"),
        ("Bb maj 0.9", "A# major"),
        ("b minor", "B minor"),
    ],
)
def test_a_key_has_one_spelling(written, key, tmp_path):
    assert music.key(written, tmp_path) == key


@pytest.mark.parametrize("written", ["", "-", "C", "H minor", "C dorian", "A-A# minor"])
def test_what_is_no_key_is_refused_with_its_file(written, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/1.key: .* is no key, expected one such as `Eb minor`"):
        music.key(written, tmp_path / "1.key")


@pytest.mark.parametrize(
    "chord, triad",
    [
        ("Eb:maj7", "D# major"),
        ("C", "C major"),
        ("G:7/3", "G major"),
        ("A:min7", "A minor"),
        ("B:hdim7", "B minor"),
        ("B:dim", "B minor"),
        ("F#:aug", "F# major"),
        ("N", None),
        ("X", None),
        ("D:sus4", None),
        ("D:5", None),
    ],
)
def test_a_triad_is_named_by_its_third(chord, triad):
    assert music.triad(chord) == triad


def test_beats_begin_a_line(tmp_path):
    path = text(tmp_path, "a.beats", "# time place\n0.5\t1\n1.25 2\n\n0.25, 4\n")
    assert music.beats(path) == "0.25 0.5 1.25"
    assert music.beats(text(tmp_path, "b.beats", "-1\n")) == ""
    with pytest.raises(ValueError, match="c.beats line 2 is 'x 1': expected the time of a beat in seconds"):
        music.beats(text(tmp_path, "c.beats", "0.5 1\nx 1\n"))


def test_jams_of_both_versions_are_rows(tmp_path):
    new = {"annotations": [{"namespace": "beat", "data": [{"time": 1.0, "value": 2}]}]}
    old = {"annotations": [{"namespace": "beat", "data": {"time": [1.0], "value": [2]}}]}
    for content in (new, old):
        assert music.jams(text(tmp_path, "a.jams", json.dumps(content))) == new["annotations"]
    for broken in ("{", "[]", '{"annotations": [{"namespace": "beat"}]}', '{"annotations": 3}'):
        with pytest.raises(ValueError, match="a.jams is no JAMS file: get it again"):
            music.jams(text(tmp_path, "a.jams", broken))
