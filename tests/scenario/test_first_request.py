"""A fresh server: the first statement is answered, though nothing was ever committed for anybody."""

from collections.abc import Callable

import pytest

from upwell.client import ServerError, connect
from upwell.testing import ServerProcess

ANSWER_S_MAX = 30.0


@pytest.mark.parametrize("durability", ["group", "async"])
def test_a_first_statement_that_fails_is_answered(
    start_server: Callable[..., ServerProcess], durability: str
) -> None:
    # A refusal waits for what it may rest on: nothing may have been written that nobody publishes.
    server = start_server(env={"UPWELL_BCRYPT_COST": "4", "UPWELL_DURABILITY": durability})
    with (
        connect(server.url, user="root", password=server.root_password, request_s=ANSWER_S_MAX) as client,
        pytest.raises(ServerError, match=r"app\.nothing"),
    ):
        client.execute("SELECT * FROM app.nothing")
    assert server.terminate() == 0
    assert "read-only" not in server.log_text()
