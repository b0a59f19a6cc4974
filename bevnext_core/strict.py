"""Frozen dataclasses from plain mappings (YAML), strictly: unknown keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from bevnext_core.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], data: object, source: str, path: str = "") -> T:
    """Build dataclass ``cls`` from ``data``; ``source`` (a file) and ``path`` (a key) name the place in errors."""
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: {path or 'the file'} must be a mapping, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in data if key not in fields)
    if unknown:
        where = f" in '{path}'" if path else ""
        raise ConfigError(
            f"{source}: unknown key {', '.join(map(repr, unknown))}{where}; known are: {', '.join(fields)}"
        )
    hints = typing.get_type_hints(cls)
    values = {
        name: _convert(hints[name], value, source, f"{path}.{name}" if path else name)
        for name, value in data.items()
    }
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source}: '{path + '.' if path else ''}{missing[0]}' is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {path + ': ' if path else ''}{error}") from None


def to_mapping(value: Any) -> Any:
    """The inverse of :func:`from_mapping`: plain dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(item) for item in value]
    return value


def _convert(hint: Any, value: Any, source: str, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)

    def wrong(expected: str) -> ConfigError:
        return ConfigError(f"{source}: '{path}' must be {expected}, got {value!r}")

    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(Any, hint), value, source, path)
    if origin is typing.Literal:
        if value not in arguments:
            raise wrong("one of " + ", ".join(map(str, arguments)))
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, source, path)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise wrong("a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, source, f"{path}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise wrong(f"a list of {len(arguments)}")
        return tuple(
            _convert(a, item, source, f"{path}[{i}]")
            for i, (a, item) in enumerate(zip(arguments, value, strict=True))
        )
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("an integer")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong("a number")
        return float(value)
    if hint is str:
        if not isinstance(value, str):
            raise wrong("a string")
        return value
    raise TypeError(f"configuration field {path} has a type that is not supported: {hint}")
