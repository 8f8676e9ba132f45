"""Sets with annotated beats that MARBLE has no split for: Ballroom and GuitarSet. The folds are ours."""

from collections.abc import Iterator
from pathlib import Path

from stages.evaluate.probe.sets import music
from stages.evaluate.probe.sets.folder import Folder, hashed, lacking, task
from stages.evaluate.probe.task import Item, Task

BALLROOM = (
    "expected BallroomData/ChaChaCha/Albums-Cafe_Paradiso-08.wav and so on, of ISMIR 2004's data1.tar.gz"
)
BEATS = "expected .beats files of github.com/CPJKU/BallroomAnnotations below it"
GUITARSET = "expected audio_mono-mic and annotation of zenodo.org/records/3371780 below it"
DANCES = ("ChaChaCha", "Jive", "Quickstep", "Rumba", "Samba", "Tango", "VienneseWaltz", "Waltz")
RECORDINGS, FOLDS, EXCERPTS = 685, 5, 360
# 13 of 698 are there twice (B. L. Sturm, listed in CPJKU/BallroomAnnotations): the second of each pair.
TWICE = {
    "Albums-AnaBelen_Veneo-15", "Albums-Ballroom_Magic-18", "Albums-Chrisanne2-12", "Albums-Fire-09",
    "Albums-Latin_Jam-13", "Albums-Latin_Jam-14", "Albums-Latin_Jam-15", "Albums-Latin_Jam2-13",
    "Albums-Latin_Jam2-14", "Albums-Latin_Jam2-15", "Media-103414", "Media-103415", "Media-104705",
}  # fmt: skip


def ballroom(path: Path) -> list[Task]:
    """ballroom_genre (8 dances) and, where beats are annotated, ballroom_beats. 5 folds by album."""
    folder, dances = Folder(path), {dance.lower(): dance for dance in DANCES}
    genres = []
    for name, file in folder.audio.items():
        dance = dances.get(Path(file).parent.name.partition("-")[0].lower())  # Rumba-American is a Rumba
        if dance and name not in TWICE:
            genres.append(Item(name, None, None, _album(name), str(hashed(_album(name), FOLDS)), dance))
    if not genres:
        raise ValueError(f"ballroom_genre: no audio lies below {path}: {BALLROOM}")
    fewer = RECORDINGS - len(genres)
    note = f"{fewer} of {RECORDINGS} recordings without audio" if fewer > 0 else ""
    files = folder.ending(".beats")
    if not files.keys() & {item.audio for item in genres}:
        none = f"no beats are annotated, {BEATS} for ballroom_beats"
        return [
            task(folder, "ballroom_genre", "class", genres, BALLROOM, "; ".join(filter(None, (note, none))))
        ]
    times = {item.audio: music.beats(files[item.audio]) for item in genres if item.audio in files}
    beats = [Item(i.audio, None, None, i.group, i.fold, times[i.audio]) for i in genres if times.get(i.audio)]
    without = lacking([i.audio for i in genres if not times.get(i.audio)], len(genres), "without beats")
    return [
        task(folder, "ballroom_genre", "class", genres, BALLROOM, note),
        task(folder, "ballroom_beats", "beats", beats, BALLROOM, "; ".join(filter(None, (note, without)))),
    ]


def _album(name: str) -> str:
    """`Albums-Latin_Jam-04` is of Albums-Latin_Jam, `Media-103402` of Media-1034."""
    return name.rpartition("-")[0] if name.startswith("Albums-") else name[:-2]


def guitarset(path: Path) -> list[Task]:
    """guitarset_beats, guitarset_key, and guitarset_chords (major and minor triads of the lead sheet, an item
    for each chord). Six folds by player. All players play the same 30 lead sheets, so that a probe may know a
    key from the piece."""
    folder = Folder(path)
    files = {name: file for name, file in folder.ending(".jams").items() if name[:2].isdigit()}
    if not files:
        raise ValueError(f"{path} holds no annotation/00_BN1-129-Eb_comp.jams: {GUITARSET}")
    audio = folder.audio
    kind = "mic" if any(f"{name}_mic" in audio for name in files) else "mix"
    beats, keys, chords = [], [], []
    for name, file in files.items():
        who, fold = name[:2], str(int(name[:2]))
        found = _events(file)
        times = music.joined([event["time"] for event in found["beat_position"]])
        beats.append(Item(f"{name}_{kind}", None, None, who, fold, times))
        keys.append(
            Item(f"{name}_{kind}", None, None, who, fold, music.key(found["key_mode"][0]["value"], file))
        )
        for start_s, end_s, triad in _triads(found["chord"]):
            chords.append(Item(f"{name}_{kind}", start_s, end_s, who, fold, triad))
    note = f"{EXCERPTS - len(files)} of {EXCERPTS} annotations are not there" if len(files) < EXCERPTS else ""
    return [
        task(folder, "guitarset_beats", "beats", beats, GUITARSET, note),
        task(folder, "guitarset_key", "key", keys, GUITARSET, note),
        task(folder, "guitarset_chords", "class", chords, GUITARSET, note),
    ]


def _events(file: Path) -> dict[str, list[dict]]:
    """Of each namespace the first annotation: of the two of chords, that is the lead sheet's."""
    found: dict[str, list[dict]] = {}
    for annotation in music.jams(file):
        found.setdefault(annotation["namespace"], annotation["data"])
    for namespace in ("beat_position", "key_mode", "chord"):
        if not found.get(namespace):
            raise ValueError(f"{file} has no annotation {namespace!r}: {GUITARSET}")
    return found


def _triads(events: list[dict]) -> Iterator[tuple[float, float, str]]:
    for event in events:
        triad = music.triad(event["value"])
        if triad:
            yield event["time"], event["time"] + event["duration"], triad
