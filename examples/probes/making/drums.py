"""What was hit: one-shots of drum kits, by the words in their files' names; a kit is on one side."""

import re
from collections import Counter, defaultdict
from pathlib import Path

from examples.fetching.packages import finished
from examples.probes.making.folds import spread
from examples.probes.sets import packages
from stages.evaluate.probe.task import Item

FOLDS = 5
HEARD_S = 1.0
# The first that fits. Named first, and left out: loops, effects, and percussion of one or two kits.
CLASSES = {
    "": r"loop|emptysample|roll|fx_|swish|choke|djembe|bongo|conga|stomach|trimo",
    "rim": r"rim|stick|^rs_",
    "clap": r"clap",
    "cowbell": r"cowbell|agogo",
    "ride": r"(?<!crash)ride|^rc_|^rd\d?_|crash.*(bell|cup)|^bell-|paistebell|^bl_",
    "crash": r"crash|^cc_|splash|china|cymbal_(hard|soft)|^cb\d?_|^cra_|808_cymbal",
    "hat open": r"hat.*op|openhat|^ho_|ohh|hhopen|^hh2_",
    "hat closed": r"hat.*(cl|ped|foot|light)|closehihat|pedalhihat|chh|hhclosed|hhpedal|^hh_|cymbal_closed",
    "snare": r"snare|^sn\d?_|^sd_|powr_sn",
    "kick": r"kick|^bd|bassdrum|powr_bd|hse_k_|drum_bass",
    "tom": r"tom|^tm\d?_|^ft_|^t\d_",
}


def label(stem: str) -> str | None:
    """Of a file's name; None where it says none of the classes."""
    for name, pattern in CLASSES.items():
        if re.search(pattern, stem.lower()):
            return name or None
    return None


def drum(root: Path) -> list[Item]:
    found = []
    for package in packages("drums"):
        for name, about in sorted(finished(root / "drums", package)["music"].items()):
            kit, target = Path(name).parent.name, label(Path(name).stem)
            if target and about["seconds"] > 0:
                found.append((f"drums/{package.name}/{name}", about["seconds"], kit, target))
    groups = defaultdict(Counter)
    for _, _, kit, target in found:
        groups[kit][target] += 1
    fold = spread(groups, FOLDS)
    return [
        Item(path, 0.0, min(seconds, HEARD_S), kit, fold[kit], target) for path, seconds, kit, target in found
    ]
