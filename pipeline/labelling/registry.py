"""OUT/recipe.yaml: the columns of an OUT, their recipes, and which ones the latest run uses."""

from dataclasses import asdict, dataclass
from typing import Any

import yaml

from stages.label import recipe as recipes
from stages.label.recipe import Recipe
from stages.shards.record import canonical, recipe8
from stages.shards.storage import Storage

NAME = "recipe.yaml"


@dataclass(frozen=True)
class Registry:
    plan: dict[str, Any]
    columns: dict[str, dict]  # name → recipe
    current: dict[str, str]  # kind (audio, codes, cqt) → name

    @property
    def names(self) -> tuple[str, ...]:
        """The current columns, audio first."""
        return tuple(self.current[k] for k in ("audio", "codes", "cqt") if k in self.current)


def read(out: Storage) -> Registry | None:
    """OUT's registry; None when OUT is new. Raises ValueError when the file is damaged."""
    if not out.exists(NAME):
        return None
    try:
        data = yaml.safe_load(out.read(NAME))
        return Registry(data["plan"], data["columns"], data["current"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{out.path(NAME)} is damaged ({error!r}): restore it, or use another OUT") from None


def existing(out: Storage) -> Registry:
    """The registry of an OUT that was labelled; ValueError when there is none."""
    registry = read(out)
    if registry is not None:
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
    """(column, recipe8) of the audio: the first recipe of an OUT has the plain name `audio`."""
    own = canonical(recipes.audio_recipe(recipe))
    if known is None or canonical(known.columns.get("audio", own)) == own:
        return "audio", recipe8(own)
    return f"audio-{recipe8(own)}", recipe8(own)


def check_plan(known: Registry | None, recipe: Recipe, out: Storage) -> None:
    """The first run fixes the plan's recipe: another would give other shards than the labelled ones."""
    if known is None:
        return
    for name, value in canonical(asdict(recipe.plan)).items():
        seen = known.plan.get(name)
        if canonical(seen) != value:
            raise ValueError(
                f"recipe.plan.{name} is {value}, {out.root} was planned with {seen}: "
                f"set it back (--set recipe.plan.{name}={seen}) or use another OUT"
            )


def write(
    out: Storage, known: Registry | None, recipe: Recipe, current: dict[str, tuple[str, dict]]
) -> Registry:
    """Add the current columns to the old ones, none of which is removed."""
    columns = dict(known.columns) if known else {}
    columns |= {name: canonical(own) for name, own in current.values()}
    names = {kind: name for kind, (name, _) in current.items()}
    registry = Registry(canonical(asdict(recipe.plan)), columns, names)
    data = yaml.safe_dump(asdict(registry), sort_keys=True).encode()
    if not out.exists(NAME) or out.read(NAME) != data:
        out.write(NAME, data)
    return registry
