"""One server for all tests of the SQL wire of a worker, with names of their own for each test."""

from collections.abc import Iterator

import pytest

from upwell.testing import ServerProcess
from upwell.testing.wire import Site, Wire


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that many tests share; its log must not have met an unexpected state at the end."""
    directory = tmp_path_factory.mktemp("site") / "data"
    # The cheapest password hash: these tests sign in often.
    with ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4"}) as server:
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
