"""Reads that need no planner: a plain query's tree → a read by key, or one that Arrow may answer.

Law: None is always a right answer: the query engine reads the text then, and says what is wrong with it
in its own words. So whatever is bound here means what the text means to the query engine.
"""

from collections.abc import Sequence

from upwell.engine.catalog import Table
from upwell.engine.direct import OrderKey
from upwell.engine.expression import And, ColumnRef, Compare, Literal, Node, Parameter, is_constant
from upwell.engine.operation import CompareOp
from upwell.errors import QueryFailure
from upwell.sql.lex import Fragment, Token
from upwell.sql.scalar import SYSTEM_COLUMNS, Scope, parameter_index, parse_condition
from upwell.sql.statements import DirectRead, PointRead, Scalar
from upwell.sql.tree import OrderTree, PlainSelect, Projection

_MIRRORED: dict[CompareOp, CompareOp] = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_LIMIT_DIGITS_MAX = 18
_Where = tuple[tuple[int, CompareOp, Literal | Parameter], ...]


def bind_read(plain: PlainSelect, scope: Scope) -> tuple[PointRead | None, DirectRead | None]:
    """Return the reads that `plain` is; its table is the scope's."""
    try:
        columns = bind_projection(plain.columns, scope)
        condition = None if plain.where is None else parse_condition(plain.where, scope)
    except QueryFailure:
        return None, None  # the query engine says it in its own words
    assert scope.table is not None, "a plain query has a table"
    if plain.where is not None and plain.is_whole:
        key = key_scalar(condition, plain.where, scope.table)
        if key is not None:
            return PointRead(scope.table, key, columns), None
    where = () if plain.where is None else comparisons(condition)
    order = _order(plain, columns, scope)
    names = [name for _, name in columns]
    if where is None or order is None or len(set(names)) < len(names):
        return None, None
    limit, offset = _number(plain.limit), _number(plain.offset)
    return None, DirectRead(scope.table, columns, plain.count, where, order, limit, offset)


def bind_projection(columns: Sequence[Projection], scope: Scope) -> tuple[tuple[int, str], ...]:
    """Return (index, output name) of each output column; `*` ends with `_seq` and `_deleted`."""
    assert scope.table is not None, "a projection has a table"
    found: list[tuple[int, str]] = []
    for column in columns:
        if column.column == "*":
            if column.qualifier is not None and not scope.qualifies((column.qualifier,)):
                raise QueryFailure(
                    f"'{column.qualifier}' is not {scope.table.full_name}, which the query reads"
                )
            found += [(index, each.name) for index, each in enumerate(scope.table.columns)]
            found += [(index, name) for name, index in SYSTEM_COLUMNS.items()]
        else:
            parts = (column.column,) if column.qualifier is None else (column.qualifier, column.column)
            found.append((scope.column(parts)[0], column.name))
    return tuple(found)


def keys_read(condition: Node | None, table: Table) -> DirectRead | None:
    """Return the read of the keys of the rows that meet `condition`; None: only a query can tell them."""
    where = comparisons(condition)
    if where is None or not table.has_key:
        return None
    columns = ((table.key_index, table.columns[table.key_index].name),)
    return DirectRead(table, columns, None, where, (), None, None)


def comparisons(condition: Node | None) -> _Where | None:
    """Return the comparisons whose conjunction `condition` is, None if it is anything else."""
    match condition:
        case And(items):
            parts = [comparisons(item) for item in items]
            return None if None in parts else tuple(each for part in parts if part for each in part)
        case Compare(op, ColumnRef(index), (Literal() | Parameter()) as value):
            return ((index, op, value),)
        case Compare(op, (Literal() | Parameter()) as value, ColumnRef(index)):
            return ((index, _MIRRORED[op], value),)
        case _:
            return None


def _order(
    plain: PlainSelect, columns: Sequence[tuple[int, str]], scope: Scope
) -> tuple[OrderKey, ...] | None:
    found = [_order_column(each, columns, scope) for each in plain.order]
    if None in found or (plain.count is not None and not plain.is_bare_count):
        return None
    return tuple(
        OrderKey(index, each.descending, each.nulls_first)
        for index, each in zip(found, plain.order, strict=True)
        if index is not None
    )


def _order_column(order: OrderTree, columns: Sequence[tuple[int, str]], scope: Scope) -> int | None:
    """Return the column to order by: an output column's name goes before one of the table."""
    if order.qualifier is None:
        named = next((index for index, name in columns if name == order.column), None)
        if named is not None:
            return named
    try:
        parts = (order.column,) if order.qualifier is None else (order.qualifier, order.column)
        return scope.column(parts)[0]
    except QueryFailure:
        return None


def _number(token: Token | None) -> Literal | Parameter | None:
    if token is None:
        return None
    if token.kind == "parameter":
        return Parameter(parameter_index(token))
    # A longer one is too large for the query engine, which says so.
    return Literal(int(token.text) if len(token.text) <= _LIMIT_DIGITS_MAX else None)


def key_scalar(condition: Node | None, where: Fragment, table: Table) -> Scalar | None:
    """Return the key if `condition`, which `where` says, is exactly primary key = scalar."""
    match condition:
        case Compare("=", ColumnRef(index), other) if _is_key(table, index) and is_constant(other):
            return Scalar(_side(where, last=True), other)
        case Compare("=", other, ColumnRef(index)) if _is_key(table, index) and is_constant(other):
            return Scalar(_side(where, last=False), other)
        case _:
            return None


def _is_key(table: Table, index: int) -> bool:
    return table.has_key and index == table.key_index


def _side(where: Fragment, *, last: bool) -> str:
    """Return the text on one side of the only `=` outside parentheses, or all of it if there is none."""
    tokens = where.tokens
    while tokens[0].word == "(" and tokens[-1].word == ")" and not _equals_at(tokens):
        tokens = tokens[1:-1]
    at = _equals_at(tokens)
    side = tokens[at + 1 :] if last else tokens[:at]
    offset = where.tokens[0].start
    return where.text[side[0].start - offset : side[-1].end - offset]


def _equals_at(tokens: Sequence[Token]) -> int:
    depth = 0
    for at, token in enumerate(tokens):
        depth += (token.word == "(") - (token.word == ")")
        if depth == 0 and token.word == "=":
            return at
    return 0
