"""Changes: the grammar of INSERT, UPDATE and DELETE.

Law: expressions, conditions and queries stay fragments with the words that they were written with; what
they mean is the binder's to say.
"""

from upwell.errors import InvalidSql
from upwell.sql.lex import Fragment, Tokens
from upwell.sql.tree import ConflictTree, DeleteTree, InsertTree, ReturnedItem, UpdateTree

_VALUE_ENDS = frozenset({","})
CONDITION_ENDS = frozenset(
    {"RETURNING", "ORDER", "LIMIT", "OFFSET", "GROUP", "HAVING", "UNION", "INTERSECT", "EXCEPT"}
    | {"WINDOW", "FETCH", "FOR", "QUALIFY", ",", ";"}
)
_ASSIGNMENT_ENDS = CONDITION_ENDS | {"WHERE", "FROM"}
_RETURNED_ENDS = frozenset({",", ";", "AS"})
QUERY_STARTS = frozenset({"SELECT", "WITH", "VALUES", "("})
_JOINS = frozenset(("USING", "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL", "ON"))
_NO_ALIAS = _ASSIGNMENT_ENDS | _JOINS | {"SET"}


def parse_insert(tokens: Tokens) -> InsertTree:
    """Read `INSERT INTO table [(columns)] VALUES … | query [ON CONFLICT …] [RETURNING …]`."""
    tokens.expect("INSERT")
    tokens.accept("INTO")
    table = tokens.qualified()
    named = tokens.name("an alias") if tokens.accept("AS") else None
    columns: tuple[str, ...] | None = None
    if tokens.sees("(") and tokens.peek(1).word not in QUERY_STARTS:
        columns = tuple(tokens.listed(lambda: tokens.name("a column")))
    rows: list[tuple[Fragment, ...]] = []
    query = None
    if tokens.accept("DEFAULT", "VALUES"):
        columns, rows = (), [()]
    elif tokens.accept("VALUES"):
        rows = [_row(tokens)]
        while tokens.accept(",") and not tokens.at_end:
            rows.append(_row(tokens))
    elif tokens.peek().word in QUERY_STARTS:
        query = _query(tokens)
    else:
        raise tokens.unexpected("VALUES or SELECT")
    conflict = _conflict(tokens) if tokens.accept("ON", "CONFLICT") else None
    returning = _returning(tokens)
    _refuse_clauses(tokens, "INSERT")
    return InsertTree(table, columns, tuple(rows), query, conflict, returning, named)


def _query(tokens: Tokens) -> str:
    """Take a query up to ON CONFLICT, RETURNING or the end."""
    start = tokens.index
    query = tokens.fragment(frozenset({";", "RETURNING"}))
    depth = 0
    for at, token in enumerate(query.tokens):
        depth += (token.word in ("(", "[")) - (token.word in (")", "]"))
        following = query.tokens[at + 1].word if at + 1 < len(query.tokens) else ""
        if depth == 0 and (token.word, following) == ("ON", "CONFLICT"):
            tokens.index = start + at
            return tokens.slice(start).text
    return query.text


def _conflict(tokens: Tokens) -> ConflictTree:
    target = None
    if tokens.sees("("):
        target = tuple(tokens.listed(lambda: tokens.name("the primary key")))
    tokens.expect("DO")
    if tokens.accept("NOTHING"):
        return ConflictTree(target)
    tokens.expect("UPDATE", "SET")
    return ConflictTree(target, _assignments(tokens), _where(tokens))


def _returning(tokens: Tokens) -> tuple[ReturnedItem, ...]:
    if not tokens.accept("RETURNING"):
        return ()
    items = [_returned(tokens)]
    while tokens.accept(","):
        items.append(_returned(tokens))
    return tuple(items)


def _returned(tokens: Tokens) -> ReturnedItem:
    if tokens.accept("*"):
        return ReturnedItem(None)
    fragment = tokens.fragment(_RETURNED_ENDS)
    if not tokens.accept("AS"):
        return ReturnedItem(fragment)
    token = tokens.peek()
    name = tokens.name("a name")
    return ReturnedItem(fragment, token.text[1:-1].replace('""', '"') if token.kind == "quoted" else name)


def _where(tokens: Tokens) -> Fragment | None:
    return tokens.fragment(CONDITION_ENDS) if tokens.accept("WHERE") else None


def _row(tokens: Tokens) -> tuple[Fragment, ...]:
    return tuple(tokens.listed(lambda: tokens.fragment(_VALUE_ENDS)))


def parse_update(tokens: Tokens) -> UpdateTree:
    """Read `UPDATE table [alias] SET … [WHERE …] [RETURNING …]`."""
    tokens.expect("UPDATE")
    table = tokens.qualified()
    named = alias(tokens)
    tokens.expect("SET")
    assignments = _assignments(tokens)
    where = _where(tokens)
    returning = _returning(tokens)
    _refuse_clauses(tokens, "UPDATE")
    return UpdateTree(table, named, assignments, where, returning)


def _assignments(tokens: Tokens) -> tuple[tuple[str, Fragment], ...]:
    assignments = [_assignment(tokens)]
    while tokens.accept(","):
        assignments.append(_assignment(tokens))
    return tuple(assignments)


def _assignment(tokens: Tokens) -> tuple[str, Fragment]:
    qualifier, column = tokens.qualified("a column")
    del qualifier  # PostgreSQL refuses it, MySQL wants it; it can only be the table itself.
    tokens.expect("=")
    return column, tokens.fragment(_ASSIGNMENT_ENDS)


def parse_delete(tokens: Tokens) -> DeleteTree:
    """Read `DELETE FROM table [alias] [WHERE …] [RETURNING …]`."""
    tokens.expect("DELETE", "FROM")
    table = tokens.qualified()
    named = alias(tokens)
    where = _where(tokens)
    returning = _returning(tokens)
    _refuse_clauses(tokens, "DELETE")
    return DeleteTree(table, named, where, returning)


def _refuse_clauses(tokens: Tokens, statement: str) -> None:
    word = tokens.peek().word
    if word.isalpha():
        raise InvalidSql(f"{statement} does not support {word}")


def alias(tokens: Tokens) -> str | None:
    """Read the other name of a table, with or without AS; None if there is none."""
    if tokens.accept("AS"):
        return tokens.name("an alias")
    token = tokens.peek()
    if token.kind == "quoted" or (token.kind == "word" and token.word not in _NO_ALIAS):
        return tokens.name()
    return None
