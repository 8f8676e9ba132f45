"""OUT/recipe.yaml: the columns of an OUT, their recipes, and which ones the latest run uses."""

from dataclasses import asdict
from typing import Any, NamedTuple

import yaml

from stages.label import recipe as recipes
from stages.label.recipe import Recipe
from stages.shards.record import canonical, recipe8
from stages.shards.storage import Storage

NAME = "recipe.yaml"


class Registry(NamedTuple):
    plan: dict[str, Any]
    columns: dict[str, dict]  # name → recipe
    current: dict[str, str]  # kind (audio, codes, cqt) → name

    @property
    def names(self) -> tuple[str, ...]:
        """The current columns, audio first."""
        return tuple(self.current[k] for k in ("audio", "codes", "cqt") if k in self.current)


def read(out: Storage) -> Registry | None:
    """None when OUT is new; ValueError when the file is damaged."""
    if not out.exists(NAME):
        return None
    try:
        data = yaml.safe_load(out.read(NAME))
        return Registry(data["plan"], data["columns"], data["current"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{out.path(NAME)} is damaged ({error!r}): restore it, or use another OUT") from None


def existing(out: Storage) -> Registry:
    """ValueError unless OUT was labelled."""
    if registry := read(out):
        return registry
    if out.exists("catalog.parquet"):
        raise ValueError(
            f"{out.root} holds no labels yet, its `labels` run has not come so far: wait for it, or run the "
            f"same command again"
        )
    problem = f"holds no labels (no {NAME})"
    if out.is_local and not out.local("").is_dir():
        problem = "is a file" if out.local("").exists() else "is not there"
    raise ValueError(f"{out.root} {problem}: give the OUT of a `labels` run")


def audio_name(known: Registry | None, recipe: Recipe) -> tuple[str, str]:
    """(column, recipe8); an OUT's first recipe has the plain name `audio`."""
    own = canonical(recipes.audio_recipe(recipe))
    is_first = known is None or canonical(known.columns.get("audio", own)) == own
    return "audio" if is_first else f"audio-{recipe8(own)}", recipe8(own)


def planned(out: Storage, recipe: Recipe) -> Registry | None:
    """As `read`; ValueError for another plan too: it would give other shards than the labelled ones."""
    known = read(out)
    for name, value in canonical(asdict(recipe.plan)).items() if known else ():
        seen = known.plan.get(name)
        if canonical(seen) != value:
            raise ValueError(
                f"recipe.plan.{name} is {value}, {out.root} was planned with {seen}: "
                f"set it back (--set recipe.plan.{name}={seen}) or use another OUT"
            )
    return known


def write(
    out: Storage, known: Registry | None, recipe: Recipe, current: dict[str, tuple[str, dict]]
) -> Registry:
    """No column is ever removed."""
    columns = known.columns if known else {}
    columns = columns | {name: canonical(own) for name, own in current.values()}
    names = {kind: name for kind, (name, _) in current.items()}
    registry = Registry(canonical(asdict(recipe.plan)), columns, names)
    data = yaml.safe_dump(registry._asdict(), sort_keys=True).encode()
    if not out.exists(NAME) or out.read(NAME) != data:
        out.write(NAME, data)
    return registry
