"""The grammar of commands: statements that name things, and have no rows and no expressions.

Law: what isn't known here is an unsupported statement, by the words that it begins with.
"""

import re

from upwell.errors import InvalidSql
from upwell.sql.account import read_alter_user, read_create_user, read_drop_user
from upwell.sql.alter import parse_alter_table
from upwell.sql.define import parse_create_table
from upwell.sql.lex import Tokens, string_value
from upwell.sql.maintenance import (
    BackupDatabase,
    ClusterAction,
    CompactAll,
    FlushAll,
    KillJob,
    KillLive,
    RestoreDatabase,
    RetryJob,
)
from upwell.sql.named import is_create_view, read_create_view, read_drop_view
from upwell.sql.scalar import number_value
from upwell.sql.statements import (
    AlterNamespace,
    Begin,
    Commit,
    CreateNamespace,
    DropNamespace,
    Rollback,
    Select,
    SetOption,
    UseNamespace,
)
from upwell.sql.storage import (
    read_alter_storage,
    read_check_storage,
    read_create_storage,
    read_drop_storage,
)
from upwell.sql.tree import CompactTree, DescribeTree, DropTableTree, FlushTree, StatsTree, TableName, Tree

_CLUSTER = {
    "snapshot": "snapshot",
    "purge": "purge",
    "triggerelection": "trigger-election",
    "transferleader": "transfer-leader",
    "rebalance": "rebalance",
    "stepdown": "stepdown",
}
_NUMBER_DIGITS_MAX = 18
_UPTO = re.compile(r"CLUSTER\s+PURGE\s+--upto\s+([0-9]{1,18})\s*;?\s*", re.IGNORECASE)
_NAMESPACE = re.compile(r"[a-z_][a-z0-9_]{0,127}")


def read_create(tokens: Tokens) -> Tree:
    if is_create_view(tokens):
        return read_create_view(tokens)
    match tokens.peek(1).word:
        case "NAMESPACE":
            return _create_namespace(tokens)
        case "USER" if tokens.peek(2).word != "TABLE":
            return read_create_user(tokens)
        case "TABLE" | "USER" | "SHARED" | "STREAM":
            return parse_create_table(tokens)
        case "STORAGE":
            return read_create_storage(tokens)
        case _:
            raise unsupported(tokens)


def read_drop(tokens: Tokens) -> Tree:
    if tokens.sees("DROP", "STORAGE"):
        return read_drop_storage(tokens)
    if tokens.sees("DROP", "VIEW"):
        return read_drop_view(tokens)
    tokens.take()
    if tokens.sees("USER") and tokens.peek(1).word != "TABLE":
        return read_drop_user(tokens)
    if tokens.accept("NAMESPACE"):
        if_exists = tokens.accept("IF", "EXISTS")
        name = tokens.name("a namespace")
        tokens.accept("CASCADE")
        return DropNamespace(name, if_exists)
    if tokens.peek(1).word == "TABLE" and tokens.peek().word in ("USER", "SHARED", "STREAM"):
        tokens.take()
    if tokens.accept("TABLE"):
        if_exists = tokens.accept("IF", "EXISTS")
        return DropTableTree(tokens.qualified(), if_exists)
    tokens.index = 0
    raise unsupported(tokens)


def read_alter(tokens: Tokens) -> Tree:
    if tokens.peek(1).word == "USER" and tokens.peek(2).word != "TABLE":
        return read_alter_user(tokens)
    if tokens.peek(1).word == "NAMESPACE":
        return _alter_namespace(tokens)
    if tokens.sees("ALTER", "STORAGE"):
        return read_alter_storage(tokens)
    is_table = tokens.peek(1).word == "TABLE"
    is_table |= tokens.peek(1).word in ("USER", "SHARED", "STREAM") and tokens.peek(2).word == "TABLE"
    if not is_table:
        raise unsupported(tokens)
    return parse_alter_table(tokens)


def read_storage(tokens: Tokens) -> Tree:
    if tokens.accept("STORAGE", "COMPACT", "ALL"):
        return CompactAll(_in_namespace(tokens))
    if tokens.accept("STORAGE", "COMPACT", "TABLE"):
        return CompactTree(_qualified(tokens, "STORAGE COMPACT TABLE"))
    if tokens.sees("STORAGE", "CHECK"):
        return read_check_storage(tokens)
    if tokens.accept("STORAGE", "FLUSH", "ALL"):
        return FlushAll(_in_namespace(tokens))
    if not tokens.accept("STORAGE", "FLUSH", "TABLE"):
        raise unsupported(tokens)
    table = _qualified(tokens, "STORAGE FLUSH TABLE")
    users: list[str] | None = None
    if tokens.accept("FOR", "USER"):
        users = [tokens.string("a user's name in quotes")]
        while tokens.accept(","):
            users.append(tokens.string("a user's name in quotes"))
    return FlushTree(table, None if users is None else tuple(users))


def _qualified(tokens: Tokens, command: str) -> TableName:
    namespace, name = tokens.qualified()
    if namespace is None:
        raise InvalidSql(f"{command} needs a qualified name: {command} namespace.table")
    return namespace, name


def _in_namespace(tokens: Tokens) -> str | None:
    if not tokens.accept("IN"):
        return None
    if tokens.peek(1).kind in ("word", "quoted"):
        tokens.accept("NAMESPACE")
    return tokens.name("a namespace")


def read_kill(tokens: Tokens) -> KillLive | KillJob:
    if tokens.accept("KILL", "JOB"):
        return KillJob(_job_id(tokens))
    if not tokens.accept("KILL", "LIVE", "QUERY"):
        raise unsupported(tokens)
    return KillLive(tokens.string("the live query's id, as system.live shows it, in quotes"))


def read_retry(tokens: Tokens) -> RetryJob:
    if not tokens.accept("RETRY", "JOB"):
        raise unsupported(tokens)
    return RetryJob(_job_id(tokens))


def _job_id(tokens: Tokens) -> str:
    return tokens.string("the job's id, as system.jobs shows it, in quotes")


def read_backup(tokens: Tokens) -> BackupDatabase:
    if not tokens.accept("BACKUP", "DATABASE"):
        raise unsupported(tokens)
    tokens.expect("TO")
    return BackupDatabase(tokens.string("the path of a new directory in quotes"))


def read_restore(tokens: Tokens) -> RestoreDatabase:
    if not tokens.accept("RESTORE", "DATABASE"):
        raise unsupported(tokens)
    tokens.expect("FROM")
    return RestoreDatabase(tokens.string("the path of a backup in quotes"))


def read_use(tokens: Tokens) -> UseNamespace:
    tokens.expect("USE")
    if tokens.sees("NAMESPACE") and tokens.peek(1).kind in ("word", "quoted"):
        tokens.take()
    return UseNamespace(tokens.name("a namespace"))


def read_set(tokens: Tokens) -> UseNamespace | SetOption:
    """Read SET NAMESPACE n; of any other SET nothing but what it names."""
    tokens.expect("SET")
    if tokens.accept("NAMESPACE"):
        return UseNamespace(tokens.name("a namespace"))
    name = tokens.name("the name of a setting")
    while tokens.accept("."):
        name = f"{name}.{tokens.name('the name of a setting')}"
    while not tokens.at_end and not tokens.sees(";"):
        tokens.take()
    return SetOption(name)


def read_show(tokens: Tokens) -> Tree:
    if tokens.accept("SHOW", "NAMESPACES"):
        return Select("SELECT * FROM system.namespaces ORDER BY namespace_id", None, is_open=True)
    if tokens.accept("SHOW", "STORAGES"):
        text = "SELECT * FROM system.storages ORDER BY storage_id <> 'local', storage_id"
        return Select(text, None, is_open=True)
    if tokens.accept("SHOW", "TABLES"):
        chosen = ""
        if tokens.accept("IN") or tokens.accept("FROM"):
            tokens.accept("NAMESPACE")
            chosen = f" AND namespace_id = {quoted(tokens.name('a namespace'))}"
        text = f"SELECT * FROM system.schemas WHERE is_latest{chosen} ORDER BY namespace_id, table_name"
        return Select(text, None, is_open=True)
    if tokens.accept("SHOW", "MANIFEST"):
        tokens.accept("CACHE")
        return Select("SELECT * FROM system.manifest ORDER BY cache_key", None, is_open=True)
    if tokens.accept("SHOW", "STATS"):
        tokens.expect("FOR", "TABLE")
        return StatsTree(tokens.qualified())
    if tokens.accept("SHOW", "ALL"):
        return Select("SELECT name, value, description FROM system.settings ORDER BY name", None)
    if tokens.accept("SHOW", "COLUMNS"):
        if not tokens.accept("IN"):
            tokens.expect("FROM")
        return DescribeTree(tokens.qualified(), is_open=False)
    raise unsupported(tokens)


def read_cluster(tokens: Tokens) -> ClusterAction:
    """Read a CLUSTER statement; one that can't be done says so to who may know."""
    tokens.expect("CLUSTER")
    written = _UPTO.fullmatch(tokens.sql)
    if written is not None:  # two dashes begin a comment
        while not tokens.at_end:
            tokens.take()
        return ClusterAction("purge", int(written[1]))
    words = [tokens.take().word]
    while not tokens.at_end and tokens.peek().kind != "number" and not tokens.sees(";"):
        words.append(tokens.take().word)
    action = "".join(words).lower()
    target = _number(tokens.take().text) if tokens.peek().kind == "number" else None
    known = _CLUSTER.get(action.replace("-", ""))
    if known is None:
        while not tokens.at_end and not tokens.sees(";"):
            tokens.take()
        return ClusterAction(action, target, _cluster_refusal(action))
    return ClusterAction(known, target)


def _cluster_refusal(action: str) -> str:
    if action in ("list", "status", "ls"):
        return f"CLUSTER {action.upper()} is a CLI-only command. SELECT * FROM system.cluster shows the nodes"
    return f"CLUSTER {action.upper()[:60]} is not supported yet: this server is one node"


def _number(text: str) -> int:
    if not text.isdigit() or len(text) > _NUMBER_DIGITS_MAX:
        raise InvalidSql(f"a node or an entry of the log is a number of at most {_NUMBER_DIGITS_MAX} digits")
    return int(text)


def read_describe(tokens: Tokens) -> DescribeTree:
    """DESCRIBE TABLE is everybody's; as in the reference, only administrators may leave out TABLE."""
    tokens.take()
    is_open = tokens.accept("TABLE")
    return DescribeTree(tokens.qualified(), history=tokens.accept("HISTORY"), is_open=is_open)


def read_begin(tokens: Tokens) -> Begin:
    if tokens.take().word == "START":
        tokens.expect("TRANSACTION")
    else:
        _ = tokens.accept("TRANSACTION") or tokens.accept("WORK")
    return Begin()


def read_commit(tokens: Tokens) -> Commit:
    tokens.take()
    _ = tokens.accept("TRANSACTION") or tokens.accept("WORK")
    return Commit()


def read_rollback(tokens: Tokens) -> Rollback:
    tokens.take()
    _ = tokens.accept("TRANSACTION") or tokens.accept("WORK")
    return Rollback()


def unsupported(tokens: Tokens) -> InvalidSql:
    first, second = tokens.peek().text.upper(), tokens.peek(1).word
    named = first in ("CREATE", "DROP", "ALTER", "SHOW", "STORAGE", "KILL", "RETRY") and second.isalpha()
    return InvalidSql(f"Unsupported statement type: {first[:60]}{' ' + second if named else ''}")


def quoted(text: str) -> str:
    """Return `text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _create_namespace(tokens: Tokens) -> CreateNamespace:
    tokens.expect("CREATE", "NAMESPACE")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    name = tokens.name("a namespace")
    if not _NAMESPACE.fullmatch(name):
        raise InvalidSql(
            f"namespace name '{name[:60]}' may only have letters, digits and _, and begins with no digit"
        )
    return CreateNamespace(name, if_not_exists)


def _alter_namespace(tokens: Tokens) -> AlterNamespace:
    tokens.expect("ALTER", "NAMESPACE")
    name = tokens.name("a namespace")
    tokens.expect("SET", "OPTIONS")
    return AlterNamespace(name, tuple(tokens.listed(lambda: _namespace_option(tokens))))


def _namespace_option(tokens: Tokens) -> tuple[str, bool | int | float | str]:
    key = tokens.name("an option")
    tokens.expect("=")
    token = tokens.take()
    if token.word in ("TRUE", "FALSE"):
        return key, token.word == "TRUE"
    if token.kind == "number":
        return key, number_value(token.text)
    if token.kind not in ("string", "escaped", "dollar"):
        raise InvalidSql(f"option {key} needs a text in quotes, a number, TRUE or FALSE")
    return key, string_value(token)
