# SPDX-License-Identifier: Apache-2.0
"""ROS parameter files: sections for nodes by name, namespace and wildcard, read as rcl reads them.

The rules are those of rcl_yaml_param_parser and of rclpy, as tried against rclpy 9.1: a section is a path of node
name and namespaces, nested or with slashes; ``*`` is one name, ``**`` any number of them; of two sections that give
a parameter, the later one counts, whatever their forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bevnext_core.errors import ConfigError
from bevnext_core.strict import read_yaml

_BLOCK = "ros__parameters"


class _Loader(yaml.SafeLoader):
    """Plain scalars as rcl types them: ``y`` is true, ``1e-1`` a number, ``null`` and dates are texts."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class declares it
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"ROS takes no aliases, line {self.peek_event().start_mark.line + 1}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        return _merged(
            (self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value
        )


_WORDS = r"(?:y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"
_FLOAT = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\.?(?:inf|Inf|INF))$|\.?(?:nan|NaN|NAN)$"
for _tag, _form in (
    ("bool", _WORDS),
    ("int", r"[-+]?(?:0x[0-9a-fA-F]+|0[0-7]*|[1-9]\d*)$"),
    ("float", _FLOAT),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), None)


def _merged(pairs: Any) -> dict[str, Any]:
    """A mapping in which a key may stand twice: mappings are joined, of other values the last counts."""
    joined: dict[str, Any] = {}
    for key, value in pairs:
        before = joined.get(str(key))
        if isinstance(before, dict) and isinstance(value, dict):
            value = _merged([*before.items(), *value.items()])
        joined[str(key)] = value
    return joined


@dataclass(frozen=True)
class ParameterFile:
    """The sections of a file in its order: (``/robot1/*``, {``name.of.parameter``: value})."""

    path: str
    sections: tuple[tuple[str, dict[str, Any]], ...]

    @classmethod
    def read(cls, path: str | Path) -> ParameterFile:
        """Raises ConfigError: missing, no YAML, or no parameter file."""
        data = read_yaml(path, "parameter file", _Loader)
        sections = tuple(_sections(data, ())) if isinstance(data, dict) else ()
        if not sections or not all(isinstance(block, dict) for _, block in sections):
            other = "; it is a rig file, for --images and --rig" if isinstance(data, dict) and "cameras" in data else ""
            raise ConfigError(f"{path}: is no ROS parameter file (expected '/**: {{{_BLOCK}: ...}}'){other}")
        return cls(str(path), tuple((pattern, dict(_flat(block))) for pattern, block in sections))

    @property
    def patterns(self) -> list[str]:
        """The sections' names."""
        return list(dict.fromkeys(pattern for pattern, _ in self.sections))

    def speaks_to(self, node: str) -> bool:
        """Whether a section is meant for this node, or for others too."""
        return any(_matches(pattern, node) for pattern in self.patterns)

    def values(self, node: str) -> dict[str, Any]:
        """What the file says to a node, given by its name with the namespace (``/robot1/detector``)."""
        return {k: v for pattern, block in self.sections if _matches(pattern, node) for k, v in block.items()}

    def shared(self, node: str) -> set[str]:
        """Parameters that stand only in sections with wildcards: others may be meant."""
        own = [block for pattern, block in self.sections if "*" not in pattern and _matches(pattern, node)]
        return self.values(node).keys() - {name for block in own for name in block}

    def node_named(self, name: str) -> str:
        """The node of this name, in the namespace that the file gives it; without one, in none.

        Raises:
            ConfigError: it stands in several namespaces, and not in none.
        """
        found: dict[str, None] = {}
        for pattern in self.patterns:
            *above, last = pattern.split("/")[1:]
            if last in (name, "*", "**"):
                found["/".join(["", *("any" if p == "*" else p for p in above if p != "**"), name])] = None
        plain = f"/{name}"
        # a wildcard that speaks to a node which is named says nothing about another one
        said = {n: [p for p in self.patterns if _matches(p, n)] for n in found}
        nodes = [n for n in found if not any(m != n and set(said[n]) < set(said[m]) for m in found)]
        if len(nodes) > 1 and plain not in nodes:
            raise ConfigError(
                f"{self.path}: has sections for {' and '.join(nodes)}: say which node is meant (--node {nodes[0]})"
            )
        return plain if plain in nodes or not nodes else nodes[0]


def _sections(tree: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key == _BLOCK and above:
            yield "/" + "/".join(above), value
        elif isinstance(value, dict):
            yield from _sections(value, (*above, *(part for part in key.split("/") if part)))


def _flat(block: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def _matches(pattern: str, node: str) -> bool:
    forms = {"*": r"/\w+", "**": r"(?:/\w+)*"}
    return bool(re.fullmatch("".join(forms.get(p, "/" + re.escape(p)) for p in pattern.split("/")[1:]), node))
