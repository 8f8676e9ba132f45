"""Weights in OUT/teachers: published ones are found, others are fitted once."""

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from typing import Any, NamedTuple

from stages.label import recipe as recipes
from stages.label.recipe import Recipe
from stages.shards import column, record
from stages.shards.record import canonical, recipe8
from stages.shards.recordings import stored_recordings
from stages.shards.storage import Storage

FOLDER = "teachers"


class Weights(NamedTuple):
    """name: below OUT, or None for a teacher without weights."""

    name: str | None
    sha256: str | None


def store(out: Storage, teacher: str, data: bytes, about: dict[str, Any]) -> Weights:
    """Under a name made from their content; the JSON that describes them comes last."""
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
    """Published weights; ValueError within seconds, with the ways to give them."""
    return recipe.codes.locate(path) if hasattr(recipe.codes, "locate") else None


def fitted(out: Storage, recipe: Recipe, audio8: str) -> Weights | None:
    """The latest fit whose file exists; a lost one is fitted again."""
    wanted, found = recipe8(recipes.fit_recipe(recipe, audio8)), {}
    for name in sorted(out.names(FOLDER)):
        if name.startswith(f"{recipe.codes.name}-") and name.endswith(".json"):
            about, file = json.loads(out.read(f"{FOLDER}/{name}")), f"{FOLDER}/{name[:-5]}.safetensors"
            if about.get("fit_recipe8") == wanted and out.exists(file):
                found.setdefault(about["fit"], Weights(file, about["sha256"]))
    return found[max(found)] if found else None


def fit_shards(recipe: Recipe, shards: list[tuple[str, float]], spread: bool) -> list[str]:
    """Names of the first with enough audio for a fit; with `spread`, for a refit, as many evenly spaced."""
    wanted_s = recipe.codes.fit_minutes * 60
    total_s = itertools.accumulate(seconds for _, seconds in shards)
    count = min(1 + sum(total < wanted_s for total in total_s), len(shards))
    return [shards[i * len(shards) // count if spread else i][0] for i in range(count)]


def fit(
    place: str, recipe: Recipe, audio: str, audio8: str, shards: list[str], device: str, report: Any = None
) -> Weights:
    """On finished shards of the column `audio`; the same inputs give the same file."""
    out = Storage(place, standing=True)
    with contextlib.ExitStack() as stack:
        waves = []
        for shard in sorted(shards):
            path = stack.enter_context(out.fetched(record.file(audio, shard, "tar")))
            waves += stored_recordings(path, column.read_index(out, audio, shard))
        if not waves:
            rejects = [r for shard in shards for r in record.read(out, audio, shard).rejects]
            reasons = "; ".join(why for why, _ in Counter(r["reason"] for r in rejects).most_common(3))
            raise ValueError(
                f"nothing to fit {recipe.codes.name} on: all {len(rejects)} recordings of the first "
                f"{len(shards)} shards were rejected ({reasons}): give other audio"
            )
        data, result = recipe.codes.fit(waves, device, recipe.fit_threads, report or (lambda event: None))
    own = recipes.fit_recipe(recipe, audio8)
    about = {"report": result, "fit_recipe": canonical(own), "fit_recipe8": recipe8(own)}
    earlier = sum(name.endswith(".json") for name in out.names(FOLDER))
    return store(out, recipe.codes.name, data, about | {"shards": sorted(shards), "fit": earlier})
