"""Strict YAML into frozen dataclasses: unknown keys, wrong types and impossible values are refused
before anything starts, with the field's path, the value seen and the nearest name."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")

Choose = Callable[[dict, str], type]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"key {key!r} stands twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: list[str] = ()) -> dict:
    """A YAML file with dotted overrides (`run.out=data/mine`) applied; raises ValueError naming the file."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ValueError(
            f"config {path} cannot be read: {error.strerror}; give a YAML file, for example one of configs/"
        ) from None
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise ValueError(
            f"config {path} is not valid YAML: line {error.problem_mark.line + 1}: {error.problem}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"config {path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"config {path} holds {type(data).__name__}, expected keys `recipe:` and `run:`")
    for override in overrides:
        _override(data, override)
    return data


def _override(data: dict, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected FIELD=VALUE, for example --set run.out=data/mine")
    *parents, last = name.strip().split(".")
    for part in parents:
        nested = data.setdefault(part, {})
        if nested is None:
            nested = data[part] = {}
        if not isinstance(nested, dict):
            raise ValueError(f"--set {text!r}: {part} is a value, it has no field {last!r}")
        data = nested
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        data[last] = value


def build(cls: type, data: Any, where: str = "", choose: dict[type, Choose] | None = None) -> Any:
    """Make a dataclass of plain data. `choose` maps a field's type to a function that picks its class."""
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'config'} is {data!r}: expected a mapping")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in fields:
            raise ValueError(unknown(f"{where}.{key}".lstrip("."), str(key), list(fields)))
    missing = [
        n
        for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where or 'config'}: {missing[0]} is missing")
    values = {k: _value(hints[k], v, f"{where}.{k}".lstrip("."), choose or {}) for k, v in data.items()}
    try:
        return cls(**values)
    except ValueError as error:  # a class knows its field's name, not the path that leads there
        field, rest = re.match(r"([\w.]*)(.*)", str(error), re.DOTALL).groups()
        own = field.rpartition(".")[2]
        if own not in fields or field.startswith(where):
            raise
        raise ValueError(f"{where}.{own}{rest}") from None


def unknown(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"unknown key {where}: {hint}"


def _value(hint: Any, value: Any, where: str, choose: dict[type, Choose]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            if type(None) in args:
                return None
            raise ValueError(f"{where} is empty")
        return _value(next(a for a in args if a is not type(None)), value, where, choose)
    if hint in choose:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}: expected a mapping")
        rest = dict(value)
        return build(choose[hint](rest, where), rest, where, choose)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, choose)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(args[0], v, f"{where}[{i}]", choose) for i, v in enumerate(items))
    if hint is Any or origin is dict or hint is dict:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # YAML 1.1 reads 6e-4 and 6.0e4 as text
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} is {value!r} ({type(value).__name__}): expected {_name(hint)}")
    if hint is float and (value != value or abs(value) == float("inf")):
        raise ValueError(f"{where} is {value}: expected a finite number")
    return value


def _name(hint: type) -> str:
    text = "text, in quotes where YAML would read a number, a date, or yes and off"
    return {int: "a whole number", float: "a number", str: text, bool: "true or false"}.get(
        hint, hint.__name__
    )


def require(condition: bool, where: str, value: Any, remedy: str) -> None:
    """Raise the ValueError of an impossible value: field, value seen, remedy."""
    if not condition:
        raise ValueError(f"{where} is {value!r}: {remedy}")
