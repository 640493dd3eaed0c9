"""The stock client captures and encodes exactly as the contract says of it, its defects included."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upwell.testing.stock import StockClient
from upwell.testing.stock_file import decode_row, encode

DDL = """
CREATE TABLE IF NOT EXISTS t (id TEXT PRIMARY KEY, v INTEGER, s TEXT);
CREATE TABLE IF NOT EXISTS b (id BLOB PRIMARY KEY, data BLOB);
"""
INSERT = "INSERT INTO t VALUES ('a', 1, 's')"
UPDATE = "UPDATE t SET v = v + 1"
DELETE = "DELETE FROM t"
REPLACE = "INSERT OR REPLACE INTO t VALUES ('a', 9, 'r')"
RENAME = "UPDATE t SET id = 'b'"


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[[], StockClient]]:
    """Open the app on its one file."""
    clients: list[StockClient] = []

    def install() -> StockClient:
        client = StockClient(
            tmp_path / "app.sqlite",
            base_url="http://127.0.0.1:1",
            secret="a-secret-of-a-test-with-more-than-32-bytes",
            user="ada",
            source="phone",
            schema="app",
            tables=("t", "b"),
            ddl=DDL,
        )
        clients.append(client)
        return client

    yield install
    for client in clients:
        client.close()


def change(client: StockClient) -> list[tuple[str, str, int, int | None]]:
    """(key, operation, base version, change id) of what waits."""
    return [(c.pk, c.op, c.base_version, c.change_id) for c in client.pending()]


@pytest.mark.parametrize(
    ("statements", "expected", "next_id"),
    [
        ([INSERT], [("a", "INSERT", 0, 1)], 2),
        ([INSERT, UPDATE, UPDATE], [("a", "INSERT", 0, 1)], 4),
        ([INSERT, DELETE], [], 2),
        ([INSERT, UPDATE, DELETE], [], 3),
        ([INSERT, DELETE, INSERT], [("a", "INSERT", 0, 2)], 3),
    ],
)
def test_a_new_row(
    install: Callable[[], StockClient],
    statements: list[str],
    expected: list[tuple[str, str, int, int]],
    next_id: int,
) -> None:
    client = install()
    client.bootstrap()
    for statement in statements:
        client.run(statement)
    assert change(client) == expected
    assert client.run("SELECT count(*) FROM _sync_row_meta") == [(len(expected),)]
    assert client.run("SELECT next_change_id FROM _sync_client_info") == [(next_id,)]


@pytest.mark.parametrize(
    ("statements", "expected", "meta"),
    [
        ([UPDATE], [("a", "UPDATE", 3, 1)], (3, False)),
        ([UPDATE, UPDATE], [("a", "UPDATE", 3, 1)], (3, False)),
        ([DELETE], [("a", "DELETE", 3, 1)], (3, True)),
        ([UPDATE, DELETE], [("a", "DELETE", 3, 1)], (3, True)),
        ([DELETE, INSERT], [("a", "INSERT", 3, 1)], (3, False)),
        ([DELETE, INSERT, UPDATE], [("a", "INSERT", 3, 1)], (3, False)),
        ([DELETE, INSERT, DELETE], [], (3, True)),
        ([UPDATE, DELETE, INSERT, DELETE], [], (3, True)),
        ([RENAME], [("b", "UPDATE", 0, 1)], (3, False)),
        ([REPLACE], [("a", "INSERT", 0, 1)], (0, False)),
    ],
)
def test_a_row_that_the_server_has_at_version_3(
    install: Callable[[], StockClient],
    statements: list[str],
    expected: list[tuple[str, str, int, int]],
    meta: tuple[int, bool],
) -> None:
    client = install()
    client.bootstrap()
    client.run("UPDATE _sync_client_info SET apply_mode = 1")
    client.run(INSERT)
    client.run("INSERT INTO _sync_row_meta (table_name, pk_uuid, server_version) VALUES ('t', 'a', 3)")
    client.run("UPDATE _sync_client_info SET apply_mode = 0")
    for statement in statements:
        client.run(statement)
    assert change(client) == expected
    assert client.meta("t", "a") == meta


def test_before_the_first_sign_in_changes_have_no_id(install: Callable[[], StockClient]) -> None:
    client = install()
    client.run(INSERT)
    assert change(client) == [("a", "INSERT", 0, None)]


def test_a_file_that_was_left_applying_captures_again(install: Callable[[], StockClient]) -> None:
    client = install()
    client.bootstrap()
    client.run("UPDATE _sync_client_info SET apply_mode = 1")
    client.run(INSERT)
    client.close()
    again = install()
    again.run(UPDATE)
    assert change(again) == [("a", "UPDATE", 0, 1)]


def test_blobs_are_captured_as_hex_and_null_ones_as_nothing(install: Callable[[], StockClient]) -> None:
    client = install()
    client.bootstrap()
    key = uuid.UUID("00000000-0000-4000-8000-0000000000ff")
    client.run("INSERT INTO b VALUES (?, NULL)", key.bytes)
    (found,) = client.pending()
    assert found.pk == key.hex
    assert json.loads(found.payload or "") == {"id": key.hex, "data": ""}


def test_numbers_go_through_doubles_and_are_written_as_go_does() -> None:
    row = decode_row('{"z":9007199254740993,"a":1760000000,"f":0.1,"n":null,"t":true,"s":"1"}')
    assert encode(row) == '{"a":1760000000,"f":0.1,"n":null,"s":"1","t":true,"z":9007199254740992}'
    assert encode(decode_row('{"i":9223372036854775807}')) == '{"i":9223372036854776000}'
