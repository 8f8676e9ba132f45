"""GTZAN: genres, and the beats that others annotated. Layouts: github.com/TempoBeatDownbeat/gtzan_tempo_beat
(`gtzan_blues_00000.beats`: time, place in the bar) and GTZAN-Rhythm (`blues.00000.wav.jams`)."""

from collections.abc import Iterator
from pathlib import Path

from stages.evaluate.probe.sets import music
from stages.evaluate.probe.sets.folder import Folder, lacking, task
from stages.evaluate.probe.task import Item, Task

GET = "expected genres/blues/blues.00000.wav and so on, of GTZAN's archive genres.tar.gz"
BEATS = "put the folder `beats` of gtzan_tempo_beat, or GTZAN-Rhythm's JAMS, below it for gtzan_beats"
SPLIT = Path(__file__).with_name("gtzan_filtered.txt")


def read(path: Path) -> list[Task]:
    """gtzan_genre and, where beats are annotated, gtzan_beats, by the filtered split (443, 197, 290)."""
    folder = Folder(path)
    split = dict(_split())
    genres = [Item(name, None, None, name, side, name.split(".")[0]) for name, side in split.items()]
    found = {name: file for name, file in _annotations(folder) if name in split}
    if not found:
        return [task(folder, "gtzan_genre", "class", genres, GET, f"no beats are annotated: {BEATS}")]
    times = {name: _beats(file) for name, file in sorted(found.items())}
    beats = [Item(name, None, None, name, split[name], t) for name, t in times.items() if t]
    without = [name for name in split if not times.get(name)]
    note = lacking(without, len(split), "without beats")
    return [
        task(folder, "gtzan_genre", "class", genres, GET),
        task(folder, "gtzan_beats", "beats", beats, GET, note),
    ]


def _split() -> Iterator[tuple[str, str]]:
    for line in SPLIT.read_text().splitlines():
        if not line.startswith("#"):
            side, genre, numbers = line.split()
            for part in numbers.split(","):
                first, _, last = part.partition("-")
                for number in range(int(first), int(last or first) + 1):
                    yield f"{genre}.{number:05}", side


def _annotations(folder: Folder) -> Iterator[tuple[str, Path]]:
    for suffix in (".jams", ".beats"):  # the latter, corrected by more hands, where there are both
        for stem, file in folder.ending(suffix).items():
            name = stem.removeprefix("gtzan_").removesuffix(".wav").removesuffix(".au")
            yield name.replace("_", "."), file


def _beats(path: Path) -> str:
    if path.suffix == ".beats":
        return music.beats(path)
    for annotation in music.jams(path):
        kind = annotation.get("sandbox", {}).get("annotation_type", "beat")
        if annotation["namespace"] == "beat" and kind == "beat":
            return music.joined([event["time"] for event in annotation["data"]])
    return ""
