"""The messages of the SQL wire: HTTP bodies, and the frames of live queries as two closed unions.

Law: what is declared here is what the wire says, name for name and in this order; a field that the
contract omits is `UNSET` here, never null.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from upwell.decodable import decodable

Cell = Any
"""One cell as JSON has it: 64-bit integers and DECIMAL as strings, TIMESTAMP as microseconds."""
WireRow = dict[str, Cell]
"""One row of a live query, keyed by column name."""
DataType = str | dict[str, int | dict[str, int]]
"""A column's type: `"BigInt"`, `{"Embedding": 3}`, `{"Decimal": {"precision": 10, "scale": 2}}`."""
Param = str | int | float | bool | None
ChangeType = Literal["insert", "update", "delete"]
BatchStatus = Literal["loading", "loading_batch", "ready"]
Serialization = Literal["json", "msgpack"]
Compression = Literal["none", "gzip"]

batch_size_default = 1000
user_chars_max = 128
password_chars_max = 256

UserName = Annotated[str, Meta(max_length=user_chars_max)]
Password = Annotated[str, Meta(max_length=password_chars_max)]
SeqBound = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
RowCount = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


# SQL over HTTP


class SqlStatement(Struct, frozen=True, omit_defaults=True):
    """One of `SqlRequest.statements`, with parameters or rows of its own."""

    sql: str
    params: list[Any] | None = None
    rows: list[list[Any]] | None = None


class SqlRequest(Struct, frozen=True, omit_defaults=True):
    """The body of `POST /v1/api/sql`. Values stay unchecked here, so that a refusal can name the one.

    Either `sql` with `params`; or `sql` with `rows`, to run one INSERT, UPDATE or DELETE for each list of
    parameters, all or none; or `statements`, one after the other, with `atomic` all or none.
    """

    sql: str | None = None
    params: list[Any] | None = None
    namespace_id: str | None = None
    rows: list[list[Any]] | None = None
    statements: list[SqlStatement] | None = None
    atomic: bool = False


class FieldSchema(Struct, frozen=True, omit_defaults=True):
    """One column of a result. `flags` is a set of `pk`, `nn`, `uq`, omitted when empty."""

    name: str
    data_type: DataType
    index: int
    flags: tuple[str, ...] = ()


class StatementResult(Struct, frozen=True, kw_only=True):
    """What one statement gave: `schema` and `rows` (rows × columns), or a `message`."""

    schema: list[FieldSchema] | UnsetType = UNSET
    rows: list[list[Cell]] | UnsetType = UNSET
    row_count: int
    message: str | UnsetType = UNSET
    as_user: str


class ErrorBody(Struct, frozen=True):
    """Why a request failed; `details` is the offending SQL, only for administrators."""

    code: str
    message: str
    details: str | UnsetType | None = UNSET


@decodable
class SqlResponse(Struct, frozen=True):
    """The answer of the SQL endpoint. `took` is in milliseconds; success omits `error` or has it null."""

    status: Literal["success", "error"]
    results: list[StatementResult]
    took: float
    error: ErrorBody | UnsetType | None = UNSET


# Signing in


@decodable
class LoginRequest(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/api/auth/login`; `username` is another name of `user`."""

    password: Password
    user: UserName | None = None
    username: UserName | None = None

    @property
    def name(self) -> str | None:
        """The user's name under either field, None if both are missing."""
        return self.user if self.user is not None else self.username


@decodable
class SetupRequest(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/api/auth/setup`; `username` is another name of `user`."""

    password: Password
    root_password: Password
    user: UserName | None = None
    username: UserName | None = None
    email: str | None = None

    @property
    def name(self) -> str | None:
        """The first administrator's name under either field, None if both are missing."""
        return self.user if self.user is not None else self.username


class UserBody(Struct, frozen=True, kw_only=True):
    """A user as the sign-in endpoints show them; times are RFC 3339."""

    id: str
    role: str
    email: str | None = None
    created_at: str
    updated_at: str


@decodable
class LoginResponse(Struct, frozen=True):
    """The answer to a login or a refresh."""

    user: UserBody
    admin_ui_access: bool
    expires_at: str
    access_token: str
    refresh_token: str | UnsetType = UNSET
    refresh_expires_at: str | UnsetType = UNSET


@decodable
class AuthFault(Struct, frozen=True):
    """The error body of the sign-in endpoints; `error` is a kind such as `unauthorized`."""

    error: str
    message: str


@decodable
class MeResponse(Struct, frozen=True):
    """The answer of `GET /v1/api/auth/me`."""

    user: UserBody
    admin_ui_access: bool


@decodable
class SetupResponse(Struct, frozen=True):
    """The answer to a set-up: the account of role dba that it made."""

    user: UserBody
    message: str


@decodable
class SetupStatus(Struct, frozen=True):
    """The answer of `GET /v1/api/auth/status`."""

    needs_setup: bool
    message: str


class MessageResponse(Struct, frozen=True):
    """An answer that only says what was done."""

    message: str


@decodable
class HealthResponse(Struct, frozen=True):
    """The answer of `GET /health`."""

    status: str
    version: str
    api_version: str
    build_date: str


class ClusterNode(Struct, frozen=True, kw_only=True):
    """One node as `GET /v1/api/cluster/health` shows it."""

    node_id: int
    role: str
    status: str
    api_addr: str
    is_self: bool
    is_leader: bool
    replication_lag: int | None
    catchup_progress_pct: int | None
    hostname: str
    memory_usage_mb: int
    cpu_usage_percent: float
    uptime_seconds: int
    uptime_human: str


@decodable
class ClusterHealth(Struct, frozen=True, kw_only=True):
    """The answer of `GET /v1/api/cluster/health`; a server alone is one node, the leader."""

    status: str
    version: str
    build_date: str
    is_cluster_mode: bool
    cluster_id: str
    node_id: int
    is_leader: bool
    total_groups: int
    groups_leading: int
    current_term: int
    last_applied: int | None
    millis_since_quorum_ack: int | None
    nodes: list[ClusterNode]


# Live queries: client → server


class Protocol(Struct, frozen=True):
    """How frames after the sign-in are written. Who asks for nothing gets large ones as gzip."""

    serialization: Serialization = "json"
    compression: Compression = "gzip"


class Authenticate(Struct, frozen=True, tag_field="type", tag="authenticate"):
    """Sign in by message; the header of the handshake is the other way."""

    token: str
    method: Literal["jwt"] = "jwt"
    protocol: Protocol = Protocol()


class SubscriptionOptions(Struct, frozen=True, omit_defaults=True):
    """What a subscription starts with. Precedence: `after`, then `last_rows`, then the whole snapshot.

    `view` asks for rows that enter or leave the filter as inserts and deletes.
    """

    batch_size: RowCount | None = None
    last_rows: RowCount | None = None
    from_seq: SeqBound | None = field(default=None, name="from")
    from_seq_id: SeqBound | None = None
    view: bool = False

    @property
    def after(self) -> int | None:
        """The seq to resume after, under either of its names."""
        return self.from_seq if self.from_seq is not None else self.from_seq_id


class Subscription(Struct, frozen=True):
    """A live query. Without options (absent or null) it has no snapshot: changes only."""

    id: str
    sql: str
    options: SubscriptionOptions | None = None


class Subscribe(Struct, frozen=True, tag_field="type", tag="subscribe"):
    """Start a live query; an id that is in use is replaced."""

    subscription: Subscription


class NextBatch(Struct, frozen=True, tag_field="type", tag="next_batch"):
    """Ask for the snapshot's next batch, after the seq that ended the last one."""

    subscription_id: str
    last_seq_id: SeqBound | None = None


class Unsubscribe(Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """End a live query; there is no answer."""

    subscription_id: str


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Say that the client lives; there is no answer."""


ClientFrame = Authenticate | Subscribe | NextBatch | Unsubscribe | Ping


# Live queries: server → client


class AuthSuccess(Struct, frozen=True, tag_field="type", tag="auth_success"):
    """The socket is signed in; `protocol` is what later frames follow."""

    user: str
    role: str
    protocol: Protocol


class AuthError(Struct, frozen=True, tag_field="type", tag="auth_error"):
    """The socket isn't signed in, and is about to be closed."""

    message: str


class BatchControl(Struct, frozen=True):
    """Where a snapshot stands. `last_seq_id` is the `_seq` of the batch's last row, null if it is empty."""

    batch_num: int
    has_more: bool
    status: BatchStatus
    last_seq_id: int | None


class SubscriptionAck(Struct, frozen=True, tag_field="type", tag="subscription_ack"):
    """The live query stands; `batch_control` is that of batch 0."""

    subscription_id: str
    total_rows: int
    batch_control: BatchControl
    schema: list[FieldSchema]


class InitialDataBatch(Struct, frozen=True, tag_field="type", tag="initial_data_batch"):
    """Rows of the snapshot, ascending by `_seq`."""

    subscription_id: str
    rows: list[WireRow]
    batch_control: BatchControl


class Change(Struct, frozen=True, tag_field="type", tag="change"):
    """Changed rows: an insert has `rows`, an update both, a delete `old_values`."""

    subscription_id: str
    change_type: ChangeType
    rows: list[WireRow] | UnsetType = UNSET
    old_values: list[WireRow] | UnsetType = UNSET


class Error(Struct, frozen=True, tag_field="type", tag="error"):
    """Something was refused; `subscription_id` is the live query's, or a word such as `protocol`."""

    subscription_id: str
    code: str
    message: str


ServerFrame = AuthSuccess | AuthError | SubscriptionAck | InitialDataBatch | Change | Error
