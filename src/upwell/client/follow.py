"""A live query without I/O: one generator that yields steps for a driver to perform.

Law: through any number of reconnects the changes delivered are the snapshot, then every later change, once
and in order; where that can't be kept, an error is raised, or (`whole`) it begins anew. A driver performs one
step at a time and sends its outcome in, or throws `ConnectionLost` in if the connection failed.
"""

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from typing import NoReturn

from msgspec import UNSET

from upwell.client.core import Account, HttpAnswer
from upwell.client.failures import (
    AuthenticationFailed,
    ConnectionLost,
    LiveError,
    ProtocolViolation,
    ServerError,
)
from upwell.client.options import check_count, check_options, check_seconds
from upwell.client.progress import Progress
from upwell.client.steps import (
    Anew,
    Answered,
    Change,
    Deliver,
    Open,
    Outcome,
    Pause,
    Probe,
    Receive,
    Send,
    SnapshotDone,
    Step,
    Steps,
    Subscribed,
)
from upwell.client.values import Decode, decode_for, decode_row
from upwell.protocol import messages
from upwell.protocol.codec import FrameMalformed, FrameTooLarge, decode_server_frame, encode
from upwell.protocol.messages import (
    FieldSchema,
    ServerFrame,
    SubscriptionOptions,
    WireRow,
    batch_size_default,
)

_SUBSCRIPTION = "live"
_SEQ = "_seq"
_SYSTEM_COLUMNS = frozenset({_SEQ, "_deleted"})
_PRUNED = "HISTORY_PRUNED"
_PING = encode(messages.Ping()).decode()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a live query waits for what, in seconds, and how often it tries again."""

    auth_s: float = 5.0
    subscribe_s: float = 5.0
    batch_s: float = 30.0
    idle_s: float = 5.0
    """Silence after which the server is probed with a WebSocket ping."""
    pong_s: float = 5.0
    heartbeat_s: float = 4.0
    """Between two ping messages; the server gives up on a client after 10 s of silence."""
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    reconnects_max: int = 100
    """Failed attempts in a row before `ConnectionLost` is raised."""

    def __post_init__(self) -> None:
        check_count("reconnects_max", self.reconnects_max)
        check_seconds(
            **{each.name: getattr(self, each.name) for each in fields(self) if each.name[-2:] == "_s"}
        )

    def backoff_s(self, failures: int, chance: float) -> float:
        """Return the pause after `failures` in a row: doubled each time, bounded, jittered by `chance`."""
        ceiling = min(self.backoff_max_s, self.backoff_first_s * 2.0 ** min(failures - 1, 30))
        return ceiling * (0.5 + chance / 2)


class _TokenRefused(ConnectionLost):
    """The token was not accepted, and a new one can be had."""


class _CannotContinue(Exception):
    """What was delivered so far doesn't lead to what the query returns now."""


class Follow:
    """One live query: its state, and `steps()`, which never ends by itself.

    With `whole` its user folds the rows of a whole snapshot: where the log or the columns no longer allow to
    go on from what was delivered, it tells so (`Anew`) and begins with a new snapshot.
    """

    def __init__(
        self,
        account: Account,
        sql: str,
        *,
        from_seq: int | None = None,
        batch_size: int = batch_size_default,
        last_rows: int | None = None,
        view: bool = False,
        whole: bool = False,
        raw: bool = False,
        patience: Patience | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        check_options(sql, from_seq=from_seq, batch_size=batch_size, last_rows=last_rows, view=view, raw=raw)
        if patience is not None and not isinstance(patience, Patience):
            raise TypeError(f"patience is a Patience, not a {type(patience).__name__}")
        self.schema: tuple[FieldSchema, ...] = ()
        self.snapshot_complete = False
        self.progress = Progress.after(from_seq)
        self._account = account
        self._sql = sql
        self._batch_size = batch_size
        self._last_rows = last_rows
        self._view = view
        self._whole = whole
        self._raw = raw
        self._patience = patience or Patience()
        self._chance = chance
        self._decoders: dict[str, Decode] = {}
        self._columns: frozenset[str] = frozenset()
        self._misfit: tuple[FieldSchema, ...] | None = None
        self._role: str | None = None
        self._was_subscribed = False
        self._failures = 0

    def steps(self) -> Steps:
        """Connect, subscribe and deliver for ever; connect again after `ConnectionLost`."""
        while True:
            try:
                yield from self._sign_in()
                yield from self._subscribe()
                yield from self._deliver_all()
            except _TokenRefused:
                self._account.token = None
            except ConnectionLost:
                self._failures += 1
                if not self._was_subscribed or self._failures > self._patience.reconnects_max:
                    raise
                yield self._pause()
            except _CannotContinue:
                self._failures += 1
                self.progress = Progress()
                self.snapshot_complete = False
                yield Anew()
                # Whoever follows an altered table begins anew at this moment: not all of them at once.
                yield self._pause()
            self.progress.reconnected()

    def _pause(self) -> Pause:
        return Pause(self._patience.backoff_s(self._failures, self._chance()))

    def _sign_in(self) -> Steps:
        account = self._account
        try:
            if account.token is None and account.may_login:
                yield from _over_http(account)
            yield Open(account.live_url, account.headers, _PING, self._patience.heartbeat_s)
        except AuthenticationFailed:
            raise
        except ServerError as refusal:
            if refusal.status == 401:
                self._refuse(refusal.message)
            if refusal.status == 429 or refusal.status >= 500:
                raise ConnectionLost(str(refusal)) from refusal
            raise
        frame = yield from self._frame_within(self._patience.auth_s)
        match frame:
            case messages.AuthSuccess(role=role):
                account.token_is_new = False
                self._take_role(role)
            case messages.AuthError(message):
                self._refuse(message)
            case messages.Error(_, code, message):
                raise LiveError(code, message, self.progress.cursor)
            case _:
                raise ProtocolViolation(f"expected the answer to the sign-in, got {type(frame).__name__}")

    def _refuse(self, message: str) -> None:
        """Ask for a new login, unless the token comes from one just now or there is no password."""
        if self._account.may_login and not self._account.token_is_new:
            raise _TokenRefused(message)
        raise AuthenticationFailed(401, "AUTH_ERROR", message)

    def _take_role(self, role: str) -> None:
        """Go on only as who we were: what another role may see is another question."""
        if self._role not in (None, role):
            text = f"the account's role is {role} now and was {self._role}; open the live query again"
            raise LiveError("ROLE_CHANGED", text, self.progress.cursor)
        self._role = role

    def _subscribe(self) -> Steps:
        options = SubscriptionOptions(
            batch_size=self._batch_size,
            last_rows=None if self.progress.cursor is not None else self._last_rows,
            from_seq=self.progress.cursor,
            view=self._view,
        )
        yield _send(messages.Subscribe(messages.Subscription(_SUBSCRIPTION, self._sql, options)))
        frame = yield from self._frame_within(self._patience.subscribe_s)
        match frame:
            case messages.SubscriptionAck(schema=schema):
                self._take_schema(tuple(schema))
            case messages.Error(_, code, message):
                self._end(code, message)
            case _:
                raise ProtocolViolation(
                    f"expected the answer to the subscription, got {type(frame).__name__}"
                )
        self._was_subscribed = True
        yield Subscribed()

    def _take_schema(self, schema: tuple[FieldSchema, ...]) -> None:
        is_other = self.progress.cursor is not None and self.schema not in ((), schema)
        self.schema = schema
        self._columns = frozenset(field.name for field in schema) - _SYSTEM_COLUMNS
        if not self._raw:
            decoders = {field.name: decode_for(field.data_type) for field in schema} | {_SEQ: int}
            self._decoders = {name: decode for name, decode in decoders.items() if decode is not None}
        if is_other and self._whole:
            raise _CannotContinue

    def _deliver_all(self) -> Steps:
        ready = False
        while True:
            if ready:
                frame = yield from self._frame()
            else:
                frame = yield from self._frame_within(self._patience.batch_s)
            match frame:
                case messages.InitialDataBatch(_, rows, control):
                    if control.has_more:
                        yield _send(messages.NextBatch(_SUBSCRIPTION, control.last_seq_id))
                    for change in self._batch_changes(rows):
                        yield Deliver(change)
                    if not control.has_more:
                        ready = self.snapshot_complete = True
                        self._failures = 0
                        yield SnapshotDone()
                case messages.Change():
                    for change in self._frame_changes(frame):
                        yield Deliver(change)
                case messages.Error(_, code, message):
                    self._end(code, message)
                case messages.AuthError(message):
                    raise ConnectionLost(message)
                case messages.AuthSuccess() | messages.SubscriptionAck():
                    pass

    def _end(self, code: str, message: str) -> NoReturn:
        """Say why the server ended the query, unless that is no end for one that may begin anew."""
        if code == _PRUNED and self._whole and self.progress.cursor is not None:
            raise _CannotContinue
        raise LiveError(code, message, self.progress.cursor)

    def _batch_changes(self, rows: list[WireRow]) -> Iterator[Change]:
        for row in rows:
            seq = _seq(row)
            if self.progress.take_row(seq):
                self._failures = 0
                yield Change("snapshot", decode_row(row, self._decoders), None, seq)

    def _frame_changes(self, frame: messages.Change) -> Iterator[Change]:
        rows = frame.rows if frame.rows is not UNSET else []
        olds = frame.old_values if frame.old_values is not UNSET else []
        news = olds if frame.change_type == "delete" else rows
        for index, new in enumerate(news):
            seq = _seq(new)
            if self._whole and frame.change_type != "delete":
                self._expect_columns(new, is_complete=frame.change_type == "insert")
            if self.progress.take_change(seq):
                old = decode_row(olds[index], self._decoders) if index < len(olds) else None
                row = decode_row(new, self._decoders)
                if frame.change_type == "update" and old is not None:
                    # The wire leaves a column out that is NULL now; only its old value shows that it changed.
                    row |= {name: None for name in old if name not in row}
                yield Change(frame.change_type, row, old, seq)

    def _expect_columns(self, row: WireRow, *, is_complete: bool) -> None:
        """Begin anew if the row shows that the table was altered: what older rows have now, nobody told."""
        found = row.keys() - _SYSTEM_COLUMNS
        fits = found == self._columns if is_complete else found <= self._columns
        # Once with a schema, so that a server whose rows never fit theirs is followed all the same.
        if not fits and self.schema != self._misfit:
            self._misfit = self.schema
            raise _CannotContinue

    def _frame(self) -> Generator[Step, Outcome, ServerFrame]:
        """Return the next frame, however late; raise `ConnectionLost` when the server is gone."""
        while True:
            data = yield Receive(self._patience.idle_s)
            if data is None:
                yield Probe()
                data = yield Receive(self._patience.pong_s)
            if data is not None:
                return _decode(data)
            answered = yield Answered()
            if not answered:
                raise ConnectionLost(f"the server has been silent for {self._patience.pong_s} s after a ping")

    def _frame_within(self, timeout_s: float) -> Generator[Step, Outcome, ServerFrame]:
        data = yield Receive(timeout_s)
        if data is None:
            raise ConnectionLost(f"no answer within {timeout_s} s")
        return _decode(data)


def _over_http(account: Account) -> Steps:
    flow = account.login()
    request = next(flow)
    while True:
        answer = yield request
        assert isinstance(answer, HttpAnswer), "an HTTP request is answered by an HTTP answer"
        try:
            request = flow.send(answer)
        except StopIteration:
            return


def _send(frame: messages.Subscribe | messages.NextBatch) -> Send:
    return Send(encode(frame).decode())


def _decode(data: Outcome) -> ServerFrame:
    assert isinstance(data, (str, bytes)), "a frame is text or bytes"
    try:
        return decode_server_frame(data)
    except (FrameMalformed, FrameTooLarge) as error:
        raise ProtocolViolation(f"the server sent a frame that is not understood: {error}") from error


def _seq(row: WireRow) -> int:
    try:
        return int(row[_SEQ])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolViolation(f"a live row has no {_SEQ}") from error
