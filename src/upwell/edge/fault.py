"""Faults: the one map from an error to the status, code and message that the wire shows.

Law: every domain error has a place here; what is no domain error is a bug, logged with its traceback and
answered without one. Directories of the server are shown to administrators only.
"""

import re
from dataclasses import dataclass

from upwell.errors import (
    AuthenticationFailed,
    ColdFileMissing,
    InvalidInput,
    InvalidOperation,
    InvalidSql,
    NotFound,
    PermissionDenied,
    QueryFailure,
    RateExceeded,
    ReadOnly,
    RequestRefused,
    SqlFailure,
    StorageFailed,
    TableNotFound,
    TooLarge,
    UpwellError,
)
from upwell.feeds.subscription import ending_code
from upwell.protocol.messages import Error
from upwell.sql.place import pointed

# Section 1.4 of the reference contract: what roles user and service are told instead.
_PUBLIC_TEXTS = {
    "SQL_EXECUTION_ERROR": "SQL statement failed",
    "INVALID_SQL": "SQL statement is invalid or not allowed",
    "INTERNAL_ERROR": "Internal error",
}
_NO_TABLE = "Not found: Table "
_ABOUT_NAMES = re.compile(
    r"No field named|\b(?:column|field)\b.*(?:not found|does not exist)"
    r"|primary key|duplicate|unique|already exists",
    re.IGNORECASE,
)
_OF_ROWS = ("SELECT", "WITH", "VALUES", "INSERT", "UPDATE", "DELETE", "SUBSCR")
_SECRETS = re.compile(
    r"(\b(?:PASSWORD|CONFIG|CREDENTIALS)\s*=?\s*)(?:[eE]?'(?:[^']|'')*+'?|(\$\w*\$).*?(?:\2|$))",
    re.IGNORECASE | re.DOTALL,
)
_DIRECTORIES = re.compile(r"(?:/[^\s/]+)+/")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a failed request is answered with."""

    status: int
    code: str
    message: str


def public(fault: Fault, error: UpwellError, sql: str) -> Fault:
    """Return what an ordinary role is told of a fault: what speaks of its own statement stays."""
    text = _PUBLIC_TEXTS.get(fault.code)
    if text is None or _is_public(error, sql):
        return fault
    return Fault(fault.status, fault.code, text)


def _is_public(error: UpwellError, sql: str) -> bool:
    match error:
        case InvalidSql():
            return sql.lstrip(" \t\r\n(")[:6].upper().startswith(_OF_ROWS)
        case QueryFailure():
            return _ABOUT_NAMES.search(str(error)) is not None
        case TableNotFound() | ReadOnly() | ColdFileMissing() | StorageFailed():
            return False
        case NotFound():
            return not str(error).startswith(_NO_TABLE)
        case _:
            return True


def masked(sql: str) -> str:
    """Return a statement without what follows PASSWORD, CONFIG and CREDENTIALS: it may be a secret."""
    return _SECRETS.sub(r"\1'***'", sql)


def fault_of(error: UpwellError, *, is_admin: bool) -> Fault:
    """Return the answer to a domain error."""
    message = str(error)
    match error:
        case AuthenticationFailed(code=code):
            return Fault(401, code, message)
        case RequestRefused(code=code):
            return Fault(400, code, message)
        case PermissionDenied():
            return Fault(403, "PERMISSION_DENIED", message)
        case InvalidSql():
            return Fault(400, "INVALID_SQL", message)
        case ReadOnly():
            return Fault(503, "INTERNAL_ERROR", message)
        case RateExceeded():
            return Fault(429, "RATE_LIMIT_EXCEEDED", message)
        case ColdFileMissing() | StorageFailed():
            status = 503 if isinstance(error, StorageFailed) else 500
            return Fault(status, "INTERNAL_ERROR", message if is_admin else _DIRECTORIES.sub("", message))
        case TooLarge():
            return Fault(413, "INVALID_INPUT", message)
        case InvalidInput():
            return Fault(400, "INVALID_INPUT", message)
        case SqlFailure() | UpwellError():
            return Fault(400, "SQL_EXECUTION_ERROR", message)


def live_error(subscription_id: str, error: UpwellError, sql: str) -> Error:
    """Return the frame that refuses a subscription (reference contract, section 2.4)."""
    code, message = _live_code(error), pointed(str(error), sql)
    return Error(subscription_id, code, f"Not found: {message}" if code == "NOT_FOUND" else message)


def _live_code(error: UpwellError) -> str:
    match error:
        case NotFound():
            return "NOT_FOUND"
        case InvalidSql():
            return "INVALID_SQL"
        case InvalidOperation() | InvalidInput():
            return "UNSUPPORTED"
        case _:
            return ending_code(error)
