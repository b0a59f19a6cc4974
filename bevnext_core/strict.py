# SPDX-License-Identifier: Apache-2.0
"""Frozen pydantic dataclasses, read strictly from YAML or JSON; every mistake becomes one line that names its place."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

from bevnext_core.errors import ConfigError
from bevnext_core.files import user_path

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_ALLOWED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}


class Loader(yaml.SafeLoader):
    """YAML in which ``4e-4`` is a number, unlike in YAML 1.1, and ``2020-01-01`` a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it
        first: [(tag, form) for tag, form in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass_transform(frozen_default=True)
def model(cls: type[T]) -> type[T]:
    """A frozen pydantic dataclass without type conversion, extra keys or infinities. Raises ConfigError."""
    made: Any = dataclass(frozen=True, config=_CONFIG)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError(_explained(error, made)) from None

    made.__init__ = checked
    return made  # type: ignore[no-any-return]


def model_fields(cls: Any) -> dict[str, FieldInfo]:
    """What pydantic knows of each field of a :func:`model`."""
    return cls.__pydantic_fields__  # type: ignore[no-any-return]


def from_mapping(cls: type[T], data: object, source: str) -> T:
    """Build the :func:`model` ``cls`` from plain values; ``source`` (a file) names the place in errors."""
    try:
        # as JSON, where a list is right for a tuple and a mapping for a part, and nothing else is converted
        text = json.dumps(_plain(data, cls), default=list)
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explained(error, cls)}") from None
    except RecursionError:
        raise ConfigError(f"{source}: refers to itself") from None


def to_mapping(value: Any) -> Any:
    """The inverse of :func:`from_mapping`: plain dicts, lists and scalars."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def read_yaml(path: str | Path, what: str, loader: type[yaml.SafeLoader] = Loader) -> Any:
    """The values of a YAML file. Raises ConfigError: no such ``what``, or no YAML."""
    path = user_path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except FileNotFoundError:
        raise ConfigError(f"no such {what}: {path}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def suggestion(names: Iterable[str], known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for names that resemble known ones, else nothing."""
    close = [match for name in names for match in difflib.get_close_matches(name, list(known), 1, 0.75)]
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a ``Literal``, or of a tuple of them; empty for other types."""
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def limits(field: FieldInfo) -> str:
    """What a number may be, in words: ``between 0 and 1``, ``above 0 and a multiple of 32``."""
    found = {k: getattr(m, k) for m in field.metadata for k in _LIMITS if getattr(m, k, None) is not None}
    if found.keys() >= {"ge", "le"}:
        return f"between {found['ge']:g} and {found['le']:g}"
    return " and ".join(f"{_LIMITS[key]} {value:g}" for key, value in found.items())


def _plain(value: Any, kind: Any) -> Any:
    """Keys as text, and ``{}`` for a part whose lines are all commented out."""
    if isinstance(value, (list, tuple)):
        return [_plain(item, (get_args(kind) or (None,))[0]) for item in value]
    known = model_fields(kind) if is_dataclass(kind) else {}
    if isinstance(value, dict):
        return {str(k): _plain(v, getattr(known.get(str(k)), "annotation", None)) for k, v in value.items()}
    return {} if value is None and known else value


def _explained(error: ValidationError, cls: type) -> str:
    faults: list[str] = []
    unknown: dict[tuple[int | str, ...], list[str]] = {}
    found = error.errors(include_url=False)
    for fault in found:
        if any(fault["loc"] == deeper["loc"][: len(fault["loc"])] != deeper["loc"] for deeper in found):
            continue  # a list that is too short without its faulty items
        kind, place = fault["type"], _written(fault["loc"])
        if kind == "unexpected_keyword_argument":
            unknown.setdefault(fault["loc"][:-1], []).append(str(fault["loc"][-1]))
        elif kind == "missing":
            faults.append(f"'{place}' is missing")
        elif kind == "dataclass_type":
            faults.append(f"{place or 'the file'} must be a mapping, got {type(fault['input']).__name__}")
        elif kind == "value_error":
            faults.append(f"{place + ': ' if place else ''}{fault['ctx']['error']}")
        elif not place:
            faults.append(fault["msg"])  # text that no JSON can hold
        else:
            faults.append(f"'{place}' must be {_allowed(fault, cls)}, got {fault['input']!r}")
    for path, names in unknown.items():
        known = model_fields(_type_at(cls, path))
        inside = f" in '{_written(path)}'" if path else ""
        listed, hint = ", ".join(map(repr, names)), suggestion(names, known)
        faults.insert(0, f"unknown key {listed}{inside}; known are: {', '.join(known)}{hint}")
    return "; ".join(faults)


def _written(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _type_at(cls: Any, path: tuple[int | str, ...]) -> Any:
    for part in path:
        cls = get_args(cls)[0] if isinstance(part, int) else model_fields(cls)[part].annotation
    return cls


def _allowed(fault: Any, cls: type) -> str:
    *path, name = fault["loc"]
    kind = fault["type"]
    if kind == "literal_error":
        return "one of " + ", ".join(map(str, choices(_type_at(cls, fault["loc"]))))
    if isinstance(name, str) and (kind == "finite_number" or kind not in _ALLOWED):
        return limits(model_fields(_type_at(cls, tuple(path)))[name]) or _ALLOWED[kind]
    return _ALLOWED.get(kind, fault["msg"].removeprefix("Input should be "))
