"""Fixtures of all tests: a fresh data directory, and real servers that are always reaped."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from upwell.testing import ServerProcess

# Two busy cores make deadlines of single examples a matter of luck; a failure prints how to replay it.
settings.register_profile("upwell", deadline=None, print_blob=True)
settings.load_profile("upwell")

# Data directories lie in memory where there is room: what is synced when is proven by the order of calls, and
# a process that is killed leaves the same files there. `PYTEST_DEBUG_TEMPROOT` names another place.
SHM, SHM_BYTES_MIN = "/dev/shm", 4 << 30
if (
    os.access(SHM, os.W_OK)
    and shutil.disk_usage(SHM).free >= SHM_BYTES_MIN
    and (not os.statvfs(SHM).f_flag & os.ST_NOEXEC)
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SHM)

# Collecting makes much that stays to the end, which the collector would look through again and again.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is work for the collector."""
    gc.freeze()
    gc.enable()


# A file system of a test's own takes the namespaces that only Linux has.
collect_ignore = [] if sys.platform == "linux" else ["crash/test_disk_full.py"]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that doesn't exist yet."""
    return tmp_path / "data"


@pytest.fixture
def start_server(data_dir: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers with the options of `ServerProcess`, on `data_dir` unless told otherwise."""
    with ExitStack() as stack:

        def start(directory: Path = data_dir, **options: Any) -> ServerProcess:
            return stack.enter_context(ServerProcess(directory, **options))

        yield start


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A running server on a fresh data directory."""
    return start_server()
