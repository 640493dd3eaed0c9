"""The parser: text → tree, and the only door to sqlglot.

Law: text that isn't a statement fails here, before anything of its batch runs. Statements are read by a
descent of our own, because their parts must keep the words they were written with; an expression that
our grammar doesn't cover is judged by sqlglot, a query by the query engine itself.
"""

from collections.abc import Callable

import sqlglot
from sqlglot.errors import SqlglotError

from upwell.errors import InvalidInput, InvalidSql
from upwell.sql.account import read_user_name
from upwell.sql.change import (
    QUERY_STARTS,
    parse_delete,
    parse_insert,
    parse_update,
)
from upwell.sql.command import (
    read_alter,
    read_backup,
    read_begin,
    read_cluster,
    read_commit,
    read_create,
    read_describe,
    read_drop,
    read_kill,
    read_restore,
    read_retry,
    read_rollback,
    read_set,
    read_show,
    read_storage,
    read_use,
    unsupported,
)
from upwell.sql.lex import Fragment, Tokens, split
from upwell.sql.plain import find_plain_select
from upwell.sql.subscribe import read_subscribe
from upwell.sql.tree import (
    DeleteTree,
    ExecuteAsTree,
    InsertTree,
    SelectTree,
    Tree,
    UpdateTree,
)


def parse(sql: str) -> Tree:
    """Return the tree of one statement; raise `InvalidSql` if it is none, or an unsupported one."""
    tokens = Tokens(sql)
    first = tokens.peek()
    if first.word in QUERY_STARTS:
        return _query(tokens)
    if first.word == "EXPLAIN":
        return _explain(tokens)
    step = _STATEMENTS.get(first.word)
    if step is None:
        raise unsupported(tokens)
    tree = step(tokens)
    tokens.expect_end()
    return tree


def judge(fragment: Fragment) -> None:
    """Raise `InvalidSql` if `fragment` is no expression in PostgreSQL's grammar."""
    try:
        sqlglot.parse_one(f"SELECT ({fragment.text}\n)", read="postgres")
    except (SqlglotError, RecursionError) as error:
        raise InvalidSql(f"cannot read the expression {fragment.text[:200]}") from error


def _query(tokens: Tokens) -> SelectTree:
    return SelectTree(tokens.sql.removesuffix(";"), find_plain_select(Tokens(tokens.sql)))


def _explain(tokens: Tokens) -> SelectTree:
    """Read EXPLAIN [ANALYZE] [VERBOSE] query, which the query engine answers."""
    tokens.expect("EXPLAIN")
    tokens.accept("ANALYZE")
    tokens.accept("VERBOSE")
    if tokens.peek().word not in QUERY_STARTS:
        raise tokens.unexpected("a query after EXPLAIN [ANALYZE] [VERBOSE]")
    return SelectTree(tokens.sql.removesuffix(";"), None, explains=True)


def _execute(tokens: Tokens) -> ExecuteAsTree:
    if not tokens.sees("EXECUTE", "AS", "USER"):
        raise unsupported(tokens)
    tokens.expect("EXECUTE", "AS", "USER")
    user = read_user_name(tokens)
    tokens.expect("(")
    inner = tokens.fragment(frozenset())
    tokens.expect(")")
    texts = split(inner.text)
    if len(texts) != 1:
        raise InvalidInput("EXECUTE AS USER takes a single SQL statement")
    tree = parse(texts[0])
    if not isinstance(tree, (InsertTree, UpdateTree, DeleteTree, SelectTree)):
        raise InvalidSql("EXECUTE AS USER takes SELECT, INSERT, UPDATE or DELETE")
    return ExecuteAsTree(user, tree, texts[0])


_STATEMENTS: dict[str, Callable[[Tokens], Tree]] = {
    "INSERT": parse_insert,
    "UPDATE": parse_update,
    "DELETE": parse_delete,
    "CREATE": read_create,
    "DROP": read_drop,
    "ALTER": read_alter,
    "STORAGE": read_storage,
    "BACKUP": read_backup,
    "RESTORE": read_restore,
    "KILL": read_kill,
    "RETRY": read_retry,
    "USE": read_use,
    "SET": read_set,
    "SUBSCRIBE": read_subscribe,
    "SHOW": read_show,
    "CLUSTER": read_cluster,
    "DESCRIBE": read_describe,
    "DESC": read_describe,
    "EXECUTE": _execute,
    "BEGIN": read_begin,
    "START": read_begin,
    "COMMIT": read_commit,
    "ROLLBACK": read_rollback,
}
