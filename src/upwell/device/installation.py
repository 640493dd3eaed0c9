"""One installation of an app, as both drivers see it: the file, its capture and its exchanges.

Law: nothing here waits or talks to the network; what needs the server is an exchange, and how it ended is
remembered for `status`.
"""

import base64
import binascii
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, TypeAlias, TypedDict, TypeVar

import msgspec

from upwell.clock import Clock, SystemClock
from upwell.decodable import decodable
from upwell.device.capture import Capture
from upwell.device.conflict import Resolver, server_wins
from upwell.device.exchange import Exchange, answer_to
from upwell.device.failures import AnswerRefused, DeviceError, FileRefused
from upwell.device.file import SyncFile
from upwell.device.report import (
    DeviceStatus,
    DownloadReport,
    HydrateReport,
    PendingChange,
    Progress,
    SyncReport,
    UploadReport,
)
from upwell.device.schema import quoted
from upwell.device.sync import Syncer
from upwell.device.transport import Request, Response, refusal
from upwell.ids import entries_between
from upwell.protocol.sync import DEVICE_TOKEN_PATH, DeviceTokenRequest, DeviceTokenResponse

LOGIN_PATH = "/v1/api/auth/login"
LAST_SYNCED_AT = "last_synced_at"

T = TypeVar("T")

# Table and key of a pending change → the version it goes on top of, and when it was made.
Owed: TypeAlias = dict[tuple[str, str], tuple[int, str]]


class Options(TypedDict, total=False):
    """What may be said when a file is opened, for either driver.

    `source` names this installation; without it a new random one (`new_source`) is stored in the file.
    `upload_limit` and `download_limit` are changes per request. `on_progress` and `resolver` are called while
    the file is being worked on, by the thread that does it; they may read `connection` and `status`.
    """

    source: str | None
    upload_limit: int
    download_limit: int
    resolver: Resolver
    on_progress: Callable[[Progress], None] | None
    new_source: Callable[[], str]
    clock: Clock


_SCHEMA = re.compile("[a-z0-9_]+")


def _new_source() -> str:
    return str(uuid.uuid4())


@dataclass(slots=True)
class Installation:
    """A file with what syncs it; one exchange at a time, and nothing else meanwhile on another thread."""

    file: SyncFile
    capture: Capture
    syncer: Syncer
    clock: Clock
    # What the watch stream last told, and why the last exchange failed.
    announced: int = 0
    last_error: str | None = field(default=None)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        schema: str,
        tables: Sequence[str],
        source: str | None = None,
        upload_limit: int = 200,
        download_limit: int = 1000,
        resolver: Resolver = server_wins,
        on_progress: Callable[[Progress], None] | None = None,
        new_source: Callable[[], str] = _new_source,
        clock: Clock | None = None,
    ) -> Self:
        """Open or create the file and capture `tables`; raise `TableRefused` and `FileRefused`."""
        if not _SCHEMA.fullmatch(schema):
            raise FileRefused(f"schema {schema!r} can't be a namespace: it has a–z, 0–9 and _ only")
        file = SyncFile.open(path, source, new_source)
        try:
            capture = Capture(file)
            capture.register(tables)
            syncer = Syncer(
                file,
                capture,
                schema=schema,
                upload_limit=upload_limit,
                download_limit=download_limit,
                resolver=resolver,
                on_progress=on_progress,
            )
            return cls(file, capture, syncer, clock or SystemClock())
        except BaseException:
            file.connection.close()
            raise

    def close(self) -> None:
        """Close the connection that syncs."""
        self.file.connection.close()

    # --- exchanges

    def sign_in(self, user: str, token: str | None, password: str | None) -> Exchange[str]:
        """Get a device token and make the file `user`'s; requests carry the tokens that they need."""
        if (token is None) == (password is None):
            raise DeviceError("give either a token or a password")
        owner = self.file.identity().user
        if owner not in ("", user):
            self.file.claim(user)
        access = token or (yield from _log_in(user, password or ""))
        device_token = yield from self._device_token(user, access)
        self.file.claim(user)
        self.announced = 0
        return device_token

    def sync(self) -> Exchange[SyncReport]:
        """One full round."""
        return self._remembered(self._round())

    def upload(self) -> Exchange[UploadReport]:
        """Send what is pending."""
        return self._remembered(self.syncer.upload())

    def download(self) -> Exchange[DownloadReport]:
        """Fetch what others changed."""
        return self._remembered(self.syncer.download())

    def hydrate(self, page_rows: int) -> Exchange[HydrateReport]:
        """Fetch everything."""
        return self._remembered(self.syncer.hydrate(page_rows))

    def _round(self) -> Exchange[SyncReport]:
        report = yield from self.syncer.sync()
        now = datetime.fromtimestamp(self.clock.now_us() / 1_000_000, UTC)
        with self.file.transaction():
            self.file.put(LAST_SYNCED_AT, now.isoformat(timespec="milliseconds"))
        return report

    def _remembered(self, exchange: Exchange[T]) -> Exchange[T]:
        try:
            result = yield from exchange
        # A resolver of the app may raise anything, and that is told, too.
        except Exception as failure:
            self.last_error = str(failure) or type(failure).__name__
            raise
        self.last_error = None
        return result

    def _device_token(self, user: str, token: str) -> Exchange[str]:
        source = self.file.identity().source
        claims = _claims(token)
        if "did" not in claims:
            body = msgspec.json.encode(DeviceTokenRequest(device=source))
            response = yield from answer_to(Request("POST", DEVICE_TOKEN_PATH, body=body, token=token))
            token = _answer(response, DeviceTokenResponse).token
            claims = _claims(token)
        if claims.get("did", source) != source:
            raise FileRefused(f"the token is for device {claims['did']!r}, the file's source is {source!r}")
        if claims.get("sub", user) != user:
            raise FileRefused(f"the token is for user {claims['sub']!r}, not {user!r}")
        return token

    # --- the file alone

    def register(self, tables: Sequence[str]) -> None:
        """Capture more tables; rows that they have already are queued."""
        self.capture.register(tables)

    def wipe(self) -> None:
        """Empty the file for another user; raise `PendingChanges` if an edit would be lost."""
        self.file.wipe([quoted(shape.name) for shape in self.capture.tables])
        with self.file.transaction():
            self.file.put(LAST_SYNCED_AT, "")
        self.announced = 0

    def discard(self, table: str, key: str) -> bool:
        """Give up the quarantined change of a row."""
        return self.syncer.discard(table, key)

    def retry_refused(self) -> int:
        """Queue all quarantined changes again; return how many."""
        return self.syncer.retry_refused()

    def pending(self) -> list[PendingChange]:
        """What waits for upload, in the order of the edits."""
        rows = self.file.connection.execute(
            "SELECT table_name, pk_uuid, op, base_version, payload, change_id, queued_at,"
            " quarantined, reason, detail FROM _sync_pending ORDER BY change_id"
        )
        return [
            PendingChange(table, key, op, base, payload, change_id, queued_at, bool(held), reason, detail)
            for table, key, op, base, payload, change_id, queued_at, held, reason, detail in rows
        ]

    def status(self, *, is_signed_in: bool, is_running: bool) -> DeviceStatus:
        """Where the file stands; costs a few counts."""
        identity, cursor = self.file.identity(), self.file.cursor()
        return DeviceStatus(
            user=identity.user,
            source=identity.source,
            is_signed_in=is_signed_in and not self.file.is_others,
            is_running=is_running,
            is_hydrated=self.syncer.is_hydrated(),
            pending=self.file.pending_count(),
            quarantined=self.file.count("quarantined", "_sync_pending"),
            withheld=self.file.count("true", "_sync_withheld"),
            conflicts=self.file.count("true", "_sync_conflicts"),
            cursor=cursor,
            lag=entries_between(cursor, max(self.announced, self.file.head())),
            next_change_id=self.file.next_change_id(),
            last_synced_at=self.file.find(LAST_SYNCED_AT) or None,
            last_error=self.last_error or self.syncer.waiting(),
        )

    def data_version(self) -> int:
        """A number that is another one after any other connection has committed."""
        return int(self.file.connection.execute("PRAGMA data_version").fetchone()[0])

    def has_fresh_edits(self) -> bool:
        """True if there is a pending change that was never refused."""
        found = self.file.connection.execute(
            "SELECT 1 FROM _sync_pending WHERE quarantined = 0 AND attempts = 0 LIMIT 1"
        ).fetchone()
        return found is not None

    def owed(self) -> Owed:
        """What has to be acknowledged by the server: all that is pending but for the quarantine."""
        rows = self.file.connection.execute(
            "SELECT table_name, pk_uuid, base_version, queued_at FROM _sync_pending WHERE quarantined = 0"
        )
        return {(table, key): (base, queued_at) for table, key, base, queued_at in rows}

    def still_owed(self, owed: Owed) -> list[str]:
        """Say which of the changes `owed` were not acknowledged since, and why as far as known."""
        rows = self.file.connection.execute(
            "SELECT table_name, pk_uuid, base_version, queued_at, reason FROM _sync_pending"
            " WHERE quarantined = 0 ORDER BY change_id"
        )
        return [
            f"{table} {key} ({reason or 'not answered'})"
            for table, key, base, queued_at, reason in rows
            if _is_same_change(owed.get((table, key)), base, queued_at)
        ]


def _is_same_change(owed: tuple[int, str] | None, base: int, queued_at: str) -> bool:
    # An edit of later goes on top of the version that acknowledged the earlier one.
    return owed is not None and (owed[0] == base or owed[1] == queued_at)


@decodable
class _Login(msgspec.Struct):
    access_token: str


def _log_in(user: str, password: str) -> Exchange[str]:
    body = msgspec.json.encode({"user": user, "password": password})
    response = yield from answer_to(Request("POST", LOGIN_PATH, body=body))
    return _answer(response, _Login).access_token


def _answer(response: Response, kind: type[T]) -> T:
    if response.status != 200:
        raise refusal(response)
    try:
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.MsgspecError as cause:
        raise AnswerRefused(f"not the protocol's answer: {cause}") from cause


def _claims(token: str) -> dict[str, Any]:
    """Read the claims of a JWT without checking them (the server does); none if it isn't one."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(text, type=dict[str, Any])
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        return {}
