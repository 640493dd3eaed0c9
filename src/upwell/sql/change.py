"""Changes: the grammar of INSERT, UPDATE and DELETE.

Law: expressions, conditions and queries stay fragments with the words that they were written with; what
they mean is the binder's to say.
"""

from itertools import pairwise

from upwell.errors import InvalidSql
from upwell.sql.lex import Fragment, Tokens
from upwell.sql.tree import DeleteTree, InsertTree, UpdateTree

_VALUE_ENDS = frozenset({","})
CONDITION_ENDS = frozenset(
    {"RETURNING", "ORDER", "LIMIT", "OFFSET", "GROUP", "HAVING", "UNION", "INTERSECT", "EXCEPT"}
    | {"WINDOW", "FETCH", "FOR", "QUALIFY", ",", ";"}
)
_ASSIGNMENT_ENDS = CONDITION_ENDS | {"WHERE", "FROM"}
QUERY_STARTS = frozenset({"SELECT", "WITH", "VALUES", "("})
_JOINS = frozenset(("USING", "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL", "ON"))
_NO_ALIAS = _ASSIGNMENT_ENDS | _JOINS | {"SET"}


def parse_insert(tokens: Tokens) -> InsertTree:
    """Read `INSERT [INTO] table [(columns)] VALUES … | query | DEFAULT VALUES`."""
    tokens.expect("INSERT")
    tokens.accept("INTO")
    table = tokens.qualified()
    columns: tuple[str, ...] | None = None
    if tokens.sees("(") and tokens.peek(1).word not in QUERY_STARTS:
        columns = tuple(tokens.listed(lambda: tokens.name("a column")))
    if tokens.accept("DEFAULT", "VALUES"):
        _refuse_clauses(tokens, "INSERT")
        return InsertTree(table, (), ((),), None)
    if tokens.accept("VALUES"):
        rows = [_row(tokens)]
        while tokens.accept(",") and not tokens.at_end:
            rows.append(_row(tokens))
        _refuse_clauses(tokens, "INSERT")
        return InsertTree(table, columns, tuple(rows), None)
    if tokens.peek().word not in QUERY_STARTS:
        raise tokens.unexpected("VALUES or SELECT")
    query = tokens.fragment(frozenset({";", "RETURNING"}))
    _refuse_clauses(tokens, "INSERT")
    if _has_conflict_clause(query):
        raise InvalidSql("ON CONFLICT is not supported; UPDATE the row, or INSERT it after a DELETE")
    return InsertTree(table, columns, (), query.text)


def _row(tokens: Tokens) -> tuple[Fragment, ...]:
    return tuple(tokens.listed(lambda: tokens.fragment(_VALUE_ENDS)))


def _has_conflict_clause(query: Fragment) -> bool:
    return ("ON", "CONFLICT") in pairwise(token.word for token in query.tokens)


def parse_update(tokens: Tokens) -> UpdateTree:
    """Read `UPDATE table [alias] SET … [WHERE …]`."""
    tokens.expect("UPDATE")
    table = tokens.qualified()
    named = alias(tokens)
    tokens.expect("SET")
    assignments = [_assignment(tokens)]
    while tokens.accept(","):
        assignments.append(_assignment(tokens))
    where = tokens.fragment(CONDITION_ENDS) if tokens.accept("WHERE") else None
    _refuse_clauses(tokens, "UPDATE")
    return UpdateTree(table, named, tuple(assignments), where)


def _assignment(tokens: Tokens) -> tuple[str, Fragment]:
    qualifier, column = tokens.qualified("a column")
    del qualifier  # PostgreSQL refuses it, MySQL wants it; it can only be the table itself.
    tokens.expect("=")
    return column, tokens.fragment(_ASSIGNMENT_ENDS)


def parse_delete(tokens: Tokens) -> DeleteTree:
    """Read `DELETE FROM table [alias] [WHERE …]`."""
    tokens.expect("DELETE", "FROM")
    table = tokens.qualified()
    named = alias(tokens)
    where = tokens.fragment(CONDITION_ENDS) if tokens.accept("WHERE") else None
    _refuse_clauses(tokens, "DELETE")
    return DeleteTree(table, named, where)


def _refuse_clauses(tokens: Tokens, statement: str) -> None:
    word = tokens.peek().word
    if word == "RETURNING":
        raise InvalidSql("RETURNING is not supported; SELECT the row by its key afterwards")
    if tokens.sees("ON", "CONFLICT"):
        raise InvalidSql("ON CONFLICT is not supported; UPDATE the row, or INSERT it after a DELETE")
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
