"""A WebSocket by hand, and one subscription folded by hand: the contract's section 2, read a second time.

Nothing here uses a WebSocket library or Upwell's own client: what a frame is comes from RFC 6455.
"""

import base64
import gzip
import hashlib
import json
import os
import socket
import struct
from collections import defaultdict, deque
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from upwell.testing.wire import TIMEOUT_S, Answer

LIVE = "/v1/ws"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_KEY = base64.b64encode(b"a key of 16 byte")
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SYSTEM_COLUMNS = frozenset({"_seq", "_deleted"})


@dataclass(frozen=True)
class Frame:
    """A WebSocket frame as it is on the wire (RFC 6455, section 5.2); `size` is what its header claims."""

    opcode: int
    payload: bytes = b""
    final: bool = True
    reserved: int = 0
    masked: bool = True
    size: int | None = None

    def encoded(self) -> bytes:
        """Return header and payload, masked by a mask of chance."""
        size = len(self.payload) if self.size is None else self.size
        first, mask_bit = self.final << 7 | self.reserved << 4 | self.opcode, self.masked << 7
        if size < 126:
            header = struct.pack("!BB", first, mask_bit | size)
        elif size < 1 << 16:
            header = struct.pack("!BBH", first, mask_bit | 126, size)
        else:
            header = struct.pack("!BBQ", first, mask_bit | 127, size)
        if not self.masked:
            return header + self.payload
        mask = os.urandom(4)
        stream = int.from_bytes((mask * (len(self.payload) // 4 + 1))[: len(self.payload)])
        return header + mask + (int.from_bytes(self.payload) ^ stream).to_bytes(len(self.payload))


class Socket:
    """A WebSocket by hand: any bytes can be sent, and every frame that comes is checked and seen.

    With `upgrade=False` it is a bare TCP connection until `upgrade` is called. `receive_bytes` bounds what
    the kernel takes for one who doesn't read.
    """

    def __init__(
        self,
        port: int,
        token: str | None = None,
        *,
        path: str = LIVE,
        upgrade: bool = True,
        receive_bytes: int | None = None,
    ) -> None:
        self.tcp = socket.socket()
        self.tcp.settimeout(TIMEOUT_S)
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes is not None:
            self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.tcp.connect(("127.0.0.1", port))
        self._token = token
        self._path = path
        self._read = self.tcp.makefile("rb")
        self._inbox: defaultdict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._has_sent_close = False
        self.welcome: dict[str, Any] = {}
        try:
            if upgrade:
                self.upgrade()
                if token is not None:
                    self.welcome = self.message("auth_success")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection without a word."""
        self._read.close()
        self.tcp.close()

    def reset(self) -> None:
        """Drop the connection by a TCP reset, as a crashed or unplugged client does."""
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def request(self, **headers: str) -> bytes:
        """Return the upgrade request; `headers` replace those of it (`_` for `-`), empty ones remove."""
        fields = {
            "Host": "127.0.0.1",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": _KEY.decode(),
            "Sec-WebSocket-Version": "13",
        }
        if self._token is not None:
            fields["Authorization"] = f"Bearer {self._token}"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [
            f"GET {self._path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items() if value),
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def upgrade(self) -> None:
        """Become a WebSocket."""
        self.tcp.sendall(self.request())
        self.upgraded()

    def upgraded(self) -> None:
        """Read the answer to the upgrade request, which must be a success."""
        answer = self.answer()
        assert answer.status == 101, answer
        digest = hashlib.sha1(_KEY + _ACCEPT_GUID).digest()
        assert answer.headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
        assert answer.headers["upgrade"].lower() == "websocket"
        assert "sec-websocket-extensions" not in answer.headers, "none was asked for"

    def answer(self) -> Answer:
        """Read an HTTP answer with its body."""
        status = self._read.readline().split()
        assert status[:1] == [b"HTTP/1.1"], status
        headers = {}
        while line := self._read.readline().strip().decode():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Answer(int(status[1]), headers, self._read.read(int(headers.get("content-length", 0))))

    def send(self, *frames: Frame) -> None:
        """Send frames in one piece."""
        self._has_sent_close |= any(frame.opcode == CLOSE for frame in frames)
        self.tcp.sendall(b"".join(frame.encoded() for frame in frames))

    def say(self, **message: Any) -> None:
        """Send a JSON message."""
        self.send(Frame(TEXT, json.dumps(message).encode()))

    def frame(self) -> Frame:
        """Return the next frame; `EOFError` if the server has ended the connection."""
        first, second = self._exactly(2)
        frame_bytes = second & 0x7F
        if frame_bytes >= 126:
            frame_bytes = int.from_bytes(self._exactly(2 if frame_bytes == 126 else 8))
        frame = Frame(
            first & 0xF, self._exactly(frame_bytes), bool(first >> 7), first >> 4 & 7, bool(second >> 7)
        )
        assert not frame.masked, "a server never masks"
        assert not frame.reserved, "no extension was agreed on"
        assert frame.opcode in (TEXT, BINARY, PING, PONG, CLOSE), frame
        assert frame.final, frame
        assert frame.opcode < CLOSE or len(frame.payload) < 126, frame
        return frame

    def message(self, kind: str | None = None) -> dict[str, Any]:
        """Return the next message, which must be of this type; pongs are passed over, pings answered."""
        while (frame := self.frame()).opcode in (PING, PONG):
            if frame.opcode == PING:
                self.send(Frame(PONG, frame.payload))
        assert frame.opcode != CLOSE, frame
        text = frame.payload if frame.opcode == TEXT else gzip.decompress(frame.payload)
        found: dict[str, Any] = json.loads(text.decode())
        assert kind in (None, found["type"]), found
        return found

    def message_for(self, subscription: str) -> dict[str, Any]:
        """Return the next message of one subscription; those of others stay until they are asked for."""
        while not self._inbox[subscription]:
            found = self.message()
            self._inbox[found["subscription_id"]].append(found)
        return self._inbox[subscription].popleft()

    def closed(self) -> tuple[int | None, bytes]:
        """Return code and reason of a close frame and nothing before it; the server must also hang up.

        A close frame is answered unless one was sent before.
        """
        frame = self.frame()
        assert frame.opcode == CLOSE, frame
        if not self._has_sent_close:
            self.send(Frame(CLOSE, frame.payload))
        self.ended()
        if not frame.payload:
            return None, b""
        return int.from_bytes(frame.payload[:2]), frame.payload[2:]

    def ended(self) -> None:
        """Check that nothing more comes and that the server has hung up."""
        try:
            rest = self._read.read()
        except ConnectionResetError:
            return
        assert rest == b"", rest

    def _exactly(self, size_bytes: int) -> bytes:
        found = self._read.read(size_bytes)
        if len(found) < size_bytes:
            raise EOFError("the server has ended the connection")
        return found


class Watched:
    """One subscription, folded by hand: `rows` is what a client holds now, without system columns.

    It begins with what `held` holds, whose `cursor` it asks to resume `from` by itself (in `options`).

    Law: the versions of a row come in seq order, each once; an update lacks exactly the NULL columns.
    """

    def __init__(
        self,
        socket: Socket,
        sql: str,
        *,
        id: str = "s",  # noqa: A002
        pk: str = "id",
        options: dict[str, Any] | None = None,
        held: "Watched | None" = None,
    ) -> None:
        self.socket = socket
        self.id = id
        self.rows: dict[str, dict[str, Any]] = {}
        self.batches: list[dict[str, Any]] = []
        self.cursor = 0
        self._pk = pk
        self._seqs: dict[str, int] = {}
        if held is not None:
            self.rows, self._seqs, self.cursor = dict(held.rows), dict(held._seqs), held.cursor
        self._resumed_at = self.cursor
        socket.say(type="subscribe", subscription={"id": id, "sql": sql, "options": options})
        self.ack = self._next("subscription_ack")
        names = [field["name"] for field in self.ack["schema"]]
        self._shows_deleted = "_deleted" in names
        self.columns = [name for name in names if name not in _SYSTEM_COLUMNS]

    def copy(self) -> "Watched":
        """Return what is held, to be resumed later; it isn't connected."""
        twin = copy(self)
        twin.rows, twin._seqs = dict(self.rows), dict(self._seqs)
        return twin

    def batch(self) -> dict[str, Any]:
        """Take one batch of the snapshot, whose number must be the next."""
        batch = self._next("initial_data_batch")
        control = batch["batch_control"]
        assert control["batch_num"] == len(self.batches), batch
        ready = "loading" if not self.batches else "loading_batch"
        assert control["status"] == (ready if control["has_more"] else "ready"), control
        seqs = [int(row["_seq"]) for row in batch["rows"]]
        assert seqs == sorted(set(seqs)), "rows come by seq"
        assert control["last_seq_id"] == (seqs[-1] if seqs else None), control
        self.batches.append(batch)
        for row in batch["rows"]:
            self._hold(row)
        return batch

    def ask(self) -> None:
        """Ask for the next batch."""
        self.socket.say(type="next_batch", subscription_id=self.id, last_seq_id=self.cursor)

    def snapshot(self) -> Self:
        """Take the batches that are left."""
        while self.batch()["batch_control"]["has_more"]:
            self.ask()
        return self

    def change(self) -> tuple[str, str]:
        """Take the next change; return its type and key."""
        change = self._next("change")
        kind = change["change_type"]
        parts = {"insert": {"rows"}, "update": {"rows", "old_values"}, "delete": {"old_values"}}[kind]
        assert set(change) == {"type", "subscription_id", "change_type"} | parts, change
        (row,) = change["old_values" if kind == "delete" else "rows"]
        if self._shows_deleted:
            assert row["_deleted"] is (kind == "delete"), change
        self._hold(row)
        if kind == "delete":
            self.rows.pop(row[self._pk])
        self.last = change
        return kind, row[self._pk]

    def until(self, key: object) -> list[tuple[str, str]]:
        """Take changes up to the first of a row, which is a fence; return those before it."""
        found = []
        while (change := self.change())[1] != str(key):
            found.append(change)
        return found

    def error(self) -> tuple[str, str]:
        """Take the error that ends the subscription; return code and message."""
        error = self._next("error")
        return error["code"], error["message"]

    def keys(self) -> list[int]:
        """Return the keys of the rows, sorted as numbers."""
        return sorted(map(int, self.rows))

    def _next(self, kind: str) -> dict[str, Any]:
        found = self.socket.message_for(self.id)
        assert found["type"] == kind, found
        return found

    def _hold(self, row: dict[str, Any]) -> None:
        key, seq = row[self._pk], int(row["_seq"])
        assert seq > self._seqs.get(key, -1), row
        # Clients drop what isn't newer than the cursor that they resumed from.
        assert seq > self._resumed_at, row
        self._seqs[key] = seq
        self.cursor = max(self.cursor, seq)
        shown = {name: value for name, value in row.items() if name not in _SYSTEM_COLUMNS}
        self.rows[key] = dict.fromkeys((*self.columns, *self.rows.get(key, ()))) | shown
