"""Settings: file < environment < command line, frozen, every limit with its unit.

A setting `host` is `host = …` in the TOML file, `UPWELL_HOST` in the environment, `--host` on the
command line. Law: an unknown or unreadable setting stops the start with a sentence, nothing is guessed.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from upwell.errors import StartRefused

DEFAULT_JWT_SECRET = "upwell-development-secret-change-me"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
PASSWORD_BYTES_MAX = 72  # bcrypt reads no more
ENVIRONMENT_PREFIX = "UPWELL_"
# Set by tests and by launchers; not settings of the server.
_NOT_SETTINGS = frozenset({"UPWELL_CRASH_POINT", "UPWELL_HOLD_POINT", "UPWELL_HOLD_FILE", "UPWELL_CONFIG"})


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a server."""

    data_dir: Path = Path("upwell-data")
    host: str = "127.0.0.1"
    port: int = 8080
    root_password: str = ""
    jwt_secret: str = DEFAULT_JWT_SECRET
    jwt_expiry_hours: int = 24
    device_token_expiry_hours: int = 24 * 30
    durability: str = "group"
    log_level: str = "info"
    schema_version: int = 1
    shape_cache: bool = True
    bcrypt_cost: int = 10
    request_body_bytes_max: int = 10 * 1024 * 1024
    sql_bytes_max: int = 1024 * 1024
    statement_timeout_s: float = 60.0
    upload_changes_max: int = 10_000
    upload_payload_bytes_max: int = 1024 * 1024
    ws_auth_timeout_s: float = 3.0
    ws_client_timeout_s: float = 10.0
    ws_subscriptions_max: int = 100
    ws_lag_bytes_max: int = 256 * 1024
    drain_s: float = 5.0

    def refuse_unsafe(self) -> None:
        """Raise `StartRefused` if the server would be open to strangers or the settings make no sense."""
        if self.durability not in ("group", "async"):
            raise StartRefused(f"durability is 'group' or 'async', not '{self.durability}'")
        if not 0 <= self.port <= 65_535:
            raise StartRefused(f"port is 0..65535, not {self.port}")
        if not 4 <= self.bcrypt_cost <= 16:
            raise StartRefused(f"bcrypt_cost is 4..16, not {self.bcrypt_cost}")
        if len(self.jwt_secret) < 16:
            raise StartRefused("jwt_secret has fewer than 16 characters; set UPWELL_JWT_SECRET")
        if self.host not in LOOPBACK_HOSTS and self.jwt_secret == DEFAULT_JWT_SECRET:
            raise StartRefused(
                f"refusing to listen on {self.host} with the default secret: anybody could sign tokens. "
                "Set UPWELL_JWT_SECRET to a long random text"
            )
        if len(self.root_password.encode()) > PASSWORD_BYTES_MAX:
            raise StartRefused(f"root_password has more than {PASSWORD_BYTES_MAX} bytes")
        if self.host not in LOOPBACK_HOSTS and not self.root_password:
            raise StartRefused(
                f"refusing to listen on {self.host} without a root password; set UPWELL_ROOT_PASSWORD"
            )


def load_config(
    *, file: Path | None, environment: Mapping[str, str] = os.environ, options: Mapping[str, object]
) -> Config:
    """Merge the three sources; `options` come from the command line, None means not given."""
    settings: dict[str, object] = {}
    if file is not None:
        settings |= _from_file(file)
    settings |= _from_environment(environment)
    settings |= {name: value for name, value in options.items() if value is not None}
    hints = get_type_hints(Config)
    values: dict[str, Any] = {name: _converted(name, value, hints[name]) for name, value in settings.items()}
    return Config(**values)


def _known() -> dict[str, "Field[Any]"]:
    return {field.name: field for field in fields(Config)}


def _from_file(file: Path) -> dict[str, object]:
    try:
        settings = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise StartRefused(f"config file {file} can't be read: {error}") from error
    unknown = sorted(set(settings) - set(_known()))
    if unknown:
        raise StartRefused(f"config file {file} has unknown settings: {', '.join(unknown)}")
    return settings


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _NOT_SETTINGS:
            setting = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            if setting not in _known():
                raise StartRefused(f"environment variable {name} is no setting of this server")
            found[setting] = value
    return found


def _converted(name: str, value: object, kind: type) -> object:
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return kind(value)
    except (KeyError, TypeError, ValueError) as error:
        raise StartRefused(f"setting {name} can't be {value!r}: it is a {kind.__name__}") from error
