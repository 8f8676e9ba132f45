"""`make schema`: labels.json and pretrain.json, by which editors complete and check configurations, and
docs/configuration.md, all made from the settings classes."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from stages.config import expected
from stages.label import recipe
from stages.pretrain import config as pretrain

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"labels": (recipe.Config, "overtone labels"), "pretrain": (pretrain.Config, "overtone train")}
# anybody's own teacher, named as package.module:Class
OWN_TEACHER = {
    "type": "object",
    "required": ["teacher"],
    "properties": {"teacher": {"type": "string", "pattern": ":"}},
}
HEAD = """# Every configuration key

Made by `make schema` from the settings classes: edit the comments there. A key that is left out has its
default. `--set SECTION.KEY=VALUE` overrides the file. One value may be given for a list of one. M, P, F and D
name where a number comes from: see [sources.md](sources.md).
"""


def comments(cls: type) -> dict[str, str]:
    """Field → its comment: the lines above it and what is behind it."""
    found, above = {}, []
    for line in map(str.strip, inspect.getsource(cls).splitlines()):
        if line.startswith("# "):
            above.append(line[2:])
            continue
        if field := re.match(r"(\w+): ", line):
            found[field[1]] = " ".join([*above, line.partition("  # ")[2]]).strip()
        above = []
    return found


class Described(GenerateJsonSchema):
    """Comments of fields are their descriptions."""

    def dataclass_schema(self, schema):
        made = super().dataclass_schema(schema)
        texts = comments(schema["cls"])
        for name, field in made["properties"].items():
            field.pop("title", None)
            if texts.get(name):
                field["description"] = texts[name]
        return {key: value for key, value in made.items() if key != "title"}


class ForEditors(Described):
    """With what the loader takes besides: one value instead of a list, and teachers of one's own."""

    def tuple_schema(self, schema):
        made = super().tuple_schema(schema)
        return made if made.get("minItems", 0) > 1 else {"anyOf": [made, made["items"]]}

    def tagged_union_schema(self, schema):
        return {"anyOf": [super().tagged_union_schema(schema), OWN_TEACHER]}


def json_schema(kind: str) -> str:
    cls, command = KINDS[kind]
    made = TypeAdapter(cls).json_schema(schema_generator=ForEditors)
    for part in (made, *made["$defs"].values()):
        for field in part["properties"].values():
            if isinstance(field.get("default"), dict):  # a section, whose keys have their own
                del field["default"]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"For `{command}`"}
    return json.dumps(head | made, indent=1, ensure_ascii=False) + "\n"


def reference() -> str:
    """docs/configuration.md."""
    lines = [HEAD]
    for kind, (cls, command) in KINDS.items():
        whole = TypeAdapter(cls).json_schema(schema_generator=Described)
        lines += [f"## Of `{command}` (configs/{kind}/)\n", *sections(whole, whole, "", {})]
    lines += ["## Old names\n", "They still work; a line on stderr gives the new one.\n"]
    lines += ["| old | new |", "|---|---|"]
    lines += [f"| `{old}` | `{old.split('.')[0]}.{new}` |" for old, new in pretrain.OLD_NAMES.items()]
    return "\n".join(lines) + "\n"


def sections(schema: dict[str, Any], whole: dict[str, Any], path: str, defaults: dict) -> list[str]:
    """A table of the keys at `path`, then the sections below it. `defaults`: other ones than the schema's."""
    rows, below = [], []
    for key, field in schema["properties"].items():
        choice = field.get("anyOf", [field])[0]
        parts = [part["$ref"].rpartition("/")[2] for part in choice.get("oneOf", [choice]) if "$ref" in part]
        for part in parts:
            inner = whole["$defs"][part]
            text = " ".join(inner.get("description", "").split("\n\n")[0].split())
            null = " Or null." if "anyOf" in field else ""
            teacher = f", `teacher: {inner['properties']['teacher']['const']}`" if len(parts) > 1 else ""
            below += [f"### `{path}{key}`{teacher}\n", f"{text}{null}\n"]
            below += sections(inner, whole, f"{path}{key}.", field.get("default") or {})
        if not parts and key != "teacher":  # which is in the heading
            default = json.dumps(defaults.get(key, field.get("default", "required"))).strip('"')
            cells = f"`{key}`", allowed(field), f"`{default}`", field.get("description", "")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return (["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []) + below


def allowed(field: dict[str, Any]) -> str:
    words = expected(field).removeprefix("a ")
    return f"{words}; each: {allowed(field['items'])}" if "items" in field else words


def files() -> dict[Path, str]:
    """Path → text of every file that is made."""
    made = {ROOT / f"configs/schema/{kind}.json": json_schema(kind) for kind in KINDS}
    return made | {ROOT / "docs/configuration.md": reference()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
