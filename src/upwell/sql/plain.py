"""Plain queries: `SELECT columns | COUNT(*) FROM table [WHERE …] [ORDER BY columns] [LIMIT n] [OFFSET n]`.

Law: what this grammar doesn't read is no error: it is another query, which the query engine reads.
"""

from upwell.errors import InvalidSql
from upwell.sql.change import CONDITION_ENDS, alias
from upwell.sql.lex import Token, Tokens
from upwell.sql.tree import OrderTree, PlainSelect, Projection


def parse_plain_select(tokens: Tokens) -> PlainSelect:
    """Read `SELECT columns FROM table [alias] [WHERE …]`; raise `InvalidSql` for any other query."""
    plain = _select(tokens, (_projection(tokens),) if tokens.accept("SELECT") else ())
    tokens.expect_end()
    return plain


def find_plain_select(tokens: Tokens) -> PlainSelect | None:
    """Return the plain query that the tokens are, ordered and limited or not; None for any other."""
    try:
        return _whole(tokens)
    except InvalidSql:
        return None


def _whole(tokens: Tokens) -> PlainSelect:
    tokens.expect("SELECT")
    plain = _counted(tokens) if tokens.sees("COUNT", "(", "*", ")") else None
    plain = plain or _select(tokens, (_projection(tokens),))
    order = []
    if tokens.accept("ORDER", "BY"):
        order.append(_order(tokens))
        while tokens.accept(","):
            order.append(_order(tokens))
    limit = _number(tokens) if tokens.accept("LIMIT") else None
    offset = _number(tokens) if tokens.accept("OFFSET") else None
    tokens.expect_end()
    return PlainSelect(
        plain.table, plain.alias, plain.columns, plain.where, plain.count, tuple(order), limit, offset
    )


def _counted(tokens: Tokens) -> PlainSelect:
    for _ in range(4):
        tokens.take()
    name = _output_name(tokens, "count(*)") if not tokens.sees("FROM") else "count(*)"
    return _from(tokens, (), name)


def _select(tokens: Tokens, first: tuple[Projection, ...]) -> PlainSelect:
    if not first:
        raise tokens.unexpected("SELECT")
    columns = [*first]
    while tokens.accept(","):
        columns.append(_projection(tokens))
    return _from(tokens, tuple(columns), None)


def _from(tokens: Tokens, columns: tuple[Projection, ...], count: str | None) -> PlainSelect:
    tokens.expect("FROM")
    table = tokens.qualified()
    named = alias(tokens)
    where = tokens.fragment(CONDITION_ENDS) if tokens.accept("WHERE") else None
    return PlainSelect(table, named, columns, where, count)


def _projection(tokens: Tokens) -> Projection:
    if tokens.accept("*"):
        return Projection(None, "*", "*")
    qualifier, column = None, tokens.name("a column")
    if tokens.accept("."):
        qualifier, column = column, "*" if tokens.accept("*") else tokens.name("a column")
    return Projection(qualifier, column, column if column == "*" else _output_name(tokens, column))


def _output_name(tokens: Tokens, otherwise: str) -> str:
    if not tokens.accept("AS") and tokens.peek().kind != "quoted":
        return otherwise
    token = tokens.peek()
    name = tokens.name()
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else name


def _order(tokens: Tokens) -> OrderTree:
    first = tokens.name("a column")
    qualifier, column = (first, tokens.name("a column")) if tokens.accept(".") else (None, first)
    descending = tokens.accept("DESC")
    if not descending:
        tokens.accept("ASC")
    nulls_first = descending
    if tokens.accept("NULLS"):
        nulls_first = tokens.accept("FIRST")
        if not nulls_first:
            tokens.expect("LAST")
    return OrderTree(qualifier, column, descending, nulls_first)


def _number(tokens: Tokens) -> Token:
    token = tokens.take()
    if token.kind == "parameter" or (token.kind == "number" and token.text.isdigit()):
        return token
    raise tokens.unexpected("a number")
