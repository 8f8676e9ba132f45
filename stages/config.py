"""Strict YAML into frozen dataclasses that pydantic checks: what is wrong is refused in one sentence, with
the field's path, the value seen and what is expected.

A field's annotation is its range or its choices; its comment is its description in the JSON Schema and in
docs/configuration.md. What depends on several fields is checked in `__post_init__`, by `check`."""

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, PydanticKnownError

T = TypeVar("T")
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def _number(value: Any) -> Any:
    # YAML 1.1 reads 6e-4 and 6.0e4 as text; pydantic reads true as 1
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, str | bool):
        raise PydanticKnownError("float_type")
    return value


def remedy(text: str) -> Any:
    """In an annotation: what a message adds to a range of numbers, or says instead of "expected text"."""
    return Field(json_schema_extra={"errorMessage": text})


# These two are last in an annotation: pydantic forgets the standard names of limits that come after them.
NUMBER = BeforeValidator(_number)
LIST = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Natural = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, NUMBER]
NotNegative = Annotated[float, Field(ge=0), NUMBER]
Positive = Annotated[float, Field(gt=0), NUMBER]
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1), NUMBER]
Several = Annotated[tuple[T, ...], LIST]
Pair = Annotated[tuple[T, ...], Field(min_length=2, max_length=2), LIST]
OneOrMore = Annotated[tuple[T, ...], Field(min_length=1), LIST]


def _any_bytes(value: Any, check: Callable[[Any], str]) -> str:
    """Names of files need not be UTF-8: Python holds other bytes as surrogates, which pydantic refuses."""
    if not isinstance(value, str):
        return check(value)
    check(value.encode("utf-8", "backslashreplace").decode())
    return value


PathName = Annotated[
    str,
    Field(min_length=1),
    remedy("an empty path; is a variable of your command unset?"),
    WrapValidator(_any_bytes),
]


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Told(ValueError):
    """A message in our words, with its path from this class on."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass with checked values."""

    def checked(cls, data, handler):
        data = {} if data is None else data  # a section without keys
        if not isinstance(data, dict | ArgsKwargs | cls):
            raise ValueError(f"is {data!r}: expected a mapping")
        try:
            return handler(data)
        except ValidationError as error:
            raise _Told(_sentence(error, cls)) from None

    def __init__(self, *values, **named):
        try:
            init(self, *values, **named)
        except ValidationError as error:
            raise ValueError(_below(cls.__name__, _sentence(error, cls))) from None

    cls._checked = model_validator(mode="wrap")(classmethod(checked))
    cls = dataclass(frozen=True, config=_STRICT)(cls)
    init, cls.__init__ = cls.__init__, __init__
    return cls


class _Loader(yaml.SafeLoader):
    """Refuses a key written twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"key {key!r} is written twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: list[str] = (), old_names: dict[str, str] | None = None) -> dict:
    """A YAML file with dotted overrides (`run.out=data/mine`); ValueError naming the file.

    old_names: as for `renamed`; stderr names each that is used."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        give = "give a YAML file, for example one of configs/"
        raise ValueError(f"config {path} cannot be read: {error.strerror}; {give}") from None
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}: {error.problem}" if mark else error
        raise ValueError(f"config {path} is not valid YAML: {what}") from None
    if not isinstance(data, dict):
        raise ValueError(f"config {path} holds {type(data).__name__}, expected keys `recipe:` and `run:`")
    names = old_names or {}
    data = renamed(data, names, tell=True)
    for override in overrides:
        name = override.partition("=")[0].strip()
        section = data.get(name.partition(".")[0])
        if name in names and isinstance(section, dict):
            section.pop(names[name], None)  # the value in the file is replaced under either name
        _override(data, override)
        data = renamed(data, names, tell=True)
    return data


def renamed(data: dict, old_names: dict[str, str], tell: bool = False) -> dict:
    """A configuration with today's names: {"optim.rate": "lr"} makes optim.rate optim.lr."""
    for old, key in old_names.items():
        section, _, old_key = old.partition(".")
        new, values = f"{section}.{key}", data.get(section)
        if isinstance(values, dict) and old_key in values:
            if key in values:
                raise ValueError(f"{old} is the old name of {new}, and both are given: remove {old}")
            data = data | {section: {key if k == old_key else k: v for k, v in values.items()}}
            if tell:
                print(f"overtone: {old} is now called {new}; the old name still works", file=sys.stderr)
    return data


def _override(data: dict, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected FIELD=VALUE, for example --set run.out=data/mine")
    *parents, last = name.strip().split(".")
    for part in parents:
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
        if not isinstance(data, dict):
            raise ValueError(f"--set {text!r}: {part} is a value, it has no field {last!r}")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        data[last] = value


def build(cls: type[T], data: Any, where: str = "") -> T:
    """A settings class, or anybody's own dataclass, of plain data; ValueError names the field's path."""
    own = not hasattr(cls, "_checked")
    if own:
        cls.__pydantic_config__ = _STRICT
    try:
        made = TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        raise ValueError(_below(where, _sentence(error, cls))) from None
    for key, value in data.items() if own else ():  # pydantic reads true and "1" as 1
        wrong = isinstance(value, bool | str) and not isinstance(getattr(made, key), type(value))
        if wrong and not _EXPONENT.fullmatch(str(value)):
            raise ValueError(_below(where, f"{key} is {value!r}: expected a number"))
    return made


def _below(path: str, text: str) -> str:
    """A message about a field, or the whole ("is 3: expected a mapping"), with the path before it."""
    return f"{path}{'' if text[0] == ':' else ' ' if text.startswith('is ') else '.'}{text}" if path else text


def _sentence(error: ValidationError, cls: type) -> str:
    """The first mistake; unknown keys come before all others, which may follow from them."""
    names = [f.name for f in fields(cls)]
    unknown = ("unexpected_keyword_argument", "unexpected_positional_argument", "invalid_key")
    first = min(error.errors(include_url=False), key=lambda e: e["type"] not in unknown)
    kind, value, (key, *rest) = first["type"], first["input"], first["loc"] or ("",)
    if kind in unknown:
        near = get_close_matches(str(key), names, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(names))}"
        return f"{key} is no known key: {hint}"
    where = names[key] if isinstance(key, int) else key  # Python may give values by position
    if kind == "value_error":
        cause, text = first["ctx"]["error"], str(first["ctx"]["error"])
        own = key or isinstance(cause, _Told) or re.match(r"\w*", text)[0] in names
        return _below(where, text if own else f": {text}")  # of somebody's teacher
    schema = TypeAdapter(cls).json_schema()["properties"][where]
    for step in rest:
        where, schema = f"{where}[{step}]", schema["items"]
    wanted, more = f"expected {expected(schema)}", schema.get("errorMessage")
    if kind == "finite_number":
        wanted = wanted.replace("a number", "a finite number")
    if kind == "string_type" and value is not None:
        wanted += ", in quotes where YAML would read a number, a date, or yes and off"
    elif more:
        wanted = more if schema["type"] in ("string", "array") else f"{wanted}; {more}"
    if kind == "missing":
        return f"{where} is missing: {wanted}"
    shown = "empty" if value is None else repr(list(value) if isinstance(value, tuple) else value)
    if kind.endswith("_type") and value is not None:
        shown += f" ({type(value).__name__})"
    return f"{where} is {shown}: {wanted}"


_KINDS = dict(
    integer="a whole number", number="a number", boolean="true or false", string="text", array="a list"
)
_LIMITS = dict(
    minimum="{} or more", exclusiveMinimum="above {}", maximum="at most {}", exclusiveMaximum="below {}",
    multipleOf="a multiple of {}",
)  # fmt: skip


def expected(schema: dict) -> str:
    """What a value may be, in words, by its JSON Schema."""
    if "anyOf" in schema:
        return f"{expected(schema['anyOf'][0])}, or null"
    if "enum" in schema or "const" in schema:
        *others, last = map(str, schema.get("enum", [schema.get("const")]))
        return f"{', '.join(others)} or {last}" if others else last
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    if {"minimum", "maximum"} <= schema.keys():
        limits[:2] = [f"{schema['minimum']} to {schema['maximum']}"]
    return ", ".join([_KINDS.get(schema.get("type"), "a mapping"), *limits])


def require(condition: bool, where: str, value: Any, remedy: str) -> None:
    """ValueError of an impossible value: field, value seen, remedy."""
    if not condition:
        raise ValueError(f"{where} is {value!r}: {remedy}")


def check(condition: bool, made: Any, field: str, remedy: str) -> None:
    """`require` of a field of a settings class."""
    value = getattr(made, field)
    require(condition, field, list(value) if isinstance(value, tuple) else value, remedy)
