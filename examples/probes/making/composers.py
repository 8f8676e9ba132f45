"""Whose music it is: nineteen composers, or games where files name none, each of six recordings or more.

None of it is in `make music`, which encoders are pre-trained on here. A recording is on one side with all its
excerpts of 30 s, which follow one another; of long ones the first five minutes.
"""

import re
from collections import Counter
from pathlib import Path

from examples.fetching.packages import finished
from examples.probes.making.folds import spread
from examples.probes.sets import packages
from stages.evaluate.probe.task import Item

FOLDS = 5
EXCERPT_S, LEAST_S, MOST_S = 30.0, 20.0, 300.0
# class: package, files. Names of people are from the files' tags or the package's copyright file.
KENTA_CHO = "gunroar|torus-trooper|titanion|mu-cade|tumiki-fighters|parsec47"
CLASSES = {
    "Doug Kaufman": (
        "wesnoth",
        "battle-epic|elvish-theme|heroes_rite|siege_of_laurelmor|the_city_falls|weight_of_revenge",
    ),
    "Aleksi Aubry-Carlson": (
        "wesnoth",
        "battle|elf-land|frantic-old|main_menu|transience|underground",
    ),
    "Mattias Westlund": (
        "wesnoth",
        "breaking_the_chains|journeys_end|legends_of_the_north|northern_mountains|return_to_wesnoth"
        "|silvan_sanctuary|the_king_is_dead|traveling_minstrels",
    ),
    "hedgewars": ("hedgewars-data", "(?!Nature|sdmusic).*"),
    "Vega Strike": (
        "naev-data",
        "agriculture|cosmostation|galacticbattle|launch.*|liftoff|ocean|peace.|snow",
    ),
    "Askyel": ("naev-data", "ambient4|combat.|dvaered.|eureka|sirius2|terminal"),
    "Nikola Whallon": (
        "naev-data",
        "ambient[123]|ambient2_5|automat|battlesomething.|collective.|empire.|flf_battle1|intrigue|intro"
        "|nebu_battle.|sirius1|tension|upbeat|zalek.",
    ),
    "planetblupi": ("planetblupi-music-ogg", ".*"),
    "Jordan Trudgett": ("ardentryst", "(?!AMB|Rain|theme1_raw).*"),
    "btanks": ("btanks-data", ".*"),
    "Clifford J. Tasner": (
        "enigma-data",
        "across_the_ice|in_space|meditation|on_the_water|puzzle|skull_stones|swamp|enigma_rag",
    ),
    "fillets": ("fillets-ng-data", "rybky.*|menu|kufrik"),
    "flare": ("flare-game", ".*_theme"),
    "Kenta Cho": (KENTA_CHO, ".*"),
    "Martin Strohmeier": ("openclonk-data", ".*"),
    "Wansti": (
        "supertux-data",
        "bossattack|cave|darkforestkeep|fortress|forest[23]?|forestmap|ghostforest2?|greatgigantic|credits"
        "|intro|theme",
    ),
    "Olivier Militon": ("warmux-data", "Olivier_Militon.*"),
    "xmoto": ("xmoto-data", ".*"),
    "extremetuxracer": ("extremetuxracer-data", ".*"),
}


def target(package: str, stem: str) -> str | None:
    for name, (source, files) in CLASSES.items():
        if re.match(source, package) and re.fullmatch(files, stem):
            return name
    return None


def excerpts(seconds: float) -> list[tuple[float, float]]:
    """One after the other; what is left at the end counts if it is 20 s long."""
    starts = [EXCERPT_S * i for i in range(int(MOST_S / EXCERPT_S))]
    ends = [(start, min(start + EXCERPT_S, seconds)) for start in starts]
    return [(start, round(end, 2)) for start, end in ends if end - start >= LEAST_S]


def composer(root: Path) -> list[Item]:
    found = []
    for package in packages("composers"):
        for name, about in sorted(finished(root / "composers", package)["music"].items()):
            whose = target(package.name, Path(name).stem)
            if whose:
                found.append((f"composers/{package.name}/{name}", about["seconds"], whose))
    groups = {path: Counter({whose: len(excerpts(seconds))}) for path, seconds, whose in found}
    fold = spread(groups, FOLDS)
    return [
        Item(path, start, end, path, fold[path], whose)
        for path, seconds, whose in found
        for start, end in excerpts(seconds)
    ]
