"""Live queries: the text of a subscription → table, columns and a predicate for changes.

Law: whatever is accepted here can be judged row by row with exactly the SELECT's outcome: by a tree, or by
the query engine itself. A WHERE that looks at other rows, or changes by itself, is refused, never skipped.
"""

from dataclasses import dataclass

from upwell.engine.catalog import Catalog, Table
from upwell.engine.expression import And, Node
from upwell.errors import InvalidSql
from upwell.sql.agreement import agreed_condition
from upwell.sql.bind import SYSTEM_NAMESPACES
from upwell.sql.clause import own_names
from upwell.sql.condition import conjuncts, named_columns, refuse_undecidable
from upwell.sql.lex import Tokens, split
from upwell.sql.plain import parse_plain_select
from upwell.sql.read import bind_projection
from upwell.sql.scalar import SYSTEM_COLUMNS, Scope
from upwell.sql.tree import PlainSelect

_FORM = "Subscription query supports only SELECT ... FROM ... [WHERE ...]."
_REFUSED = {
    "GROUP": "GROUP BY",
    "HAVING": "HAVING",
    "ORDER": "ORDER BY",
    "LIMIT": "LIMIT",
    "OFFSET": "OFFSET",
    "FETCH": "FETCH",
    "DISTINCT": "DISTINCT",
    "JOIN": "JOIN clauses",
    "UNION": "UNION",
    "INTERSECT": "INTERSECT",
    "EXCEPT": "EXCEPT",
    "WINDOW": "WINDOW",
}


@dataclass(frozen=True, slots=True)
class LiveQuery:
    """What a subscription watches.

    `columns` are (index, output name), with `engine.expression`'s indexes for `_seq` and `_deleted`;
    None is `*`, which follows the table when it changes. `where` is the predicate's text as written.
    `predicate` is true for each row that matches; unless it `is_whole`, `where` has to be asked as well,
    which reads the columns `names`.
    """

    table: Table
    columns: tuple[tuple[int, str], ...] | None
    predicate: Node | None
    where: str | None
    is_whole: bool = True
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SystemQuery:
    """What a subscription to a system table asks: `columns` as (column, output name), None is `*`."""

    namespace: str
    name: str
    columns: tuple[tuple[str, str], ...] | None
    where: str | None


def find_system_query(sql: str) -> SystemQuery | None:
    """Return the live query of a system table that `sql` says, None if it says something else."""
    if not any(name in sql.lower() for name in SYSTEM_NAMESPACES):
        return None
    plain = _plain_query(sql)
    if plain.table[0] not in SYSTEM_NAMESPACES:
        return None
    everything = [column.column for column in plain.columns] == ["*"]
    columns = None if everything else tuple((column.column, column.name) for column in plain.columns)
    where = None if plain.where is None else plain.where.text
    return SystemQuery(plain.table[0], plain.table[1], columns, where)


def parse_live_query(sql: str, catalog: Catalog, namespace: str) -> LiveQuery:
    """Return the live query that `sql` says; raise `InvalidSql` or an `SqlFailure`.

    The table must be qualified, so `namespace` decides nothing; it only makes the refusal helpful.
    """
    plain = _plain_query(sql)
    if plain.table[0] is None:
        raise InvalidSql(
            f"Query must use namespace.table format; write {namespace}.{plain.table[1]} or another namespace"
        )
    table = catalog.get_table(plain.table[0], plain.table[1])
    scope = Scope(table, plain.alias)
    everything = [column.column for column in plain.columns] == ["*"]
    named = _named_once(bind_projection(plain.columns, scope), table)
    columns = None if everything else named
    if plain.where is None:
        return LiveQuery(table, columns, None, None)
    refuse_undecidable(plain.where, split(sql)[0])
    parts = [agreed_condition(each, scope) for each in conjuncts(plain.where)]
    known = tuple(part for part in parts if part is not None)
    predicate = And(known) if len(known) > 1 else next(iter(known), None)
    where = own_names(plain.where, scope)
    if len(known) == len(parts):
        return LiveQuery(table, columns, predicate, where)
    return LiveQuery(table, columns, predicate, where, False, named_columns(plain.where, table))


def _named_once(columns: tuple[tuple[int, str], ...], table: Table) -> tuple[tuple[int, str], ...]:
    """Return the columns without repetitions: rows are objects, so that a name can only mean one column."""
    names = dict(SYSTEM_COLUMNS)
    if table.has_key and all(index != table.key_index for index, _ in columns):
        # Updates tell the key, whatever was chosen.
        names[table.columns[table.key_index].name] = table.key_index
    for index, name in columns:
        if names.setdefault(name, index) != index:
            raise InvalidSql(
                f"Subscription query calls two columns '{name}' (rows also have _seq and their key); "
                "give one of them another name with AS"
            )
    return tuple(dict.fromkeys(columns))


def _plain_query(sql: str) -> PlainSelect:
    texts = split(sql)
    if len(texts) != 1:
        raise InvalidSql(f"Subscription query must be exactly one SELECT statement. {_FORM}")
    tokens = Tokens(texts[0])
    if not tokens.sees("SELECT"):
        raise InvalidSql(_FORM)
    _refuse_clauses(tokens)
    return _plain(tokens)


def _plain(tokens: Tokens) -> PlainSelect:
    try:
        return parse_plain_select(tokens)
    except InvalidSql as error:
        raise InvalidSql(f"{_FORM} The projection is * or column names: {error.args[0]}") from error


def _refuse_clauses(tokens: Tokens) -> None:
    depth, clause = 0, ""
    while not tokens.at_end:
        token = tokens.take()
        depth += (token.word == "(") - (token.word == ")")
        if depth:
            continue
        if token.word in ("SELECT", "FROM", "WHERE"):
            clause = token.word
        # IS DISTINCT FROM belongs to WHERE.
        if token.word in _REFUSED and not (clause == "WHERE" and token.word == "DISTINCT"):
            raise InvalidSql(f"Subscription query does not support {_REFUSED[token.word]}. {_FORM}")
        if token.word == "," and clause == "FROM":
            raise InvalidSql(f"Subscription query requires exactly one table in the FROM clause. {_FORM}")
    tokens.index = 0
