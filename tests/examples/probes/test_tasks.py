"""The fixed item lists: readable, groups apart, every class on every side, and as the README counts them."""

import re
from collections import Counter

import pytest

from examples.fetching.archives import MUSIC
from examples.music.fetch import MORE, PACKAGES
from examples.probes.making.tunes import SOUNDFONTS
from examples.probes.rendering import plan
from examples.probes.sets import HERE, RENDERED, SETS, TASKS, packages
from stages.evaluate.probe.task import read

NAMES = sorted(SETS)
CLASSES = {"pitch": 12, "instrument": 20, "drum": 10, "key": 24, "chord": 24, "composer": 19}


def task(name: str, tmp_path):
    return read(TASKS / f"{name}.csv", SETS[name][0], tmp_path)


def test_there_is_one_list_for_each_task():
    assert {path.stem for path in TASKS.glob("*.csv")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_lists_are_read_and_groups_are_apart(name, tmp_path):
    found = task(name, tmp_path)  # raises where a group is on two sides
    assert len({(i.audio, i.start_s, i.end_s) for i in found.items}) == len(found.items)
    for item in found.items:
        assert item.audio.split("/")[0] in SETS[name][1]
        assert item.start_s is None or 0 <= item.start_s < item.end_s <= item.start_s + 30
    folder = {item.audio for item in found.items}, {item.audio: item.fold for item in found.items}
    assert all(folder[1][item.audio] == item.fold for item in found.items), "a file is on two sides"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_is_on_every_side(name, tmp_path):
    found = task(name, tmp_path)
    held = Counter((item.fold, item.target) for item in found.items)
    folds, targets = {fold for fold, _ in held}, {target for _, target in held}
    assert len(targets) == CLASSES[name]
    assert len(held) == len(folds) * len(targets)


@pytest.mark.parametrize("name", ["pitch", "instrument", "drum", "composer"])
def test_no_fold_has_most_of_the_items(name, tmp_path):
    folds = Counter(item.fold for item in task(name, tmp_path).items)
    assert len(folds) == 5 and max(folds.values()) < 1.5 * min(folds.values())


@pytest.mark.parametrize("name, folder", [("key", "tunes"), ("chord", "chorales")])
def test_a_side_has_its_own_soundfont(name, folder, tmp_path):
    side = {item.audio: item.fold for item in task(name, tmp_path).items}
    renders = plan(folder)
    assert {job.audio for job in renders} == set(side)
    assert all(job.soundfont == SOUNDFONTS[side[job.audio]] for job in renders)
    assert len(set(SOUNDFONTS.values())) == 3
    assert {job.soundfont for job in renders} == {p.name for p in packages("soundfonts")}


def test_a_tune_is_moved_so_that_its_key_is_the_one_asked(tmp_path):
    """By the accompaniment's tonic, which the plan names of those that have one."""
    asked = {item.audio: item.target for item in task("key", tmp_path).items}
    names = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
    known = [job for job in plan("tunes") if job.tonic is not None]
    assert len(known) > 100
    for job in known:
        assert asked[job.audio] == f"{names[(job.tonic + job.semitones) % 12]} {job.mode}"


def test_keys_are_equally_common_and_chords_nearly(tmp_path):
    keys = Counter((item.fold, item.target) for item in task("key", tmp_path).items)
    assert {side: {n for (s, _), n in keys.items() if s == side} for side in SOUNDFONTS} == {
        "train": {10},
        "valid": {2},
        "test": {10},
    }
    chords = Counter(item.target for item in task("chord", tmp_path).items)
    majors = [n for name, n in chords.items() if name.endswith(":maj")]
    assert max(majors) < 1.2 * min(majors)


def test_instruments_are_tested_in_registers_that_were_not_heard(tmp_path):
    found = task("instrument", tmp_path)
    assert {item.group.rpartition(" ")[0] for item in found.items} == {i.target for i in found.items}
    assert all(sum(item.target == name for item in found.items) <= 20 for name in CLASSES)


def test_pitches_are_those_of_the_files_names(tmp_path):
    for item in task("pitch", tmp_path).items:
        note = re.fullmatch(r".*/([A-G]s?)\d( v2)?\.mp3", item.audio)[1]
        assert item.target == note.replace("s", "#")


def test_beats_are_steady_and_go_on(tmp_path):
    for item in task("beats", tmp_path).items:
        times = [float(t) for t in item.target.split()]
        steps = [b - a for a, b in zip(times, times[1:], strict=False)]
        assert min(steps) > 60 / 200 and max(steps) < 60 / 90 and max(steps) - min(steps) < 0.005
        assert len(times) > 300


def test_composers_are_not_those_of_the_pre_training_corpus(tmp_path):
    assert not {p.name for p in packages("composers")} & {p.name for p in PACKAGES + MORE}
    items = task("composer", tmp_path).items
    assert sum(item.end_s - item.start_s for item in items) > 8 * 3600
    recordings = Counter(target for target, _ in {(item.target, item.audio) for item in items})
    assert min(recordings.values()) >= 6


def test_pins_are_whole(tmp_path):
    pins = [p for folder in ("notes", "songs", "drums", "soundfonts", "composers") for p in packages(folder)]
    assert len({p.name for p in pins}) == len(pins) == 48
    assert all(len(p.sha256) == 64 and p.bytes > 5e4 and p.licence for p in pins)
    assert {p.source for p in pins} == {"deb", "npm"}
    assert all(p.take == MUSIC and p.shortest_s == 20 for p in packages("composers"))
    for name, (_, folders) in SETS.items():
        for folder in set(folders) - set(RENDERED):
            kept = {p.name for p in packages(folder)}
            audio = [item.audio for item in task(name, tmp_path).items]
            assert {path.split("/")[1] for path in audio if path.startswith(f"{folder}/")} <= kept


def test_the_readme_counts_what_there_is(tmp_path):
    text = (HERE / "README.md").read_text()
    for name in NAMES:
        items = task(name, tmp_path).items
        counted = re.search(rf"^\| `{name}` \| ([\d ]+) \| ([\d–]+) \| (\d+) \|", text, re.M)
        assert int(counted[1].replace(" ", "")) == len(items), name
        assert int(counted[3]) == len({item.group for item in items}), name
