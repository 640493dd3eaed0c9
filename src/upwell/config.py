"""Settings: file < environment < command line, frozen, every limit with its unit.

A setting `host` is `host = …` in the TOML file, `UPWELL_HOST` in the environment, `--host` on the
command line. Law: an unknown or unreadable setting stops the start with a sentence, nothing is guessed.
"""

import inspect
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from upwell.errors import StartRefused
from upwell.issuer import Issuer, read_issuers

DEFAULT_JWT_SECRET = "upwell-development-secret-change-me"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
PASSWORD_BYTES_MAX = 72  # bcrypt reads no more
ENVIRONMENT_PREFIX = "UPWELL_"
MASK = "***"
_AUTH = "auth"
# Read by the command line (`--config`, `upwell sql`) or by tests; not settings of the server.
_NOT_SETTINGS = frozenset(
    ENVIRONMENT_PREFIX + name
    for name in ("CONFIG", "URL", "USER", "PASSWORD", "CRASH_POINT", "HOLD_POINT", "HOLD_FILE")
)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a server; `_s` is seconds, `_bytes_max` bytes, `_BOUNDS` says what is in reach."""

    data_dir: Path = Path("upwell-data")  # a directory; made if it isn't there
    host: str = "127.0.0.1"  # address or name to listen on
    port: int = 8080  # TCP port; 0: the system picks one
    root_password: str = ""  # text of 72 bytes at most; empty: root can't log in
    jwt_secret: str = DEFAULT_JWT_SECRET  # text of 16 characters at least, which signs the tokens
    jwt_expiry_hours: int = 24  # hours that an access token is accepted
    device_token_expiry_hours: int = 24 * 30  # hours that a device's token is accepted
    durability: str = "group"  # "group": acknowledge after the sync to disk; "async": before
    slow_request_s: float = 1.0  # seconds from which on a request is logged as slow
    log_level: str = "info"  # the lowest level that is logged: debug, info, warning, error
    schema_version: int = 1  # number of the app's schema, told to devices that ask
    shape_cache: bool = True  # whether prepared statements are kept for the next of their shape
    bcrypt_cost: int = 10  # binary logarithm of the rounds of a password's hash
    enforce_password_complexity: bool = False  # whether weak passwords are refused in SQL too
    public_origin: str = ""  # how clients reach this server, as https://db.example; empty: host and port
    allow_remote_setup: bool = False  # whether other machines may do the first set-up
    allow_remote_health: bool = False  # whether other machines may ask /health and /metrics
    cors_origins: str = ""  # origins with commas whose pages may ask, such as https://app.example; empty: all
    cookie_secure: bool = False  # whether browsers keep the sign-in's cookies to https
    auth_attempts_per_s_max: int = 50  # logins, refreshes and set-ups per second of one address
    queries_per_s_max: int = 100_000  # SQL requests per second of one user
    error_details: bool = False  # whether roles user and service are told all that administrators are
    audit_retention_days: int = 90  # days that entries of the audit log stay; 0: for ever
    request_body_bytes_max: int = 10 * 1024 * 1024  # bytes of one HTTP request's body
    sql_bytes_max: int = 1024 * 1024  # bytes of one SQL text
    statement_timeout_s: float = 60.0  # seconds that one statement may take
    query_limit_default: int = 0  # rows of a JSON answer to a query without LIMIT; 0: all
    query_limit_max: int = 0  # rows of a JSON answer to a query with LIMIT; 0: as it says
    upload_changes_max: int = 10_000  # changes in one upload of a device
    upload_payload_bytes_max: int = 0  # bytes of one change's payload; 0: as many as a row can hold
    upload_batch_bytes_max: int = 32 * 1024 * 1024  # bytes of an upload; of a larger one devices send halves
    upload_body_bytes_max: int = 512 * 1024 * 1024  # bytes of an upload that is read at all, one at a time
    dev: bool = False  # development only: POST /dummy-signin gives a device token to whoever asks
    log_retention_s: float = 30.0 * 24 * 3600  # seconds that changes stay; devices away longer start anew
    log_bytes_max: int = 10 * 1024**3  # bytes of the newest changes that stay; older ones go before
    log_trim_interval_s: float = 3_600.0  # seconds between two trims of the log
    flush_policy: str = "rows:100000,interval:86400"  # of tables without FLUSH_POLICY; per partition
    flush_check_interval_s: float = 1.0  # seconds between two looks for partitions that are due for a flush
    flush_small_rows: int = 100  # changes below which a partition is small
    flush_small_age_s: float = 3_600.0  # seconds that a small one may wait for more changes
    flush_small_partitions: int = 100  # small ones of a table that are flushed without waiting
    jobs_max: int = 4  # background jobs that run at the same time
    job_retention_s: float = 7.0 * 24 * 3600  # seconds that jobs which ended stay in system.jobs
    job_records_max: int = 2_000  # jobs which ended that stay in system.jobs
    stream_expiry_interval_s: float = 0.5  # seconds between two looks for rows of STREAM tables that expired
    stream_eviction_interval_s: float = 60.0  # seconds between two jobs that clear the disk of them
    stream_grace_s: float = 60.0  # seconds that readers who are behind can still learn of such a row's end
    device_records_interval_s: float = 30.0  # seconds between two records of where the devices are
    secrets_dir: Path = Path("/run/secrets")  # a directory; files with secrets that storages refer to
    cold_cache_bytes_max: int = 10 * 1024**3  # bytes of copies of files that are in object stores
    watch_streams_max: int = 10_000  # devices that wait at /sync/watch at the same time
    ws_auth_timeout_s: float = 3.0  # seconds until a new socket must have authenticated
    ws_client_timeout_s: float = 10.0  # seconds of silence until a socket is closed
    ws_messages_per_s_max: int = 10_000  # messages per second of one socket; what exceeds it isn't read
    ws_subscriptions_max: int = 100  # live queries of one socket
    ws_subscriptions_per_user_max: int = 10_000  # live queries of one user, on all sockets together
    ws_lag_s_max: float = 600.0  # seconds that a live query may be behind until it is ended
    ws_lag_bytes_max: int = 256 * 1024  # bytes that wait for a slow socket
    cold_grace_s: float = 2.0  # seconds that a replaced Parquet file stays for readers from outside
    drain_s: float = 5.0  # seconds that requests under way get to finish at the end
    issuers: tuple[Issuer, ...] = ()  # who else's tokens open the server: [auth.issuers.NAME] of the file

    def refuse_unsafe(self) -> None:
        """Raise `StartRefused` if the server would be open to strangers or the settings make no sense."""
        self.refuse_senseless()
        if len(self.jwt_secret) < 16:
            raise StartRefused("jwt_secret has fewer than 16 characters; set UPWELL_JWT_SECRET")
        if self.host not in LOOPBACK_HOSTS and self.jwt_secret == DEFAULT_JWT_SECRET:
            raise StartRefused(
                f"refusing to listen on {self.host} with the default secret: anybody could sign tokens. "
                "Set UPWELL_JWT_SECRET to a long random text"
            )
        if len(self.root_password.encode()) > PASSWORD_BYTES_MAX:
            raise StartRefused(f"root_password has more than {PASSWORD_BYTES_MAX} bytes")
        if self.host not in LOOPBACK_HOSTS and self.dev:
            raise StartRefused(
                f"refusing to listen on {self.host} with dev: anybody could sign in as anybody"
            )
        if self.host not in LOOPBACK_HOSTS and not self.root_password:
            raise StartRefused(
                f"refusing to listen on {self.host} without a root password; set UPWELL_ROOT_PASSWORD"
            )

    def refuse_senseless(self) -> None:
        """Raise `StartRefused` if a setting is out of its bounds."""
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also for nan, which is neither
                raise StartRefused(f"{name} is {low}..{high}, not {value}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise StartRefused(
                    f"{name} is {' or '.join(map(repr, choices))}, not {getattr(self, name)!r}"
                )
        if not self.host.strip():
            raise StartRefused("host is empty; give an address to listen on, such as 127.0.0.1")
        if self.public_origin and not re.fullmatch(r"https?://[^/\s]+/?", self.public_origin):
            raise StartRefused("public_origin is empty, or as https://db.example: a scheme and a host")

    @property
    def origin(self) -> str:
        """How clients reach the server, as `http://host:port`."""
        return self.public_origin.rstrip("/") or f"http://{self.host}:{self.port}"


_HOURS_MAX = 24 * 365 * 100
_SECONDS_MAX = 24 * 3600
_BYTES_MAX = 1024**3
_COUNT_MAX = 1_000_000
# Lowest and highest value of every number.
_BOUNDS = {
    "port": (0, 65_535),
    "jwt_expiry_hours": (1, _HOURS_MAX),
    "device_token_expiry_hours": (1, _HOURS_MAX),
    "schema_version": (0, 2**31 - 1),
    "bcrypt_cost": (4, 16),
    "auth_attempts_per_s_max": (1, _COUNT_MAX),
    "queries_per_s_max": (1, _COUNT_MAX),
    "audit_retention_days": (0, 36_500),
    "cold_cache_bytes_max": (0, 2**63 - 1),
    "request_body_bytes_max": (1, _BYTES_MAX),
    "slow_request_s": (0, _SECONDS_MAX),
    "sql_bytes_max": (1, _BYTES_MAX),
    "statement_timeout_s": (0.001, _SECONDS_MAX),
    "query_limit_default": (0, _COUNT_MAX),
    "query_limit_max": (0, _COUNT_MAX),
    "upload_changes_max": (1, _COUNT_MAX),
    "upload_payload_bytes_max": (0, _BYTES_MAX),
    "upload_batch_bytes_max": (1, _BYTES_MAX),
    "upload_body_bytes_max": (1, _BYTES_MAX),
    "log_retention_s": (1, _HOURS_MAX * 3600),
    "log_bytes_max": (64 * 1024, 2**63 - 1),
    "log_trim_interval_s": (0.1, _SECONDS_MAX),
    "flush_check_interval_s": (0.01, _SECONDS_MAX),
    "flush_small_rows": (1, _COUNT_MAX),
    "flush_small_age_s": (0, _HOURS_MAX * 3600),
    "flush_small_partitions": (0, _COUNT_MAX),
    "jobs_max": (1, 64),
    "job_retention_s": (1, _HOURS_MAX * 3600),
    "job_records_max": (100, _COUNT_MAX),
    "stream_expiry_interval_s": (0.01, _SECONDS_MAX),
    "stream_eviction_interval_s": (0.01, _SECONDS_MAX),
    "stream_grace_s": (0, _SECONDS_MAX),
    "device_records_interval_s": (0.01, _SECONDS_MAX),
    "watch_streams_max": (0, _COUNT_MAX),
    "ws_auth_timeout_s": (0.001, _SECONDS_MAX),
    "ws_client_timeout_s": (0.001, _SECONDS_MAX),
    "ws_messages_per_s_max": (1, _COUNT_MAX),
    "ws_subscriptions_max": (1, _COUNT_MAX),
    "ws_subscriptions_per_user_max": (1, _COUNT_MAX),
    "ws_lag_s_max": (0.1, _SECONDS_MAX),
    "ws_lag_bytes_max": (1, _BYTES_MAX),
    "cold_grace_s": (0, _SECONDS_MAX),
    "drain_s": (0, _SECONDS_MAX),
}
_CHOICES = {"durability": ("group", "async"), "log_level": ("debug", "info", "warning", "error")}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_SECRETS = frozenset({"root_password", "jwt_secret"})
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def load_config(
    *, file: Path | None, environment: Mapping[str, str] = os.environ, options: Mapping[str, object]
) -> Config:
    """Merge the three sources; `options` come from the command line, None means not given."""
    return load_settings(file=file, environment=environment, options=options)[0]


def load_settings(
    *, file: Path | None, environment: Mapping[str, str] = os.environ, options: Mapping[str, object]
) -> tuple[Config, dict[str, str]]:
    """Return the merged settings, and for each that was given where it comes from."""
    hints = get_type_hints(Config)
    given = {} if file is None else _from_file(file)
    issuers = read_issuers(given.pop(_AUTH, {}), Path() if file is None else file.parent)
    settings: dict[str, object] = dict(given)
    origins = dict.fromkeys([*given, *(["issuers"] if issuers else [])], f"file {file}")
    for name, text in _from_environment(environment).items():
        settings[name] = _converted(name, text, hints[name], _read)
        origins[name] = f"environment {ENVIRONMENT_PREFIX}{name.upper()}"
    for name, value in options.items():
        if value is not None:
            settings[name] = value
            origins[name] = f"option --{name.replace('_', '-')}"
    values: dict[str, Any] = {
        name: _converted(name, value, hints[name], _strict) for name, value in settings.items()
    }
    config = Config(**values, issuers=issuers)
    config.refuse_senseless()
    return config, origins


def shown(config: Config) -> dict[str, str]:
    """Return the settings as TOML has them, by name; secrets are masked."""
    return {
        name: _toml(MASK if name in _SECRETS and getattr(config, name) else getattr(config, name))
        for name in _known()
    }


def descriptions() -> dict[str, str]:
    """Return what stands behind each setting above, by name; nothing where the source isn't at hand."""
    try:
        source = inspect.getsource(Config)
    except OSError:
        return {}
    return dict(re.findall(r"^    (\w+): [^#\n]*?  # (.+)$", source, re.MULTILINE))


def shown_issuer(issuer: Issuer) -> dict[str, str]:
    """Return the settings of an issuer as TOML has them, by name; its secret is masked."""
    return {
        field.name: _toml(MASK if field.name == "secret" else value)
        for field in fields(issuer)
        if field.name != "name" and (value := getattr(issuer, field.name))
    }


def _toml(value: object) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else json.dumps(value, default=str, ensure_ascii=False)
    )


def _known() -> dict[str, "Field[Any]"]:
    """Return the settings that have a name of their own in all three sources."""
    return {field.name: field for field in fields(Config) if field.name != "issuers"}


def _from_file(file: Path) -> dict[str, object]:
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a ValueError: no UTF-8, or no TOML
        raise StartRefused(f"config file {file} can't be read: {error}") from error
    unknown = sorted(set(settings) - set(_known()) - {_AUTH})
    if unknown:
        raise StartRefused(f"config file {file} has unknown settings: {', '.join(unknown)}")
    return settings


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _NOT_SETTINGS:
            setting = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            if setting not in _known():
                raise StartRefused(f"environment variable {name} is no setting of this server")
            found[setting] = value
    return found


def _converted(name: str, value: object, kind: type, convert: Callable[[Any, type], object]) -> object:
    try:
        return convert(value, kind)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        shown = "what was given" if name in _SECRETS else repr(value)
        raise StartRefused(f"setting {name} can't be {shown}: it is {_KINDS[kind]}") from error


def _read(text: str, kind: type) -> object:
    """Return what a variable of the environment means as a `kind`."""
    if kind is bool:
        return _TRUTHS[text.lower()]
    if kind is int and not re.fullmatch("[+-]?[0-9]+", text):
        raise ValueError(text)
    return kind(text) if kind in (int, float) else text


def _strict(value: object, kind: type) -> object:
    """Return `value`, which must be a `kind` already: `true` is no number, 8.7 no whole one."""
    match value:
        case str() if kind is str:
            value.encode()  # the environment may hold bytes that are no text
            return value
        case str() if kind is Path and value and "\0" not in value:
            return Path(value)
        case int() if kind is float and not isinstance(value, bool):
            return float(value)
        case Path() if kind is Path:
            return value
        case _ if type(value) is kind:
            return value
        case _:
            raise TypeError(value)
