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
    InvalidSql,
    PermissionDenied,
    RateExceeded,
    ReadOnly,
    RequestRefused,
    SqlFailure,
    TooLarge,
    UpwellError,
)

_DIRECTORIES = re.compile(r"(?:/[^\s/]+)+/")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a failed request is answered with."""

    status: int
    code: str
    message: str


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
        case ColdFileMissing():
            return Fault(500, "INTERNAL_ERROR", message if is_admin else _DIRECTORIES.sub("", message))
        case RateExceeded():
            return Fault(429, "RATE_LIMIT_EXCEEDED", message)
        case TooLarge():
            return Fault(413, "INVALID_INPUT", message)
        case InvalidInput():
            return Fault(400, "INVALID_INPUT", message)
        case SqlFailure() | UpwellError():
            return Fault(400, "SQL_EXECUTION_ERROR", message)
