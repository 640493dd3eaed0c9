"""Policy: what a role may do. Pure functions of principal, action and table.

Law: rows of USER tables never need a rule: a session's owner is part of the key, so that another
user's rows cannot even be named. (Reference contract, sections 3.1, 5.5 and 5.6.)
"""

from dataclasses import dataclass
from enum import Enum

from upwell.engine.alter import Alteration, needs_values
from upwell.engine.catalog import Access, Role, Table, TableKind
from upwell.errors import PermissionDenied, Unauthorized
from upwell.sql.maintenance import (
    AlterStorage,
    BackupDatabase,
    CheckStorage,
    ClusterAction,
    CompactAll,
    CreateStorage,
    DropStorage,
    FlushAll,
    KillJob,
    RestoreDatabase,
    RetryJob,
)
from upwell.sql.statements import (
    AlterNamespace,
    CreateNamespace,
    CreateUser,
    DropNamespace,
    DropUser,
    SetOption,
)
from upwell.sql.tree import (
    CompactTree,
    CreateTableTree,
    CreateViewTree,
    DropTableTree,
    DropViewTree,
    FlushTree,
    SelectTree,
    Tree,
)

_RANK = {Role.USER: 1, Role.SERVICE: 2, Role.DBA: 3, Role.SYSTEM: 4}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts: an account's (or an app's own) user name and role; `device` if a device token says so.

    `expires_at_s` is the last second, since the epoch, at which the token behind it is accepted.
    """

    user: str
    role: Role
    device: str | None = None
    expires_at_s: float | None = None

    @property
    def is_admin(self) -> bool:
        return _RANK[self.role] >= _RANK[Role.DBA]


class Action(Enum):
    READ = "read"
    WRITE = "write"


def require_admin(principal: Principal, area: str) -> None:
    """Raise unless the role is dba or system."""
    if not principal.is_admin:
        raise PermissionDenied(f"Admin privileges (DBA or System role) required for {area}")


def require_statement(principal: Principal, tree: Tree) -> None:
    """Raise if the role may not issue such a statement at all, whatever it names."""
    match tree:
        case ClusterAction():
            require_admin(principal, "cluster management")
        case AlterNamespace() | CreateNamespace() | DropNamespace():
            require_admin(principal, "namespace management")
        case CreateUser() | DropUser():
            require_admin(principal, "user management")
        case CreateViewTree() | DropViewTree():
            require_admin(principal, "view management")
        case SelectTree(explains=True):
            require_admin(principal, "EXPLAIN statements")
        case SetOption():
            require_admin(principal, "SET statements")
        case CreateTableTree(namespace, table) if table.kind is not None or namespace is not None:
            # Without both, what the table will be depends on the session's namespace.
            require_create(principal, table.kind or default_kind(principal, namespace or ""))
        case DropTableTree():
            require_admin(principal, "dropping tables")
        case KillJob() | RetryJob():
            require_admin(principal, "job management")
        case CreateStorage() | AlterStorage() | DropStorage() | CheckStorage():
            require_admin(principal, "storage management")
        case FlushTree() | FlushAll():
            require_flush(principal)
        case BackupDatabase() | RestoreDatabase():
            require_admin(principal, "backup and restore")
        case CompactTree() | CompactAll():
            require_compact(principal)
        case _:
            pass


def require_table(principal: Principal, action: Action, table: Table) -> None:
    """Raise unless the principal may read or write the table; those of USER and STREAM tables are its own."""
    if table.kind is not TableKind.SHARED:
        return
    needed = _needed_to_read(table.access) if action is Action.READ else _needed_to_write(table.access)
    if _RANK[principal.role] < _RANK[needed]:
        raise PermissionDenied(
            f"Access denied to {table.full_name}: Shared table {action.value} denied "
            f"(access_level={table.access.value.capitalize()}, role {principal.role.value})"
        )


def require_account(principal: Principal, role: Role) -> None:
    """Raise if an account of such a role is above the principal."""
    if _RANK[role] > _RANK[principal.role]:
        raise PermissionDenied(
            f"an account of role {role.value} is above role {principal.role.value}: only its own role may "
            "make or change it"
        )


def default_kind(principal: Principal, namespace: str) -> TableKind:
    """Return what CREATE TABLE makes that doesn't say: SHARED, but in a namespace of one's own name."""
    is_own = principal.role is Role.USER and namespace == principal.user.lower()
    return TableKind.USER if is_own else TableKind.SHARED


def require_create(principal: Principal, kind: TableKind) -> None:
    if kind is TableKind.SHARED and _RANK[principal.role] < _RANK[Role.SERVICE]:
        raise PermissionDenied("creating SHARED tables needs role service, dba or system")


def require_alter(principal: Principal, table: Table, alteration: Alteration) -> None:
    """Raise unless the role may alter the table. USER and STREAM tables are everybody's to alter.

    But whether a column may be NOT NULL, or a reference, would tell role user what rows others have.
    """
    if _RANK[principal.role] >= _RANK[Role.SERVICE]:
        return
    if table.kind is TableKind.SHARED:
        raise PermissionDenied(
            f"Insufficient privileges to alter table {table.full_name}; it needs role service, dba or system"
        )
    if needs_values(table, alteration) is not None:
        raise PermissionDenied(
            "Insufficient privileges to alter table: role user may add a column that is nullable or has a "
            "DEFAULT, and make none NOT NULL or a reference, which depends on everybody's rows"
        )


def require_flush(principal: Principal) -> None:
    if _RANK[principal.role] < _RANK[Role.SERVICE]:
        raise PermissionDenied("STORAGE FLUSH needs role service, dba or system")


def require_compact(principal: Principal) -> None:
    if _RANK[principal.role] < _RANK[Role.SERVICE]:
        raise PermissionDenied("STORAGE COMPACT needs role service, dba or system")


def require_impersonation(actor: Principal, target: str, target_role: Role) -> None:
    """Raise unless `actor` may act as `target`: oneself, or a role not above one's own (user: nobody)."""
    if actor.user == target:
        return
    if actor.role is Role.USER or _RANK[target_role] > _RANK[actor.role]:
        raise Unauthorized(
            f"EXECUTE AS USER is not authorized: actor '{actor.user}' with role "
            f"{actor.role.value.capitalize()} cannot target '{target}' with role "
            f"{target_role.value.capitalize()}"
        )


def _needed_to_read(access: Access) -> Role:
    match access:
        case Access.PUBLIC:
            return Role.USER
        case Access.PRIVATE | Access.RESTRICTED:
            return Role.SERVICE
        case Access.DBA:
            return Role.DBA


def _needed_to_write(access: Access) -> Role:
    return Role.DBA if access is Access.DBA else Role.SERVICE
