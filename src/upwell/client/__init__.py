"""The client: SQL over HTTP and live queries over WebSocket, synchronous and asynchronous.

with upwell.client.connect("http://127.0.0.1:8080", user="alice", password="…") as client:
    client.execute("INSERT INTO app.notes (id, body) VALUES ($1, $2)", [1, "hello"])
    client.executemany("INSERT INTO app.notes (id, body) VALUES ($1, $2)", [(2, "a"), (3, "b")])
    with client.transaction() as t:
        t.execute("UPDATE app.notes SET body = 'c' WHERE id = 2")
        t.execute("DELETE FROM app.notes WHERE id = 3")
    for change in client.live("SELECT * FROM app.notes"):
        print(change.kind, change.row)
    with client.live_table("SELECT * FROM app.notes") as table:
        print(table.rows())
"""

from upwell.client.asynchronous import AsyncClient, AsyncLive
from upwell.client.core import Account
from upwell.client.failures import (
    AuthenticationFailed,
    ClientError,
    ConnectionLost,
    LiveError,
    ProtocolViolation,
    ServerError,
)
from upwell.client.fold import LiveTable
from upwell.client.follow import Patience
from upwell.client.steps import Change
from upwell.client.sync import Client, Live
from upwell.client.table import AsyncLiveRows, LiveRows
from upwell.client.transaction import Pending, Transaction
from upwell.client.values import Result

__all__ = [
    "AsyncClient",
    "AsyncLive",
    "AsyncLiveRows",
    "AuthenticationFailed",
    "Change",
    "Client",
    "ClientError",
    "ConnectionLost",
    "Live",
    "LiveError",
    "LiveRows",
    "LiveTable",
    "Patience",
    "Pending",
    "ProtocolViolation",
    "Result",
    "ServerError",
    "Transaction",
    "connect",
    "connect_async",
]


def connect(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    namespace: str | None = None,
    request_s: float = 60.0,
) -> Client:
    """Return a client of the server at `url`. It signs in with its first request.

    Give a user and a password, or an access token; `namespace` is that of unqualified table names,
    `request_s` how many seconds a statement may take.
    """
    account = Account(url, user=user, password=password, token=token, namespace=namespace)
    return Client(account, request_s=request_s)


def connect_async(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    namespace: str | None = None,
    request_s: float = 60.0,
) -> AsyncClient:
    """Return an asynchronous client of the server at `url`; the arguments are those of `connect`."""
    account = Account(url, user=user, password=password, token=token, namespace=namespace)
    return AsyncClient(account, request_s=request_s)
