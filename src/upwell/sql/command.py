"""The grammar of commands: statements that name things, and have no rows and no expressions.

Law: what isn't known here is an unsupported statement, by the words that it begins with.
"""

from upwell.errors import InvalidOperation, InvalidSql
from upwell.sql.account import read_alter_user, read_create_user, read_drop_user
from upwell.sql.alter import parse_alter_table
from upwell.sql.define import parse_create_table
from upwell.sql.lex import Tokens
from upwell.sql.statements import (
    Begin,
    Commit,
    CreateNamespace,
    DropNamespace,
    FlushAll,
    KillJob,
    KillLive,
    RetryJob,
    Rollback,
    Select,
    UseNamespace,
)
from upwell.sql.tree import DescribeTree, DropTableTree, FlushTree, Tree

_NAMESPACES_RESERVED = frozenset(
    {"system", "sys", "root", "kalamdb", "kalam", "main", "sql", "admin", "internal"}
    | {"information_schema", "pg_catalog", "datafusion"}
)


def read_create(tokens: Tokens) -> Tree:
    match tokens.peek(1).word:
        case "NAMESPACE":
            return _create_namespace(tokens)
        case "USER" if tokens.peek(2).word != "TABLE":
            return read_create_user(tokens)
        case "TABLE" | "USER" | "SHARED" | "STREAM":
            return parse_create_table(tokens)
        case _:
            raise unsupported(tokens)


def read_drop(tokens: Tokens) -> Tree:
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
    is_table = tokens.peek(1).word == "TABLE"
    is_table |= tokens.peek(1).word in ("USER", "SHARED", "STREAM") and tokens.peek(2).word == "TABLE"
    if not is_table:
        raise unsupported(tokens)
    return parse_alter_table(tokens)


def read_storage(tokens: Tokens) -> FlushTree | FlushAll:
    if tokens.accept("STORAGE", "FLUSH", "ALL"):
        return FlushAll(_in_namespace(tokens))
    if not tokens.accept("STORAGE", "FLUSH", "TABLE"):
        raise unsupported(tokens)
    namespace, name = tokens.qualified()
    if namespace is None:
        raise InvalidSql("STORAGE FLUSH TABLE needs a qualified name: STORAGE FLUSH TABLE namespace.table")
    users: list[str] | None = None
    if tokens.accept("FOR", "USER"):
        users = [tokens.string("a user's name in quotes")]
        while tokens.accept(","):
            users.append(tokens.string("a user's name in quotes"))
    return FlushTree((namespace, name), None if users is None else tuple(users))


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


def read_use(tokens: Tokens) -> UseNamespace:
    if tokens.take().word == "SET":
        tokens.expect("NAMESPACE")
    elif tokens.sees("NAMESPACE") and tokens.peek(1).kind in ("word", "quoted"):
        tokens.take()
    return UseNamespace(tokens.name("a namespace"))


def read_show(tokens: Tokens) -> Select:
    if tokens.accept("SHOW", "NAMESPACES"):
        return Select("SELECT * FROM system.namespaces ORDER BY namespace_id", None, is_open=True)
    if tokens.accept("SHOW", "TABLES"):
        chosen = ""
        if tokens.accept("IN") or tokens.accept("FROM"):
            tokens.accept("NAMESPACE")
            chosen = f" WHERE namespace_id = {quoted(tokens.name('a namespace'))}"
        text = f"SELECT * FROM system.tables{chosen} ORDER BY namespace_id, table_name"
        return Select(text, None, is_open=True)
    raise unsupported(tokens)


def read_describe(tokens: Tokens) -> DescribeTree:
    tokens.take()
    tokens.accept("TABLE")
    return DescribeTree(tokens.qualified())


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
    if not name.isascii() or not name.replace("_", "a").isalnum():
        raise InvalidSql(f"namespace name '{name[:60]}' may only have letters, digits and _")
    if name in _NAMESPACES_RESERVED:
        raise InvalidOperation(f"Namespace name '{name}' is reserved")
    return CreateNamespace(name, if_not_exists)
