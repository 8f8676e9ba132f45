"""A teacher's weights in OUT/teachers: published ones are found, others are fitted once."""

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
    """Write weights under a name made from their content, then the JSON that describes them."""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{FOLDER}/{teacher}-{digest[:8]}"
    if not out.exists(f"{name}.safetensors") or out.read(f"{name}.safetensors") != data:
        out.write(f"{name}.safetensors", data)
    text = json.dumps(about | {"sha256": digest}, indent=1, sort_keys=True)
    out.write(f"{name}.json", f"{text}\n".encode())
    return Weights(f"{name}.safetensors", digest)


def is_fitted(recipe: Recipe) -> bool:
    return recipe.codes is not None and hasattr(recipe.codes, "fit")


def located(recipe: Recipe, path: str | None) -> bytes | None:
    """Published weights of a teacher that has some; ValueError within seconds, with the ways to give them."""
    return recipe.codes.locate(path) if hasattr(recipe.codes, "locate") else None


def fitted(out: Storage, recipe: Recipe, audio8: str) -> Weights | None:
    """The latest fit of this teacher on this OUT whose file exists; a lost one is fitted again."""
    wanted, found = recipe8(recipes.fit_recipe(recipe, audio8)), {}
    for name in sorted(out.names(FOLDER)):
        if name.startswith(f"{recipe.codes.name}-") and name.endswith(".json"):
            about, file = json.loads(out.read(f"{FOLDER}/{name}")), f"{FOLDER}/{name[:-5]}.safetensors"
            if about.get("fit_recipe8") == wanted and out.exists(file):
                found.setdefault(about["fit"], Weights(file, about["sha256"]))
    return found[max(found)] if found else None


def fit_shards(recipe: Recipe, shards: list[tuple[str, float]], spread: bool) -> list[str]:
    """The shards (name, seconds), in plan order, with enough audio for a fit.

    The first ones; with `spread`, for a refit, as many evenly spaced over the plan."""
    wanted_s, total_s, count = recipe.codes.fit_minutes * 60, 0.0, 0
    for _, seconds in shards:
        count += 1
        total_s += seconds
        if total_s >= wanted_s:
            break
    return [shards[i * len(shards) // count if spread else i][0] for i in range(count)]


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
        waves = []
        for shard in sorted(shards):
            path = stack.enter_context(out.fetched(records.file(audio_column, shard, "tar")))
            waves += stored_recordings(path, column.read_index(out, audio_column, shard))
        if not waves:
            rejects = [r for shard in shards for r in records.read(out, audio_column, shard).rejects]
            reasons = "; ".join(why for why, _ in Counter(r["reason"] for r in rejects).most_common(3))
            raise ValueError(
                f"nothing to fit {recipe.codes.name} on: all {len(rejects)} recordings of the first "
                f"{len(shards)} shards were rejected ({reasons}): give other audio"
            )
        data, result = recipe.codes.fit(waves, device, recipe.fit_threads, report or (lambda event: None))
    own = recipes.fit_recipe(recipe, audio8)
    about = {"report": result, "fit_recipe": canonical(own), "fit_recipe8": recipe8(own)}
    earlier = sum(1 for name in out.names(FOLDER) if name.endswith(".json"))
    return store(out, recipe.codes.name, data, about | {"shards": sorted(shards), "fit": earlier})
