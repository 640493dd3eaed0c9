"""The device sync wire: bodies of upload, download, hydration, device tokens and their errors.

Law: payloads stay the bytes that came in (`msgspec.Raw`); numbers are JSON integers; lists are never null;
a key that doesn't apply is absent, except `payload` of a server row and of a download, which may be null.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from upwell.decodable import decodable

UPLOAD_PATH = "/sync/upload"
DOWNLOAD_PATH = "/sync/download"
HYDRATE_PATH = "/sync/hydrate"
SCHEMA_VERSION_PATH = "/sync/schema-version"
WATCH_PATH = "/sync/watch"
FAILURES_PATH = "/admin/materialize-failures"
RETRY_PATH = "/admin/materialize-failures/retry"
SIGNIN_PATH = "/dummy-signin"
DEVICE_TOKEN_PATH = "/v1/api/auth/device"

Op = Literal["INSERT", "UPDATE", "DELETE"]
INT64_MAX = (1 << 63) - 1
Int64 = Annotated[int, Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]

NULL = Raw(b"null")

# Values of `Invalid.reason`. A device quarantines a change for BAD_PAYLOAD and BATCH_TOO_LARGE only (the
# reference's drops it for BAD_PAYLOAD and UNREGISTERED_TABLE); any other reason means "keep and retry".
FK_MISSING = "fk_missing"
HAS_CHILDREN = "has_children"
INVALID_VALUE = "invalid_value"
CONSTRAINT_VIOLATION = "constraint_violation"
BAD_PAYLOAD = "bad_payload"
UNREGISTERED_TABLE = "unregistered_table"
TOO_MANY_CHANGES = "too_many_changes"
BATCH_TOO_LARGE = "batch_too_large"
HISTORY_PRUNED = "history_pruned"


class UploadChange(Struct, kw_only=True):
    """One change of one row; `server_version` is the version that the device started from (0: a new row)."""

    source_change_id: Int64
    table: str
    op: str
    pk: str
    server_version: Int64
    schema: str = "public"
    payload: Raw | UnsetType = UNSET


class UploadRequest(Struct, kw_only=True):
    """The body of an upload; `last_server_seq_seen` is informational. Go writes an empty list as null."""

    changes: list[UploadChange] | None = None
    last_server_seq_seen: Any = 0


class Invalid(Struct, kw_only=True):
    """Why a change was not applied; `details` is an object whose keys depend on the reason."""

    reason: str
    details: Raw = Raw(b"{}")


class ServerRow(Struct, kw_only=True):
    """The row as the server has it, sent with a conflict; `payload` is null when the row is deleted."""

    schema_name: str
    table_name: str
    id: str
    server_version: Int64
    deleted: bool
    payload: Raw = NULL


class Status(Struct, kw_only=True, omit_defaults=True):
    """The answer to one change: applied, conflict or invalid (others are kept by devices and retried).

    Of a repetition (`duplicate`) it tells the version that the row had by the change itself, 0 if there was
    none, and the current one.
    """

    source_change_id: Int64
    status: str
    new_server_version: Int64 | None = None
    server_row: ServerRow | None = None
    message: str | None = None
    invalid: Invalid | None = None
    current_server_version: Int64 | None = None
    current_deleted: bool | None = None
    duplicate: bool | None = None
    applied_server_version: Int64 | None = None


class UploadResponse(Struct, kw_only=True):
    """One status per change, in the order of the request."""

    accepted: bool
    highest_server_seq: Int64
    statuses: list[Status]


class DownloadChange(Struct, kw_only=True):
    """One entry of the user's log; `payload` is null for DELETE."""

    server_id: Int64
    schema: str
    table: str
    op: str
    pk: str
    server_version: Int64
    deleted: bool
    source_id: str
    source_change_id: Int64
    ts: str
    payload: Raw = NULL


class DownloadResponse(Struct, kw_only=True, omit_defaults=True):
    """A page of the log after a cursor; `stream_id` changes when cursors of before mean nothing any more.

    `table_numbers` has a number for each table of the schema that was asked for; one made anew has another.
    """

    changes: list[DownloadChange]
    has_more: bool
    next_after: Int64
    window_until: Int64
    stream_id: str = ""
    max_server_id: Int64 | None = None
    table_numbers: dict[str, int] | None = None


class TablePage(Struct, kw_only=True, omit_defaults=True):
    """Live rows of one table with their versions, in the order of their keys.

    A row holds the values of `columns`, of which the first is the key; a shorter row lacks the last of them.
    `exact` has, by index of the row, payloads that columns can't give back; such a row is its key alone.
    """

    schema: str
    table: str
    columns: list[str]
    rows: list[Sequence[Any]]
    versions: list[int]
    exact: dict[int, Raw] = {}


class HydrateResponse(Struct, kw_only=True):
    """A page of live rows, parents first; after the last page the log goes on from `next_after`."""

    tables: list[TablePage]
    has_more: bool
    cursor: str
    next_after: Int64
    next_change_id: Int64
    stream_id: str = ""
    max_server_id: Int64 | None = None
    table_numbers: dict[str, int] | None = None


class MaterializeFailure(Struct, kw_only=True, omit_defaults=True):
    """A change that was refused as it is and that the server keeps; `error` is its reason and a message."""

    id: int
    user_id: str
    schema: str
    table: str
    pk: str
    attempted_version: int
    op: str
    error: str
    first_seen: str
    retry_count: int
    source_id: str
    source_change_id: int
    payload: Raw | UnsetType = UNSET


@decodable
class RetryRequest(Struct, kw_only=True):
    """Which failure to retry; the query parameter `id` says it as well."""

    id: Int64


@decodable
class SigninRequest(Struct, kw_only=True):
    """A sign-in of a development server: any password opens."""

    user: str = ""
    password: str = ""
    device: str = ""


@decodable
class SchemaVersion(Struct, kw_only=True):
    """The version of the synced schema."""

    schema_version: int


@decodable
class DeviceTokenRequest(Struct, kw_only=True):
    """A logged-in user asks for a token of one device (its source)."""

    device: str


@decodable
class DeviceTokenResponse(Struct, kw_only=True):
    """A token with `sub` and `did`, valid for `expires_in` seconds."""

    token: str
    expires_in: int
    user: str
    device: str


@decodable
class SyncError(Struct, kw_only=True):
    """The body of every answer that is not 200."""

    error: str
    message: str = ""


def is_null(payload: Raw | UnsetType) -> bool:
    """Tell whether a payload is absent or JSON null."""
    return payload is UNSET or bytes(payload).strip() in (b"", b"null")


encode = msgspec.json.Encoder().encode
decode_upload_request = msgspec.json.Decoder(UploadRequest).decode
decode_upload_response = msgspec.json.Decoder(UploadResponse).decode
decode_download_response = msgspec.json.Decoder(DownloadResponse).decode
decode_hydrate_response = msgspec.json.Decoder(HydrateResponse).decode
