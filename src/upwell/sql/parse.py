"""The parser: text → tree, and the only door to sqlglot.

Law: text that isn't a statement fails here, before anything of its batch runs. Statements are read by a
descent of our own, because their parts must keep the words they were written with; an expression that
our grammar doesn't cover is judged by sqlglot, a query by the query engine itself.
"""

from collections.abc import Callable

import sqlglot
from sqlglot.errors import SqlglotError

from upwell.engine.catalog import Role
from upwell.errors import InvalidInput, InvalidOperation, InvalidSql
from upwell.sql.alter import parse_add_column
from upwell.sql.change import CONDITION_ENDS, QUERY_STARTS, alias, parse_delete, parse_insert, parse_update
from upwell.sql.define import parse_create_table
from upwell.sql.lex import Fragment, Tokens, split
from upwell.sql.statements import (
    CreateNamespace,
    CreateUser,
    DropNamespace,
    KillLive,
    Select,
    UseNamespace,
)
from upwell.sql.tree import (
    DeleteTree,
    DescribeTree,
    DropTableTree,
    ExecuteAsTree,
    FlushTree,
    InsertTree,
    PlainSelect,
    Projection,
    SelectTree,
    Tree,
    UpdateTree,
)

_ROLES = {
    "dba": Role.DBA,
    "admin": Role.DBA,
    "service": Role.SERVICE,
    "developer": Role.SERVICE,
    "analyst": Role.SERVICE,
    "user": Role.USER,
    "viewer": Role.USER,
    "readonly": Role.USER,
    "system": Role.SYSTEM,
}
_NAMESPACES_RESERVED = frozenset(
    {"system", "sys", "root", "kalamdb", "kalam", "main", "sql", "admin", "internal"}
    | {"information_schema", "pg_catalog", "datafusion"}
)


def parse(sql: str) -> Tree:
    """Return the tree of one statement; raise `InvalidSql` if it is none, or an unsupported one."""
    tokens = Tokens(sql)
    first = tokens.peek()
    if first.word in QUERY_STARTS:
        return _query(tokens)
    step = _STATEMENTS.get(first.word)
    if step is None:
        raise _unsupported(tokens)
    tree = step(tokens)
    tokens.expect_end()
    return tree


def judge(fragment: Fragment) -> None:
    """Raise `InvalidSql` if `fragment` is no expression in PostgreSQL's grammar."""
    try:
        sqlglot.parse_one(f"SELECT ({fragment.text}\n)", read="postgres")
    except (SqlglotError, RecursionError) as error:
        raise InvalidSql(f"cannot read the expression {fragment.text[:200]}") from error


def _unsupported(tokens: Tokens) -> InvalidSql:
    first, second = tokens.peek().text.upper(), tokens.peek(1).word
    named = first in ("CREATE", "DROP", "ALTER", "SHOW", "STORAGE", "KILL") and second.isalpha()
    return InvalidSql(f"Unsupported statement type: {first[:60]}{' ' + second if named else ''}")


def _query(tokens: Tokens) -> SelectTree:
    try:
        plain = parse_plain_select(Tokens(tokens.sql))
    except InvalidSql:
        plain = None
    return SelectTree(tokens.sql.removesuffix(";"), plain)


def parse_plain_select(tokens: Tokens) -> PlainSelect:
    """Read `SELECT columns FROM table [alias] [WHERE …]`; raise `InvalidSql` for any other query."""
    tokens.expect("SELECT")
    columns = [_projection(tokens)]
    while tokens.accept(","):
        columns.append(_projection(tokens))
    tokens.expect("FROM")
    table = tokens.qualified()
    named = alias(tokens)
    where = tokens.fragment(CONDITION_ENDS) if tokens.accept("WHERE") else None
    tokens.expect_end()
    return PlainSelect(table, named, tuple(columns), where)


def _projection(tokens: Tokens) -> Projection:
    if tokens.accept("*"):
        return Projection(None, "*", "*")
    qualifier, column = None, tokens.name("a column")
    if tokens.accept("."):
        qualifier, column = column, "*" if tokens.accept("*") else tokens.name("a column")
    name = column
    if column != "*" and (tokens.accept("AS") or tokens.peek().kind == "quoted"):
        token = tokens.peek()
        name = tokens.name()
        name = token.text[1:-1].replace('""', '"') if token.kind == "quoted" else name
    return Projection(qualifier, column, name)


def _create(tokens: Tokens) -> Tree:
    match tokens.peek(1).word:
        case "NAMESPACE":
            return _create_namespace(tokens)
        case "USER" if tokens.peek(2).word != "TABLE":
            return _create_user(tokens)
        case "TABLE" | "USER" | "SHARED" | "STREAM":
            return parse_create_table(tokens)
        case _:
            raise _unsupported(tokens)


def _create_namespace(tokens: Tokens) -> CreateNamespace:
    tokens.expect("CREATE", "NAMESPACE")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    name = tokens.name("a namespace")
    if not name.isascii() or not name.replace("_", "a").isalnum():
        raise InvalidSql(f"namespace name '{name[:60]}' may only have letters, digits and _")
    if name in _NAMESPACES_RESERVED:
        raise InvalidOperation(f"Namespace name '{name}' is reserved")
    return CreateNamespace(name, if_not_exists)


def _create_user(tokens: Tokens) -> CreateUser:
    tokens.expect("CREATE", "USER")
    name = _user_name(tokens)
    tokens.expect("WITH")
    password = None
    if tokens.accept("PASSWORD"):
        password = tokens.string("the password in quotes")
    elif not tokens.accept("INTERNAL"):
        raise InvalidSql("CREATE USER takes WITH PASSWORD '…' or WITH INTERNAL; OAUTH is not supported yet")
    tokens.expect("ROLE")
    written = _user_name(tokens)
    role = _ROLES.get(written.lower())
    if role is None:
        raise InvalidSql(f"Invalid role '{written[:60]}'; use user, service, dba or system")
    email = tokens.string("the e-mail address in quotes") if tokens.accept("EMAIL") else None
    return CreateUser(name, password, role, email)


def _user_name(tokens: Tokens) -> str:
    """Take a user's name, bare or in quotes; unlike names of tables it keeps its case."""
    token = tokens.peek()
    if token.kind == "word":
        return tokens.take().text
    return tokens.name() if token.kind == "quoted" else tokens.string("a name")


def _drop(tokens: Tokens) -> Tree:
    tokens.take()
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
    raise _unsupported(tokens)


def _alter(tokens: Tokens) -> Tree:
    is_table = tokens.peek(1).word == "TABLE"
    is_table |= tokens.peek(1).word in ("USER", "SHARED", "STREAM") and tokens.peek(2).word == "TABLE"
    if not is_table:
        raise _unsupported(tokens)
    return parse_add_column(tokens)


def _storage(tokens: Tokens) -> FlushTree:
    if not tokens.sees("STORAGE", "FLUSH", "TABLE"):
        raise _unsupported(tokens)
    tokens.expect("STORAGE", "FLUSH", "TABLE")
    namespace, name = tokens.qualified()
    if namespace is None:
        raise InvalidSql("STORAGE FLUSH TABLE needs a qualified name: STORAGE FLUSH TABLE namespace.table")
    return FlushTree((namespace, name))


def _kill(tokens: Tokens) -> KillLive:
    if not tokens.accept("KILL", "LIVE", "QUERY"):
        raise _unsupported(tokens)
    return KillLive(tokens.string("the live query's id, as system.live shows it, in quotes"))


def _use(tokens: Tokens) -> UseNamespace:
    if tokens.take().word == "SET":
        tokens.expect("NAMESPACE")
    elif tokens.sees("NAMESPACE") and tokens.peek(1).kind in ("word", "quoted"):
        tokens.take()
    return UseNamespace(tokens.name("a namespace"))


def _show(tokens: Tokens) -> Select:
    if tokens.accept("SHOW", "NAMESPACES"):
        return Select("SELECT * FROM system.namespaces ORDER BY namespace_id", None, is_open=True)
    if tokens.accept("SHOW", "TABLES"):
        chosen = ""
        if tokens.accept("IN") or tokens.accept("FROM"):
            tokens.accept("NAMESPACE")
            chosen = f" WHERE namespace_id = {quoted(tokens.name('a namespace'))}"
        text = f"SELECT * FROM system.tables{chosen} ORDER BY namespace_id, table_name"
        return Select(text, None, is_open=True)
    raise _unsupported(tokens)


def quoted(text: str) -> str:
    """Return `text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _describe(tokens: Tokens) -> DescribeTree:
    tokens.take()
    tokens.accept("TABLE")
    return DescribeTree(tokens.qualified())


def _execute(tokens: Tokens) -> ExecuteAsTree:
    if not tokens.sees("EXECUTE", "AS", "USER"):
        raise _unsupported(tokens)
    tokens.expect("EXECUTE", "AS", "USER")
    user = _user_name(tokens)
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
    "CREATE": _create,
    "DROP": _drop,
    "ALTER": _alter,
    "STORAGE": _storage,
    "KILL": _kill,
    "USE": _use,
    "SET": _use,
    "SHOW": _show,
    "DESCRIBE": _describe,
    "DESC": _describe,
    "EXECUTE": _execute,
}
