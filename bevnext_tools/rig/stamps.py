# SPDX-License-Identifier: Apache-2.0
"""Stamps as people write them, and files of poses in the form of the TUM benchmarks."""

from __future__ import annotations

import bisect
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from bevnext_core.errors import DatasetError, one_line
from bevnext_core.files import user_path
from bevnext_core.geometry import interpolate_rigid, rigid

_UNITS = {10: 9, 13: 6, 16: 3, 19: 0}
"""Digits of a whole number that is a time since 1970, in s, ms, us and ns (1e9 s were reached in 2001), and the power
of ten that makes nanoseconds of it."""


def stamp_ns(text: str) -> int | None:
    """A stamp in nanoseconds, exact to the last digit; ``None`` when it is no number.

    A number with a decimal point, or with fewer than ten digits, is in seconds; a whole one with 10, 13, 16 or 19
    digits is the time since 1970 in seconds, milliseconds, microseconds or nanoseconds.
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    if not value.is_finite() or value < 0 or value >= Decimal(2) ** 63:
        return None
    digits = len(text) if text.isdigit() else 0
    if digits > 10 and digits not in _UNITS:
        return None
    nanoseconds = value.scaleb(_UNITS.get(digits, 9))
    return int(nanoseconds.to_integral_value()) if nanoseconds < Decimal(2) ** 63 else None


def stamp_in_name(stem: str) -> int | None:
    """The stamp that a file's name holds: all of it is a number with a point, or it has one of 10, 13, 16, 19 digits.

    The last such number counts. A name with a running number only has none.
    """
    if re.fullmatch(r"\d+\.\d+", stem):
        return stamp_ns(stem)
    found = [number for number in re.findall(r"\d+", stem) if len(number) in _UNITS and number[0] != "0"]
    return stamp_ns(found[-1]) if found else None


def seconds(stamp: int) -> str:
    """Nanoseconds as seconds, all nine digits: :func:`stamp_ns` reads it back."""
    return f"{stamp // 10**9}.{stamp % 10**9:09d}"


def rows(path: str | Path, what: str) -> list[tuple[int, list[str]]]:
    """The lines of a text file that are not empty and no comment (``#``): their numbers, and what spaces, tabs or
    commas divide.

    Raises:
        DatasetError: no such file, or it is no text.
    """
    path = user_path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DatasetError(f"no such {what}: {path}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as a {what}: {one_line(error)}") from None
    split = [(number, re.split(r"[\s,]+", line.strip())) for number, line in enumerate(lines, 1)]
    return [(number, parts) for number, parts in split if parts[0] and not parts[0].startswith("#")]


class Poses:
    """``global_from_ego`` over time, from a file of lines ``stamp x y z qx qy qz qw`` (metres, unit quaternion).

    Raises:
        DatasetError: the file is missing or empty, or a line is no pose or not later than the one before; names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.stamps_ns: list[int] = []
        self._rotations: list[np.ndarray] = []
        self._translations: list[np.ndarray] = []
        for number, parts in rows(path, "file of poses"):
            self._add(f"{self.path}, line {number}", parts)
        if not self.stamps_ns:
            raise DatasetError(f"{self.path} holds no poses; each line is: stamp x y z qx qy qz qw")

    def _add(self, where: str, parts: list[str]) -> None:
        stamp = stamp_ns(parts[0])
        try:
            x, y, z, qx, qy, qz, qw = map(float, parts[1:])
        except ValueError:
            stamp = None
        if stamp is None:
            text = " ".join(parts)[:120]
            header = ": a header begins with #" if re.fullmatch("[a-z_]{2,}.*", parts[0]) and parts[0] != "nan" else ""
            raise DatasetError(f"{where}: expected the 8 numbers stamp x y z qx qy qz qw, got '{text}'{header}")
        rotation, translation = np.array([qw, qx, qy, qz]), np.array([x, y, z])
        if not np.isfinite(translation).all() or not abs(np.linalg.norm(rotation) - 1) < 1e-2:
            given = " ".join(parts[1:])
            raise DatasetError(f"{where}: needs finite numbers and a quaternion qx qy qz qw of norm 1, got {given}")
        if self.stamps_ns and stamp <= self.stamps_ns[-1]:
            raise DatasetError(f"{where}: the stamp {parts[0]} is not later than that before: sort the file by stamp")
        self.stamps_ns.append(stamp)
        self._rotations.append(rotation)
        self._translations.append(translation)

    def at(self, stamp: int) -> np.ndarray | None:
        """``[4, 4]`` at a stamp, interpolated between two poses as the node does; ``None`` before the first and after
        the last one."""
        index = bisect.bisect_left(self.stamps_ns, stamp)
        if index == len(self.stamps_ns) or (index == 0 and self.stamps_ns[0] != stamp):
            return None
        after = self._rotations[index], self._translations[index]
        if self.stamps_ns[index] == stamp:
            return rigid(*after)
        before = self._rotations[index - 1], self._translations[index - 1]
        (qa, a), (qb, b) = ((q / np.linalg.norm(q), place) for q, place in (before, after))
        earlier = self.stamps_ns[index - 1]
        return interpolate_rigid(qa, a, qb, b, (stamp - earlier) / (self.stamps_ns[index] - earlier))
