"""What must be there: the rows of an account, and of each device, kept in plain dicts beside the product.

Law: nothing in here asks the server or the device. Each edit that a scenario makes is made here too; an
upload moves a device's edits to the account by the rule of versions (base equal: one more; else a conflict,
which the device's policy decides), a download moves the account's rows to the device.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from upwell.simulate.table import TABLES, Cells, Key, Row, Table

# A row is named by its table and its key.
Place: TypeAlias = tuple[str, Key]
# (server version, is deleted)
Version: TypeAlias = tuple[int, bool]
# From the local and the server's row to the one that stands; None is a deleted row.
Policy: TypeAlias = Callable[[Row | None, Row | None], Row | None]


def take_server(_local: Row | None, server: Row | None) -> Row | None:
    """The server's row stands."""
    return server


def take_local(local: Row | None, _server: Row | None) -> Row | None:
    """The device's row stands."""
    return local


@dataclass
class Account:
    """What the server must hold for one user: live rows, versions, and the log of effective changes."""

    rows: dict[Place, Row] = field(default_factory=dict)
    versions: dict[Place, Version] = field(default_factory=dict)
    log: list[tuple[Place, int]] = field(default_factory=list)

    def put(self, place: Place, row: Row) -> None:
        """A change made this row."""
        self.rows[place] = dict(row)
        self._next_version(place, is_deleted=False)

    def delete(self, place: Place) -> None:
        """A change deleted this row; children that cascade go with it."""
        for child in children(self.rows, place):
            self.delete(child)
        self.rows.pop(place, None)
        self._next_version(place, is_deleted=True)

    def write(self, place: Place, row: Row | None) -> None:
        """`put`, or `delete` for None."""
        if row is None:
            self.delete(place)
        else:
            self.put(place, row)

    def version(self, place: Place) -> int:
        """The newest version; 0 for a row that was never there."""
        return self.versions.get(place, (0, False))[0]

    def in_sqlite(self, table: Table) -> list[Cells]:
        """The rows of a table as a device that has them all shows them, by id."""
        return _device_cells(self.rows, table)

    def in_sql(self, table: Table) -> list[Cells]:
        """The rows of a table as SELECT … ORDER BY id has them."""
        return sorted(table.sql_cells(row) for (name, _), row in self.rows.items() if name == table.name)

    def log_entries(self, namespace: str) -> list[tuple[str, str, int]]:
        """(table, key, version) of each effective change, sorted."""
        return sorted(
            (f"{namespace}.{name}", TABLES[name].sql_key(key), version) for (name, key), version in self.log
        )

    def _next_version(self, place: Place, *, is_deleted: bool) -> None:
        version = self.version(place) + 1
        self.versions[place] = (version, is_deleted)
        self.log.append((place, version))


@dataclass
class Book:
    """What one device must hold: its rows, which of them wait for upload, and the versions that it knows."""

    policy: Policy = take_server
    rows: dict[Place, Row] = field(default_factory=dict)
    pending: dict[Place, None] = field(default_factory=dict)
    versions: dict[Place, Version] = field(default_factory=dict)
    seen: int = 0
    is_hydrated: bool = False
    conflict_count: int = 0

    def put(self, place: Place, row: Row) -> None:
        """The app wrote this row."""
        self.rows[place] = dict(row)
        self.pending[place] = None

    def delete(self, place: Place) -> None:
        """The app deleted this row; children that cascade go with it."""
        for child in children(self.rows, place):
            self.delete(child)
        del self.rows[place]
        self.pending[place] = None

    def upload(self, account: Account, places: Iterable[Place] | None = None) -> None:
        """What waits reaches the server and is answered: all until nothing waits, or these places once."""
        if places is not None:
            self._send(account, places)
        while places is None and self.pending:
            self._send(account, self.pending)

    def deliver(self, account: Account, places: Iterable[Place]) -> list[Place]:
        """These places reach the server, the answer is lost; return those that it didn't accept."""
        refused = [place for place in places if self._is_conflict(account, place)]
        self._send(account, set(places) - set(refused))
        return refused

    def download(self, account: Account) -> None:
        """What the log has since the last time, but for rows that wait for upload."""
        for place, _ in account.log[self.seen :]:
            if place not in self.pending:
                self._take(account, place)
        self.seen, self.is_hydrated = len(account.log), True

    def hydrate(self, account: Account) -> None:
        """All live rows, and nothing of the dead ones."""
        for place in account.rows:
            if place not in self.pending:
                self._take(account, place)
        self.seen, self.is_hydrated = len(account.log), True

    def revive(self, account: Account, place: Place) -> None:
        """The account deleted the parent of a row that waits here: it is written again, on top of that."""
        self.put(place, self.rows[place])
        self.download(account)
        self.versions[place] = account.versions[place]
        self.sync(account)

    def sync(self, account: Account) -> None:
        """One round."""
        if not self.is_hydrated:
            self.hydrate(account)
        self.upload(account)
        self.download(account)

    def in_sqlite(self, table: Table) -> list[Cells]:
        """The rows of a table as the device's SELECT … ORDER BY id has them."""
        return _device_cells(self.rows, table)

    def in_meta(self) -> dict[tuple[str, str], tuple[int, int]]:
        """`_sync_row_meta`: table and key → (server version, deleted)."""
        return {
            (name, TABLES[name].sync_key(key)): (version, int(is_deleted))
            for (name, key), (version, is_deleted) in self.versions.items()
        }

    def _order(self, place: Place) -> tuple[bool, int]:
        rank = list(TABLES).index(place[0])
        return (False, rank) if place in self.rows else (True, -rank)

    def _send(self, account: Account, places: Iterable[Place]) -> None:
        for place in sorted(self.pending.keys() & set(places), key=self._order):
            if self._is_conflict(account, place):
                self._settle(account, place)
                continue
            if place in self.rows or place in account.versions:
                account.write(place, self.rows.get(place))
            del self.pending[place]
            self._take(account, place)

    def _is_conflict(self, account: Account, place: Place) -> bool:
        return place in account.versions and account.version(place) != self.versions.get(place, (0, False))[0]

    def _settle(self, account: Account, place: Place) -> None:
        """What the rule chose stands here; another row than the server's waits on top of that."""
        self.conflict_count += 1
        server = account.rows.get(place)
        chosen = self.policy(self.rows.get(place), server)
        self._take(account, place)
        if chosen == server:
            del self.pending[place]
        elif chosen is None:
            del self.rows[place]
        else:
            self.rows[place] = chosen

    def _take(self, account: Account, place: Place) -> None:
        self.versions[place] = account.versions.get(place, (0, True))
        row = account.rows.get(place)
        if row is None:
            self.rows.pop(place, None)
        else:
            self.rows[place] = dict(row)


def children(rows: dict[Place, Row], parent: Place) -> list[Place]:
    """The rows that cascade when `parent` is deleted."""
    cascading = [
        (table.name, column.name)
        for table in TABLES.values()
        for column in table.references
        if column.parent == parent[0] and column.is_cascading
    ]
    return [
        place
        for place, row in rows.items()
        if any(place[0] == name and row[column] == parent[1] for name, column in cascading)
    ]


def _device_cells(rows: dict[Place, Row], table: Table) -> list[Cells]:
    return sorted(table.device_cells(row) for (name, _), row in rows.items() if name == table.name)
