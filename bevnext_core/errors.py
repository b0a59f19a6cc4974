# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can mend. The command line prints them as one line, without a traceback."""


class BevnextError(Exception):
    """Base class: something is wrong with what was given, not with the program."""


class ConfigError(BevnextError):
    """A configuration holds an unknown key, a wrong type or an impossible value."""


class CheckpointError(BevnextError):
    """A checkpoint is missing, damaged, unsafe to load, or belongs to another configuration."""


class FrameError(BevnextError):
    """A camera frame cannot be used: image, calibration or pose is wrong."""


class DatasetError(BevnextError):
    """A data set, scene, split or one of its files is missing or unreadable."""


def counted(count: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of ``error`` on one line. Others' messages are cut to ``limit`` characters, this project's never."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, BevnextError) or len(text) <= limit:
        return text
    return text[: limit - 3] + "..."
