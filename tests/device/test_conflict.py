"""A conflict is decided by the app's rule from (base, local, server), recorded, and never by a clock."""

from typing import Any

import pytest

from upwell.device import Conflict, client_wins, server_wins

ROW = {"id": "a", "name": "base", "email": "base", "created_at": None}


def begin(install: Any, server: Any, local: str, theirs: dict[str, Any] | None, resolver: Any) -> Any:
    phone = install(resolver=resolver)
    server.write("users", "a", ROW)
    phone.device.download()
    phone.run(local)
    server.write("users", "a", theirs)
    phone.device.upload()
    return phone


def both(phone: Any, server: Any) -> tuple[dict[str, str], dict[str, str]]:
    here = dict(phone.run("SELECT id, name FROM users"))
    return here, {key: row["name"] for key, row in server.live("users").items()}


@pytest.mark.parametrize("local", ["UPDATE users SET name = 'mine'", "DELETE FROM users"])
@pytest.mark.parametrize("theirs", [{**ROW, "name": "theirs"}, None])
@pytest.mark.parametrize("resolver", [server_wins, client_wins])
def test_both_sides_agree_afterwards(
    install: Any, server: Any, local: str, theirs: dict[str, Any] | None, resolver: Any
) -> None:
    phone = begin(install, server, local, theirs, resolver)
    here, there = both(phone, server)
    mine = {} if "DELETE" in local else {"a": "mine"}
    expected = mine if resolver is client_wins else {} if theirs is None else {"a": "theirs"}
    assert here == there == expected
    assert phone.pending() == {}
    assert phone.versions()["a"] == (server.rows["users", "a"].version, int(not expected))
    is_agreed = "DELETE" in local and theirs is None
    decision = "local" if resolver is client_wins and not is_agreed else "server"
    assert phone.run("SELECT decision FROM _sync_conflicts") == [(decision,)]


def test_a_merge_gets_all_three_rows_and_stands_on_both_sides(install: Any, server: Any) -> None:
    seen: list[Conflict] = []

    def merge(conflict: Conflict) -> Any:
        seen.append(conflict)
        assert conflict.local is not None
        assert conflict.server is not None
        return {**conflict.server, "name": conflict.local["name"]}

    phone = begin(install, server, "UPDATE users SET name = 'mine'", {**ROW, "email": "theirs"}, merge)

    (conflict,) = seen
    assert (conflict.table, conflict.key) == ("users", "a")
    assert conflict.base == ROW
    assert conflict.local == {**ROW, "name": "mine"}
    assert conflict.server == {**ROW, "email": "theirs"}
    assert server.live("users")["a"] == {**ROW, "name": "mine", "email": "theirs"}
    assert phone.run("SELECT name, email FROM users") == [("mine", "theirs")]
    assert phone.run("SELECT decision FROM _sync_conflicts") == [("merged",)]


def test_the_client_does_not_win_over_a_row_that_has_its_edit(install: Any, server: Any) -> None:
    """Both set the name to one text; what else the other side wrote stays."""
    theirs = {**ROW, "name": "same", "email": "theirs"}
    phone = begin(install, server, "UPDATE users SET name = 'same'", theirs, client_wins)
    assert server.live("users")["a"] == theirs
    assert phone.run("SELECT name, email FROM users") == [("same", "theirs")]
    assert phone.pending() == {}


def test_a_rule_that_never_agrees_ends(install: Any, server: Any) -> None:
    phone = install(resolver=client_wins)
    server.write("users", "a", ROW)
    phone.device.download()
    phone.run("UPDATE users SET name = 'mine'")
    server.write("users", "a", {**ROW, "name": "0"})
    count = iter(range(100))
    phone.wire.on_send = lambda request: server.write("users", "a", {**ROW, "name": str(next(count))})
    report = phone.device.upload()
    assert report.pending == 1
    phone.wire.on_send = None
    assert phone.device.upload().pending == 0
    assert server.live("users")["a"]["name"] == "mine"


def test_a_failing_rule_leaves_everything_as_it_was(install: Any, server: Any) -> None:
    def fail(conflict: Conflict) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin(install, server, "UPDATE users SET name = 'mine'", {**ROW, "name": "theirs"}, fail)
    phone = install(resolver=client_wins)
    assert phone.pending() == {"a": ("UPDATE", 1)}
    assert phone.device.upload().pending == 0
    assert both(phone, server) == ({"a": "mine"}, {"a": "mine"})


def test_a_row_that_was_only_revived_takes_the_servers_newer_row(install: Any, server: Any) -> None:
    """The server deletes the parent of an unsent child and then has it anew: nobody edited it here."""
    asked: list[Conflict] = []

    def mine(conflict: Conflict) -> Any:
        asked.append(conflict)
        return conflict.local

    phone = install(resolver=mine)
    server.write("users", "a", ROW)
    phone.device.download()
    phone.run("INSERT INTO posts VALUES ('p', 't', 'a')")
    server.write("users", "a", None)
    phone.device.download()
    assert set(phone.pending()) == {"a", "p"}
    server.write("users", "a", {**ROW, "name": "anew"})
    phone.device.sync()
    here, there = both(phone, server)
    assert here == there == {"a": "anew"}
    assert (phone.pending(), asked, set(server.live("posts"))) == ({}, [], {"p"})


def test_a_change_that_the_server_never_takes_can_be_given_up(install: Any, server: Any) -> None:
    phone = install(schema="CREATE TABLE users (id TEXT PRIMARY KEY, name);", tables=["users"])
    server.write("users", "a", {"id": "a", "name": "theirs"})
    phone.device.download()
    phone.run("UPDATE users SET name = x'00' WHERE id = 'a'")
    phone.run("INSERT INTO users VALUES ('b', x'01'), ('c', 'good')")
    phone.device.upload()
    assert phone.device.status().quarantined == 2
    assert not phone.device.discard("users", "c")
    assert [phone.device.discard("users", key) for key in "ab"] == [True, True]
    assert phone.run("SELECT * FROM users ORDER BY id") == [("a", "theirs"), ("c", "good")]
    assert phone.pending() == {}
    assert phone.run("SELECT pk_uuid, decision FROM _sync_conflicts ORDER BY 1") == [
        ("a", "discarded"),
        ("b", "discarded"),
    ]
    phone.device.wipe()
