"""The domain's errors: what can go wrong although every part works as it should.

    UpwellError
    ├── InvalidSql            text that is no statement, or one that isn't supported
    ├── InvalidInput          a request that can't be read
    ├── RequestRefused        a request refused with a code of its own
    ├── ParameterError        count, type or size of parameters
    ├── SqlFailure            a statement that can't be executed
    │   ├── AlreadyExists     namespace, table, user, primary key
    │   ├── NotFound          namespace, user, job …
    │   │   └── TableNotFound
    │   ├── InvalidOperation  not on this object, not in this state
    │   ├── ConstraintViolation
    │   ├── SystemColumnViolation
    │   ├── InvalidValue      a value that its column can't hold
    │   └── Conflict          somebody else was faster, too many times
    ├── PermissionDenied
    │   └── Unauthorized      to act for somebody else
    ├── AuthenticationFailed  with the contract's code (TOKEN_EXPIRED …)
    ├── TooLarge
    ├── RateExceeded          more requests per second than one may send
    ├── SeqTrimmed            a cursor below the floor of the log
    ├── StorageFailed         a storage refuses, is cut off or isn't set up
    ├── ColdFileMissing       a manifest or segment that is named can't be read
    ├── ReadOnly              a failed sync made the server read-only
    └── StartRefused          the server can't start on this directory or with these settings

Law: `str(error)` is a sentence for the person who sent the request and says what to do; it never has
a traceback, a secret or a path of the server, except for `ColdFileMissing` and
`StorageFailed`, which name the file.
"""


class UpwellError(Exception):
    """Base of all; `prefix` opens the message on the SQL wire."""

    prefix = ""

    def __str__(self) -> str:
        return self.prefix + super().__str__()


class InvalidSql(UpwellError):
    prefix = "Invalid SQL: "


class InvalidInput(UpwellError):
    pass


class RequestRefused(UpwellError):
    """`code` is the wire's: EMPTY_SQL, INVALID_PARAMETER, PARAMS_WITH_BATCH, BATCH_PARSE_ERROR."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ParameterError(UpwellError):
    pass


class SqlFailure(UpwellError):
    pass


class AlreadyExists(SqlFailure):
    prefix = "Already exists: "


class NotFound(SqlFailure):
    prefix = "Not found: "


class TableNotFound(NotFound):
    prefix = "Table not found: "


class InvalidOperation(SqlFailure):
    prefix = "Invalid operation: "


class ConstraintViolation(SqlFailure):
    prefix = "Constraint violation: "


class SystemColumnViolation(SqlFailure):
    prefix = "System column violation: "


class InvalidValue(SqlFailure):
    prefix = "Execution error: "


class QueryFailure(SqlFailure):
    """The query engine refused or failed a SELECT: unknown column, division by zero, …"""

    prefix = "Execution error: "


class Conflict(SqlFailure):
    prefix = "Conflict: "


class PermissionDenied(UpwellError):
    prefix = "Permission denied: "


class Unauthorized(PermissionDenied):
    """Nobody may act for that user."""

    prefix = "Unauthorized: "


class AuthenticationFailed(UpwellError):
    """`code` is one of MISSING_AUTHORIZATION, TOKEN_EXPIRED, INVALID_CREDENTIALS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TooLarge(UpwellError):
    pass


class RateExceeded(UpwellError):
    pass


class SeqTrimmed(UpwellError):
    pass


class StorageFailed(UpwellError):
    prefix = "Storage error: "


class ColdFileMissing(UpwellError):
    prefix = "Storage error: "


class ReadOnly(UpwellError):
    prefix = "Storage error: "


class StartRefused(UpwellError):
    pass
