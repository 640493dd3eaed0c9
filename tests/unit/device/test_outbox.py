"""Which version an acknowledged change has, also when the answer doesn't say it."""

import pytest

from upwell.device.outbox import Outgoing, acknowledged_version
from upwell.protocol.sync import Status


@pytest.mark.parametrize(
    ("op", "base", "answer", "version"),
    [
        ("UPDATE", 4, {"new_server_version": 5}, 5),
        ("INSERT", 0, {}, 1),
        ("UPDATE", 4, {}, 5),
        ("DELETE", 4, {}, 5),
        ("DELETE", 0, {}, 0),
        ("DELETE", 4, {"current_server_version": 0}, 0),
        ("UPDATE", 4, {"duplicate": True, "current_server_version": 9}, 5),
        ("INSERT", 0, {"duplicate": True, "current_server_version": 1}, 1),
        ("UPDATE", 4, {"duplicate": True, "current_server_version": 9, "applied_server_version": 6}, 6),
        ("DELETE", 0, {"duplicate": True, "current_server_version": 1, "applied_server_version": 0}, 0),
    ],
)
def test_version_of_an_applied_change(op: str, base: int, answer: dict[str, int], version: int) -> None:
    sent = Outgoing("t", "a", op, base, None, None, change_id=1, position=1)
    assert acknowledged_version(sent, Status(source_change_id=1, status="applied", **answer)) == version
