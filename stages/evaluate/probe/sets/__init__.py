"""Public sets, each read from a folder that the user points to, in the layout in which it is published."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.evaluate.probe.sets import emomusic, giantsteps, gtzan, nsynth, rhythm, tags
from stages.evaluate.probe.task import Task


@dataclass(frozen=True)
class PublicSet:
    read: Callable[[Path], list[Task]]  # ValueError saying what is missing, where, and what to do
    tasks: tuple[str, ...]
    layout: str  # which files are expected below the folder, and where the user gets them
    split: str
    licence: str


SETS = {
    "gtzan": PublicSet(
        gtzan.read,
        ("gtzan_genre", "gtzan_beats"),
        f"{gtzan.GET}; {gtzan.BEATS}",
        "MARBLE's: without faults, 443, 197 and 290 recordings",
        "excerpts of commercial recordings whose rights were never cleared: research only",
    ),
    "giantsteps": PublicSet(
        giantsteps.read,
        ("giantsteps_key",),
        f"{giantsteps.MTG}; {giantsteps.TEST}; {giantsteps.GET}",
        "MARBLE's: sides by artist, tested on all of GiantSteps Key",
        "Beatport's previews: research only",
    ),
    "magnatagatune": PublicSet(
        tags.magnatagatune,
        ("mtt_tags",),
        tags.MTT,
        "MARBLE's: folders 0 to b, c, d to f",
        "Magnatune's clips, CC BY-NC-SA: not for commercial use",
    ),
    "emomusic": PublicSet(
        emomusic.read,
        ("emomusic",),
        f"{emomusic.ANNOTATIONS}; {emomusic.GET}",
        "MARBLE's: MediaEval 2013's evaluation set, other sides by artist",
        "clips of the Free Music Archive, each under its own Creative Commons licence: for research",
    ),
    "nsynth": PublicSet(
        nsynth.read,
        ("nsynth_pitch", "nsynth_instrument"),
        nsynth.GET,
        "the official one",
        "CC BY 4.0",
    ),
    "guitarset": PublicSet(
        rhythm.guitarset,
        ("guitarset_beats", "guitarset_key", "guitarset_chords"),
        rhythm.GUITARSET,
        "ours: six folds by player",
        "CC BY 4.0",
    ),
    "mtg-jamendo": PublicSet(
        tags.jamendo,
        ("mtg_top50",),
        f"{tags.JAMENDO}; {tags.GET}",
        "MARBLE's: split 0",
        "each recording under its own Creative Commons licence, the annotations CC BY-NC-SA 4.0",
    ),
    "ballroom": PublicSet(
        rhythm.ballroom,
        ("ballroom_genre", "ballroom_beats"),
        f"{rhythm.BALLROOM}; {rhythm.BEATS}",
        "ours: five folds by album, 13 duplicates left out",
        "excerpts from BallroomDancers.com's shop: research only",
    ),
}
