"""The fleet: devices, conflicts and dead letters, as rows of system tables.

Law: administrators see all users, everybody else their own; a device is as it is now, not as it was recorded.
"""

from collections.abc import Callable, Sequence

from upwell.engine.receipt import change_id_max
from upwell.engine.view import View
from upwell.feeds.letters import load_conflicts, load_dead_letters
from upwell.feeds.registry import DeviceRecord, Registry
from upwell.ids import entries_between, snowflake_ms
from upwell.session.policy import Principal
from upwell.types import SqlType, Value, user_owner

Layout = Sequence[tuple[str, SqlType]]
Rows = list[Sequence[Value]]
_TEXT, _BIG, _INT, _DOUBLE, _TIME, _JSON = (
    SqlType.TEXT, SqlType.BIGINT, SqlType.INT, SqlType.DOUBLE, SqlType.TIMESTAMP, SqlType.JSON,
)  # fmt: skip
_DEVICES: Layout = [
    ("user_id", _TEXT), ("source_id", _TEXT), ("cursor", _BIG), ("lag_rows", _BIG),
    ("lag_seconds", _DOUBLE), ("last_change_id", _BIG), ("first_seen", _TIME), ("last_seen", _TIME),
]  # fmt: skip
_CONFLICTS: Layout = [
    ("user_id", _TEXT), ("source_id", _TEXT), ("source_change_id", _BIG), ("table", _TEXT), ("pk", _TEXT),
    ("op", _TEXT), ("base_version", _BIG), ("server_version", _BIG), ("payload", _JSON), ("at", _TIME),
]  # fmt: skip
_DEAD_LETTERS: Layout = [
    ("id", _BIG), ("user_id", _TEXT), ("source_id", _TEXT), ("source_change_id", _BIG), ("table", _TEXT),
    ("pk", _TEXT), ("attempted_version", _BIG), ("op", _TEXT), ("payload", _TEXT), ("reason", _TEXT),
    ("error", _TEXT), ("first_seen", _TIME), ("retry_count", _INT),
]  # fmt: skip


def _devices(view: View, principal: Principal, registry: Registry) -> tuple[Layout, Rows]:
    now_us = registry.now_us()
    return _DEVICES, [_device(view, device, now_us) for device in registry.devices(_only(principal))]


def _device(view: View, device: DeviceRecord, now_us: int) -> Sequence[Value]:
    owner, cursor = user_owner(device.user), device.cursor or 0
    unread = view.hot.read_owner_log(owner, cursor, None, 1)
    return (
        device.user,
        device.source,
        device.cursor,
        entries_between(cursor, view.hot.owner_counter(owner)),
        max(0.0, now_us / 1_000_000 - snowflake_ms(unread[0].seq) / 1000) if unread else 0.0,
        change_id_max(view.hot, device.user, device.source) or None,
        device.first_seen_us,
        device.last_seen_us,
    )


def _conflicts(view: View, principal: Principal, registry: Registry) -> tuple[Layout, Rows]:
    return _CONFLICTS, [
        (
            c.user, c.source, c.change_id, c.table, c.pk, c.op, c.base_version, c.server_version,
            _text(c.payload), c.at_us,
        )
        for c in load_conflicts(view.hot, _only(principal))
    ]  # fmt: skip


def _dead_letters(view: View, principal: Principal, registry: Registry) -> tuple[Layout, Rows]:
    return _DEAD_LETTERS, [
        (
            d.id, d.user, d.source, d.change_id, f"{d.schema}.{d.table}", d.pk, d.attempted_version, d.op,
            _text(d.payload), d.reason, d.error, d.first_seen_us, d.retry_count,
        )
        for d in load_dead_letters(view.hot, _only(principal))
    ]  # fmt: skip


def _only(principal: Principal) -> str | None:
    """Return the only user whose rows the principal may see, None for all."""
    return None if principal.is_admin else principal.user


def _text(payload: bytes | None) -> str | None:
    return payload.decode(errors="replace") if payload is not None else None


FLEET: dict[str, Callable[[View, Principal, Registry], tuple[Layout, Rows]]] = {
    "sync_devices": _devices,
    "sync_conflicts": _conflicts,
    "sync_dead_letters": _dead_letters,
}
FLEET_LAYOUTS: dict[str, Layout] = {
    "sync_devices": _DEVICES,
    "sync_conflicts": _CONFLICTS,
    "sync_dead_letters": _DEAD_LETTERS,
}
