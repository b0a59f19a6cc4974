# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: reference folders (skip with a reason where absent), what loggers say; two ways to run that
find tests which depend on others or on the machine."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bevnext_tools.threads import prepare_threads

prepare_threads()  # once, before torch: what a test's program sets later is set already

import torch  # noqa: E402

from tests.paths import REFERENCE, SAMPLE  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bevnext")
    group.addoption("--shuffle-files", type=int, metavar="SEED", help="run the test files in a random order")
    group.addoption(
        "--no-propagation",
        action="store_true",
        help="loggers do not propagate, as where ROS' launch is imported (its pytest plugin does so)",
    )


class _SilentLogger(logging.Logger):
    def __init__(self, name: str, level: int = logging.NOTSET) -> None:
        super().__init__(name, level)
        self.propagate = False


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-propagation"):
        logging.setLoggerClass(_SilentLogger)
        for logger in logging.root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.propagate = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that is left for the end has one process work and the others wait."""
    seed = config.getoption("--shuffle-files")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    files = sorted({item.path for item in items}, key=lambda path: (path not in slow, path))
    if seed is not None:
        random.Random(seed).shuffle(files)
    place = {path: number for number, path in enumerate(files)}
    items.sort(key=lambda item: place[item.path])  # stable: the order within a file stays


@pytest.fixture
def said() -> Iterator[Callable[[str], list[str]]]:
    """``said(name)``: the list of messages of that logger from now on, whether or not it propagates."""
    listening: list[tuple[logging.Logger, logging.Handler, int]] = []

    def listen(name: str) -> list[str]:
        messages: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger(name)
        listening.append((logger, handler, logger.level))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        return messages

    yield listen
    for logger, handler, level in listening:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _require(path: Path, variable: str, what: str) -> Path:
    if not path.is_dir():
        message = f"{what} is not at {path} (set {variable} to where it is)"
        if os.environ.get("CI"):
            pytest.fail(message + "; in CI this test must not be skipped")
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the complete reference outputs."""
    return _require(REFERENCE / "goldens", "BEVNEXT_REFERENCE", "the reference").parent


@pytest.fixture(scope="session")
def sample() -> Path:
    """Dataroot of the real nuScenes keyframes."""
    return _require(SAMPLE, "BEVNEXT_SAMPLE", "the nuScenes sample")


@pytest.fixture(autouse=True)
def _same_numbers() -> Iterator[None]:
    """A test draws the same from torch's own generator and sums in as many threads, alone or after others: a command
    that runs in this process sets its own number of threads."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> None:
    """For results that depend on the order of sums, on which the number of threads decides."""
    torch.set_num_threads(1)
