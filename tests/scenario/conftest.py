"""One server for all tests of the SQL wire of a worker, with names of their own for each test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.wire import Site, Wire

# The cheapest password hash, and no limit for one address: these tests sign in often.
SETTINGS = {"UPWELL_BCRYPT_COST": "4", "UPWELL_AUTH_ATTEMPTS_PER_S_MAX": "1000000"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that many tests share; its log must not have met an unexpected state at the end."""
    with _served(tmp_path_factory.mktemp("site") / "data", SETTINGS) as site:
        yield site


@pytest.fixture(scope="session")
def unshaped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that reads each text as it stands: without the cache of shapes."""
    settings = {**SETTINGS, "UPWELL_SHAPE_CACHE": "false"}
    with _served(tmp_path_factory.mktemp("unshaped") / "data", settings) as site:
        yield site


@contextmanager
def _served(directory: Path, settings: dict[str, str]) -> Iterator[Site]:
    with ServerProcess(directory, env=settings) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


@pytest.fixture
def root(site: Site) -> Wire:
    """The account `root`, role system."""
    return site.root


@pytest.fixture
def namespace(site: Site) -> str:
    """A fresh namespace."""
    return site.namespace()


@pytest.fixture
def alice(site: Site) -> Wire:
    """A fresh account of role user."""
    return site.account()[1]
