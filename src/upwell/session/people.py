"""`system.users` and `system.audit_log`: the accounts, and what was done to and by them (contract, 4)."""

from collections.abc import Sequence

from upwell.engine.catalog import User
from upwell.engine.view import View
from upwell.ids import snowflake_ms
from upwell.session.audit import Entry, load_entries
from upwell.session.fleet import Layout, Rows
from upwell.session.signin import load_sign_in
from upwell.types import SqlType, Value

MASK = "***"
_TEXT, _INT, _TIME, _JSON = SqlType.TEXT, SqlType.INT, SqlType.TIMESTAMP, SqlType.JSON
USERS: Layout = [
    ("user_id", _TEXT), ("password_hash", _TEXT), ("role", _TEXT), ("email", _TEXT), ("auth_type", _TEXT),
    ("auth_data", _JSON), ("storage_mode", _TEXT), ("storage_id", _TEXT), ("failed_login_attempts", _INT),
    ("locked_until", _TIME), ("last_login_at", _TIME), ("created_at", _TIME), ("updated_at", _TIME),
    ("last_seen", _TIME), ("deleted_at", _TIME),
]  # fmt: skip
AUDIT_LOG: Layout = [
    ("audit_id", _TEXT), ("timestamp", _TIME), ("actor_user_id", _TEXT), ("action", _TEXT), ("target", _TEXT),
    ("details", _TEXT), ("ip_address", _TEXT), ("subject_user_id", _TEXT),
]  # fmt: skip


def users(view: View) -> tuple[Layout, Rows]:
    """Return all accounts, dropped ones too; what their passwords are stays on the server."""
    found = {**view.catalog.dropped_users, **view.catalog.users}
    return USERS, [_user(view, found[name]) for name in sorted(found)]


def _user(view: View, user: User) -> Sequence[Value]:
    state = load_sign_in(view.hot, user.name)
    return (
        user.name, MASK if user.password_hash else "", user.role.value, user.email, user.auth_type,
        user.auth_data, "table", None, state.failed, state.locked_until_us, state.last_login_us,
        user.created_at_us, user.updated_at_us, state.last_login_us, user.deleted_at_us,
    )  # fmt: skip


def audit_log(view: View) -> tuple[Layout, Rows]:
    """Return the audit log, oldest entry first."""
    return AUDIT_LOG, [_entry(number, entry) for number, entry in load_entries(view.hot)]


def _entry(number: int, entry: Entry) -> Sequence[Value]:
    return (
        str(number), snowflake_ms(number) * 1000, entry.actor, entry.action, entry.target, entry.details,
        entry.address, entry.subject,
    )  # fmt: skip
