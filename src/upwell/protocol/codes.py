"""The catalogue of error codes: what each means, and what to do. `docs/errors.md` is printed from it.

Law: a code that goes over a wire stands here; a test looks for one that doesn't.
"""

from dataclasses import dataclass
from enum import Enum


class Wire(Enum):
    """Where a code is met."""

    SQL = "SQL: `POST /v1/api/sql`, in `error.code`"
    AUTH = "Signing in: `/v1/api/auth/*` and health, in `error`"
    LIVE = "Live queries: frames of type `error`, in `code`"
    SYNC = "Device sync: `/sync/*`, in `error`"


@dataclass(frozen=True, slots=True)
class Code:
    """One code: its HTTP statuses (none on a socket), what it means, and what who gets it can do."""

    wire: Wire
    name: str
    status: str
    meaning: str
    remedy: str


_SQL, _AUTH, _LIVE, _SYNC = Wire.SQL, Wire.AUTH, Wire.LIVE, Wire.SYNC
CATALOGUE = (
    Code(_SQL, "MISSING_AUTHORIZATION", "401", "There is no `Authorization` header.",
         "Sign in and send `Authorization: Bearer …`; cookies don't count here."),
    Code(_SQL, "TOKEN_EXPIRED", "401", "The token's time is over.", "Refresh it, or sign in again."),
    Code(_SQL, "INVALID_CREDENTIALS", "401",
         "The token is forged, of another kind, or its account is gone or has another role now.",
         "Sign in again. Refresh tokens and tokens of devices don't open this endpoint."),
    Code(_SQL, "PERMISSION_DENIED", "403", "The role may not do this.",
         "Ask an administrator; the message names the role that is needed."),
    Code(_SQL, "INVALID_SQL", "400", "The text is no statement, or one that this server doesn't know.",
         "The message says what was expected, and at which line and column."),
    Code(_SQL, "BATCH_PARSE_ERROR", "400", "One of several statements can't be read; none of them ran.",
         "Mend the statement that the message shows."),
    Code(_SQL, "EMPTY_SQL", "400", "There is no statement in the text.", "Send one."),
    Code(_SQL, "PARAMS_WITH_BATCH", "400", "`params` were given for several statements.",
         "Send `statements`, each with its own `params`."),
    Code(_SQL, "INVALID_PARAMETER", "400", "A parameter is an array or an object.",
         "Send JSON as a text, and several values as several parameters."),
    Code(_SQL, "INVALID_INPUT", "400, 413", "The body is no JSON of the right form, or too large.",
         "The message names the field or the limit."),
    Code(_SQL, "SQL_EXECUTION_ERROR", "400",
         "The statement can't be executed: a key exists, a value doesn't fit, a name is unknown, …",
         "The message says which; roles user and service are told less of what isn't their own."),
    Code(_SQL, "RATE_LIMIT_EXCEEDED", "429", "More requests per second than `queries_per_s_max`.",
         "Wait a second; send rows in one statement instead of one by one."),
    Code(_SQL, "INTERNAL_ERROR", "500, 503",
         "The server met an unexpected state, or is read-only after a failed sync.",
         "Nothing was acknowledged. Its log has the details, under the answer's `X-Request-ID`."),
    Code(_AUTH, "bad_request", "400, 413", "The body can't be read.", "The message names the field."),
    Code(_AUTH, "unauthorized", "401", "The name, password or token doesn't open an account.",
         "Check them; which of them is wrong is never said."),
    Code(_AUTH, "account_locked", "401", "Five wrong passwords in a row.",
         "Wait for the minutes that the message names, or have an administrator set a new password."),
    Code(_AUTH, "forbidden", "403", "Not from this machine, or not for this role.",
         "Do the set-up on the server's machine (or set `allow_remote_setup`)."),
    Code(_AUTH, "setup_required", "428", "root has no password yet.", "POST /v1/api/auth/setup."),
    Code(_AUTH, "already_configured", "409", "The set-up has been done.", "Sign in."),
    Code(_AUTH, "user_exists", "409", "The name is taken.", "Choose another."),
    Code(_AUTH, "invalid_user", "400", "The name can't be an administrator's.", "Choose another."),
    Code(_AUTH, "weak_password", "400", "A password is too short, too long or too common.",
         "Choose one of 8 to 72 bytes that isn't in every list."),
    Code(_AUTH, "rate_limited", "429", "Too many attempts from this address.", "Wait a second."),
    Code(_AUTH, "read_only", "503", "A failed sync ended all writing.", "Mend the disk and restart."),
    Code(_AUTH, "not_found", "404", "There is nothing at this path.", "Check the URL."),
    Code(_AUTH, "method_not_allowed", "405", "The path takes another method.", "Use that."),
    Code(_LIVE, "AUTH_REQUIRED", "", "The socket isn't signed in.", "Send `authenticate` first."),
    Code(_LIVE, "UNAUTHORIZED", "", "The role may not read the table.", "Ask an administrator."),
    Code(_LIVE, "INVALID_SUBSCRIPTION_ID", "", "The subscription's id is empty or too long.",
         "Give it 1 to 256 characters."),
    Code(_LIVE, "INVALID_SQL", "", "The text is no query.", "The message says what was expected."),
    Code(_LIVE, "NOT_FOUND", "", "There is no such table, or it was dropped.", "Subscribe to another."),
    Code(_LIVE, "UNSUPPORTED", "", "Such a query can't be followed.",
         "Follow columns of one table, with a WHERE."),
    Code(_LIVE, "SUBSCRIPTION_FAILED", "", "The live query can't go on.", "The message says why."),
    Code(_LIVE, "SUBSCRIPTION_KILLED", "", "An administrator ended the live query.", "Subscribe anew."),
    Code(_LIVE, "SUBSCRIPTION_LIMIT_EXCEEDED", "", "The user has too many live queries.",
         "End some of them."),
    Code(_LIVE, "HISTORY_PRUNED", "", "What came after the cursor has left the log.",
         "Subscribe without `from`: a snapshot, then what comes."),
    Code(_LIVE, "LAG_LIMIT_EXCEEDED", "", "The reader fell further behind than is allowed.",
         "Resume from the cursor that the message names, or read faster."),
    Code(_LIVE, "BATCH_FETCH_FAILED", "", "The next batch of a snapshot can't be sent.",
         "Subscribe anew."),
    Code(_LIVE, "RATE_LIMIT_EXCEEDED", "", "Too many messages per second.", "Send fewer."),
    Code(_LIVE, "MESSAGE_TOO_LARGE", "", "A message is larger than is read.", "Send less at once."),
    Code(_LIVE, "UNSUPPORTED_DATA", "", "A binary message came without MessagePack being agreed on.",
         "Send text, or agree on it at the sign-in."),
    Code(_SYNC, "authentication_failed", "401", "The token isn't a device's, or no longer accepted.",
         "Get a new one. What is pending on the device stays."),
    Code(_SYNC, "invalid_request", "400, 413", "The request can't be read.", "The message says why."),
    Code(_SYNC, "history_pruned", "409", "What came after the cursor has left the log.",
         "Hydrate: the live rows, then what comes."),
    Code(_SYNC, "shutting_down", "503", "The server goes away.", "Try again."),
    Code(_SYNC, "too_many_streams", "503", "Too many streams are open.", "Close some, or poll."),
    Code(_SYNC, "not_found", "404", "There is no such dead letter.", "List them."),
    Code(_SYNC, "retry_in_progress", "409", "The dead letter is being tried again.", "Wait for that."),
    Code(_SYNC, "method_not_allowed", "405", "The path takes another method.", "Use that."),
    Code(_SYNC, "forbidden", "403", "Device tokens are for accounts of role user.",
         "Sign in as such a user."),
    *(
        Code(_SYNC, name, "500, 503", f"The {what} failed on the server.", "Try again; nothing is lost.")
        for name, what in (("upload_failed", "upload"), ("download_failed", "download"),
                           ("list_failures_failed", "list"), ("retry_failed", "retry"))
    ),
)  # fmt: skip


def page() -> str:
    """Return `docs/errors.md`."""
    parts = [
        "# Errors",
        "Every code that the server sends, what it means, and what to do about it. Printed by "
        "`python -m upwell.protocol.codes`.",
        'An error of the SQL endpoint is `{"status": "error", "results": [], "took": …, "error": '
        '{"code": …, "message": …}}`; of signing in and of the device sync `{"error": …, "message": …}`. '
        "Administrators also get the offending statement, as `details`. What roles user and service are told "
        "instead of some messages is in [decision 5](decisions/0005-errors-are-not-redacted.md).",
    ]
    for wire in Wire:
        rows = [
            f"| `{each.name}` | {each.status or '–'} | {each.meaning} | {each.remedy} |"
            for each in CATALOGUE
            if each.wire is wire
        ]
        parts += [
            f"## {wire.value}",
            "\n".join(["| code | status | meaning | what to do |", "|---|---|---|---|", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
