"""The grammar of a table's options, and what they say together with its keyword.

Law: an option that this release can't keep is refused by name with what to use instead.
"""

from collections.abc import Callable

from upwell.engine.catalog import Access, TableKind
from upwell.engine.flush_policy import parse_policy
from upwell.sql.column import Draft, Refused
from upwell.sql.lex import Tokens, string_value
from upwell.sql.statements import ColumnDefinition
from upwell.types import SqlType

_CHANGEABLE = ("ACCESS_LEVEL", "FLUSH_POLICY", "DELETED_RETENTION_HOURS", "STORAGE_ID")
USER_STORAGE = "USE_USER_STORAGE"
"""Files go to the storage of the row's user, that of the table where a user has none."""
_TTL_S_MAX = 100 * 365 * 24 * 3600


def read_property(tokens: Tokens, draft: Draft) -> None:
    """Read one of SET TBLPROPERTIES: an option that a table which has rows can still change."""
    key = tokens.peek().text.upper()
    if key in _OPTIONS and key not in _CHANGEABLE:
        raise Refused(f"{key} is chosen by CREATE TABLE and stays; changeable are {', '.join(_CHANGEABLE)}")
    read_option(tokens, draft)


def read_option(tokens: Tokens, draft: Draft) -> None:
    key = tokens.name("an option").upper()
    tokens.expect("=")
    token = tokens.take()
    if token.kind not in ("word", "number", "string", "escaped", "dollar", "quoted"):
        raise Refused(f"option {key} needs a value")
    value = string_value(token) if "'" in token.text[:2] else token.text.strip('"')
    check = _OPTIONS.get(key)
    if check is None:
        raise Refused(f"Unknown table option '{key}'")
    check(value)
    if key in draft.options:
        raise Refused(f"option {key} is given twice")
    draft.options[key] = value


def _check_flush_policy(value: str) -> None:
    try:
        parse_policy(value)
    except ValueError as error:
        raise Refused(
            "FLUSH_POLICY must be 'rows:N', 'interval:SECONDS' or both with a comma, above 0"
        ) from error


def _check_retention(value: str) -> None:
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise Refused("DELETED_RETENTION_HOURS must be a whole number of hours")


def _check_ttl(value: str) -> None:
    if not (value.isascii() and value.isdigit() and len(value) <= 12 and 0 < int(value) <= _TTL_S_MAX):
        raise Refused(f"TTL_SECONDS must be a whole number of seconds, 1 to {_TTL_S_MAX}")


def flag(value: str, option: str = "SYNC") -> bool:
    if value.upper() not in ("TRUE", "FALSE"):
        raise Refused(f"{option} must be TRUE or FALSE")
    return value.upper() == "TRUE"


def _check_user_storage(value: str) -> None:
    flag(value, "USE_USER_STORAGE")


def check_user_storage(draft: Draft, kind: TableKind | None) -> None:
    """Refuse USE_USER_STORAGE of a table whose rows are of no user, or never become files."""
    if kind is not TableKind.USER and USER_STORAGE in draft.options:
        raise Refused(f"{USER_STORAGE} is only supported for USER tables")


def _any(value: str) -> None:
    """Checked later, when the whole statement is known."""


_OPTIONS: dict[str, Callable[[str], object]] = {
    "TYPE": _any,
    "ACCESS_LEVEL": _any,
    "SYNC": flag,
    "STORAGE_ID": _any,
    USER_STORAGE: _check_user_storage,
    "FLUSH_POLICY": _check_flush_policy,
    "DELETED_RETENTION_HOURS": _check_retention,
    "TTL_SECONDS": _check_ttl,
}


def kind_of(keyword: str | None, option: str | None) -> TableKind | None:
    written = option.upper() if option is not None else None
    if keyword is not None and written is not None and keyword != written:
        raise Refused(f"Conflicting table type definitions: {keyword} TABLE and TYPE='{option}'")
    name = keyword or written
    if name is None:
        return None
    if name not in TableKind.__members__:
        raise Refused(f"TYPE must be 'USER', 'SHARED' or 'STREAM', not '{name[:60]}'")
    return TableKind(name.lower())


def access_of(written: str | None, kind: TableKind | None) -> Access:
    if written is None:
        return Access.PRIVATE
    if kind in (TableKind.USER, TableKind.STREAM):
        raise Refused("ACCESS_LEVEL is only supported for SHARED tables")
    if written.upper() not in Access.__members__:
        raise Refused("ACCESS_LEVEL must be PUBLIC, PRIVATE, RESTRICTED or DBA")
    return Access[written.upper()]


def read_ttl(tokens: Tokens, draft: Draft) -> None:
    """Read the `n` of TTL n, which is TTL_SECONDS = n by another name."""
    value = tokens.take().text
    _check_ttl(value)
    if "TTL_SECONDS" in draft.options:
        raise Refused("TTL and TTL_SECONDS say the same; write one of them")
    draft.options["TTL_SECONDS"] = value


def check_lifetime(draft: Draft, kind: TableKind | None) -> None:
    """Refuse a STREAM table without its TTL or with what only lasting rows have, and a TTL of others."""
    if kind is not TableKind.STREAM:
        if "TTL_SECONDS" in draft.options:
            raise Refused("TTL_SECONDS is only supported for STREAM tables")
        return
    if "TTL_SECONDS" not in draft.options:
        raise Refused("STREAM tables must specify 'TTL_SECONDS'")
    for option in ("FLUSH_POLICY", "DELETED_RETENTION_HOURS"):
        if option in draft.options:
            raise Refused(
                f"{option} is not supported for STREAM tables: their rows expire and are never flushed"
            )
    if draft.parents or draft.composites:
        raise Refused("STREAM tables cannot have REFERENCES: their rows expire by themselves")


def check_synced(columns: tuple[ColumnDefinition, ...], kind: TableKind | None) -> None:
    if kind is not TableKind.USER:
        raise Refused("SYNC = TRUE is only supported for USER tables; write CREATE USER TABLE")
    key = next(column for column in columns if column.primary_key)
    if key.type not in (SqlType.UUID, SqlType.TEXT):
        raise Refused(
            f"SYNC = TRUE needs a primary key of type UUID or TEXT, made by the device; "
            f"'{key.name}' is {key.type.name}"
        )
