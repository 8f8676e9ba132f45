"""EmoMusic (744 clips of 45 s): arousal and valence of a whole clip, from 1 to 9. The split is that of
JukeMIR (arXiv 2107.05677), which MARBLE uses: MediaEval 2013's evaluation set is for the test, a fifth of the
other artists is for validation."""

from collections.abc import Iterator
from pathlib import Path

from stages.evaluate.probe.sets.folder import Folder, hashed, number, table, task
from stages.evaluate.probe.task import Item, Task

ANNOTATIONS = "expected the CSV files of annotations.tar.gz (cvml.unige.ch/databases/emoMusic)"
GET = "expected clips_45seconds/2.mp3 and so on, of clips_45sec.tar.gz (cvml.unige.ch/databases/emoMusic)"


def read(path: Path) -> list[Task]:
    """emomusic: `arousal valence`. R² does not change with the scale, so the figures stay as published."""
    folder = Folder(path)
    songs = folder.named("songs_info.csv", ANNOTATIONS)
    means = folder.named("static_annotations.csv", ANNOTATIONS)
    return [task(folder, "emomusic", "numbers", _items(songs, means, folder.audio), GET)]


def _items(songs: Path, means: Path, audio: dict[str, str]) -> Iterator[Item]:
    """MARBLE's own copies of the clips are called 0002.wav."""
    figures = {r["song_id"]: r for r in table(means, ("song_id", "mean_arousal", "mean_valence"))}
    for row in table(songs, ("song_id", "Artist", "Mediaeval 2013 set")):
        name = row["song_id"]
        if name not in figures:
            raise ValueError(f"{means} has no song {name}: {ANNOTATIONS}")
        test = row["Mediaeval 2013 set"] == "evaluation"
        side = "test" if test else "valid" if hashed(_artist(row["Artist"]), 10) >= 8 else "train"
        two = [number(figures[name][f"mean_{what}"], means, what) for what in ("arousal", "valence")]
        padded = name.zfill(4)
        stem = padded if padded in audio else name
        yield Item(stem, None, None, name, side, " ".join(f"{figure:.10g}" for figure in two))


def _artist(name: str) -> str:
    """In small letters of ASCII, with single spaces: what JukeMIR hashes."""
    kept = "".join(c for c in name.lower() if ord(c) < 128 and (c.isalpha() or c.isspace()))
    return " ".join(kept.split())
