"""A teacher's weights: published ones are found, fitted ones are fitted once; both live in OUT/teachers."""

import contextlib
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from stages.label import recipe as recipes
from stages.label.recipe import Recipe
from stages.shards import column
from stages.shards import record as records
from stages.shards.record import canonical, recipe8
from stages.shards.recordings import stored_recordings
from stages.shards.storage import Storage

FOLDER = "teachers"


@dataclass(frozen=True)
class Weights:
    """name: below OUT, or None for a teacher without weights."""

    name: str | None
    sha256: str | None


def store(out: Storage, teacher: str, data: bytes, about: dict[str, Any]) -> Weights:
    """Write weights under the name their content gives them, then the JSON that speaks of them."""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{FOLDER}/{teacher}-{digest[:8]}"
    if not out.exists(f"{name}.safetensors") or out.read(f"{name}.safetensors") != data:
        out.write(f"{name}.safetensors", data)
    about = about | {"sha256": digest}
    out.write(f"{name}.json", (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return Weights(f"{name}.safetensors", digest)


def is_fitted(recipe: Recipe) -> bool:
    return recipe.codes is not None and hasattr(recipe.codes, "fit")


def located(recipe: Recipe, path: str | None) -> bytes | None:
    """Published weights of a teacher that has some; ValueError within seconds, naming the ways to give
    them."""
    if recipe.codes is None or not hasattr(recipe.codes, "locate"):
        return None
    return recipe.codes.locate(path)


def fitted(out: Storage, recipe: Recipe, audio8: str) -> Weights | None:
    """The latest fit of this teacher on this OUT, if there is one whose file is there; a lost one is fitted
    again."""
    wanted = recipe8(recipes.fit_recipe(recipe, audio8))
    found: list[tuple[int, Weights]] = []
    for name in sorted(out.names(FOLDER)):
        if name.startswith(f"{recipe.codes.name}-") and name.endswith(".json"):
            about = json.loads(out.read(f"{FOLDER}/{name}"))
            if about.get("fit_recipe8") == wanted and out.exists(f"{FOLDER}/{name[:-5]}.safetensors"):
                found.append((about["fit"], Weights(f"{FOLDER}/{name[:-5]}.safetensors", about["sha256"])))
    return max(found, default=(0, None), key=lambda f: f[0])[1]


def fit_shards(recipe: Recipe, shards: list[tuple[str, float]], spread: bool) -> list[str]:
    """Which shards (name, seconds), in plan order, give enough audio for a fit.

    The first ones; with `spread`, when a refit was asked for, as many evenly spaced over the plan.
    """
    wanted_s, total_s, count = recipe.codes.fit_minutes * 60, 0.0, 0
    for _, seconds in shards:
        count += 1
        total_s += seconds
        if total_s >= wanted_s:
            break
    if not spread:
        return [name for name, _ in shards[:count]]
    return [shards[i * len(shards) // count][0] for i in range(count)]


def fit(
    place: str,
    recipe: Recipe,
    audio_column: str,
    audio8: str,
    shards: list[str],
    device: str,
    report: Any = None,
) -> Weights:
    """Fit on these finished shards and store the result; the same inputs give the same file."""
    out = Storage(place, standing=True)
    with contextlib.ExitStack() as stack:
        heard = []
        for shard in sorted(shards):
            path = stack.enter_context(out.fetched(records.file(audio_column, shard, "tar")))
            heard += list(stored_recordings(path, column.read_index(out, audio_column, shard)))
        if not heard:
            reasons = Counter(
                r["reason"] for shard in shards for r in records.read(out, audio_column, shard).rejects
            )
            raise ValueError(
                f"nothing to fit {recipe.codes.name} on: all {reasons.total()} recordings of the first "
                f"{len(shards)} shards were rejected "
                f"({'; '.join(why for why, _ in reasons.most_common(3))}): give other audio"
            )
        data, about = recipe.codes.fit(heard, device, recipe.fit_threads, report or (lambda event: None))
    own = recipes.fit_recipe(recipe, audio8)
    earlier = sum(1 for n in out.names(FOLDER) if n.endswith(".json"))
    about = {
        "report": about,
        "fit_recipe": canonical(own),
        "fit_recipe8": recipe8(own),
        "shards": sorted(shards),
        "fit": earlier,
    }
    return store(out, recipe.codes.name, data, about)
