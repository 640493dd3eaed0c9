"""Agreement: which trees are known to say of every row what the query engine says.

Law: such a tree has an answer for every row, and it is the engine's: a property test asks both. Left out is
what differs at an edge (the engine's integers wrap, DOUBLE is divided by zero, BIGINT is compared with DOUBLE
as DOUBLE, LOWER knows letters of a newer Unicode, lists of one operand are merged whatever is NULL or equal
in them) and what may have no answer.
"""

from upwell.engine.catalog import Table
from upwell.engine.expression import (
    DELETED,
    PATH,
    And,
    Call,
    ColumnRef,
    Compare,
    InList,
    IsNull,
    Like,
    Literal,
    Node,
    Not,
    Or,
    children,
    walk,
)
from upwell.engine.operation import LIKE_CHARS_MAX
from upwell.sql.lex import Fragment
from upwell.sql.scalar import Scope, parse_condition
from upwell.sql.typed import KIND_OF, MOMENTS, NUMBERS
from upwell.types import INTEGER_BITS, SqlType

_CHOICES = frozenset({"COALESCE", "CASE"})
_FLOATS = frozenset({SqlType.FLOAT, SqlType.DOUBLE})
_EXACT_MAX = {SqlType.FLOAT: 1 << 24, SqlType.DOUBLE: 1 << 53}
_NANOSECONDS_US_MAX = (1 << 63) // 1000 - 1
_KINDS = {
    "NOW": SqlType.TIMESTAMP,
    "LENGTH": SqlType.BIGINT,
    **dict.fromkeys(("CURRENT_USER", "CURRENT_ROLE", *PATH), SqlType.TEXT),
}


def agreed_condition(fragment: Fragment, scope: Scope) -> Node | None:
    """Return the tree of a WHERE, None if the query engine has to be asked."""
    node = parse_condition(fragment, scope)
    assert scope.table is not None, "a condition has a table"
    if node is None or not agrees(node, scope.table) or _has_lists_to_merge(node):
        return None
    return node


def _has_lists_to_merge(node: Node) -> bool:
    """Tell whether an operand is looked for in two lists, or in one that isn't of literals."""
    lists = [part for part in walk(node) if isinstance(part, InList)]
    equal = [part.left for part in walk(node) if isinstance(part, Compare) and part.op in ("=", "!=")]
    operands = [part.item for part in lists]
    return (
        any(not isinstance(option, Literal) for part in lists for option in part.options)
        or len(set(operands)) < len(operands)
        or not set(operands).isdisjoint(equal)
    )


def agrees(node: Node, table: Table) -> bool:
    """Tell whether the query engine surely gives the tree's answer, for every row of `table`."""
    if not all(agrees(child, table) for child in children(node)):
        return False
    match node:
        case Literal() | ColumnRef() | And() | Or() | Not() | IsNull():
            return True
        case Compare(_, left, right):
            return _compares(left, right, table)
        case InList(item, options):
            kinds = {_kind(each, table) for each in (item, *options)}
            return not kinds & _FLOATS and all(_compares(item, option, table) for option in options)
        case Like(_, Literal(str(pattern)), fold=False):
            return len(pattern) <= LIKE_CHARS_MAX
        case Call(function, arguments):
            values = (*arguments[1::2], arguments[-1]) if function == "CASE" else arguments
            return function in _KINDS or (function in _CHOICES and _is_one_kind(values, table))
        case _:
            return False


def _kind(node: Node, table: Table) -> SqlType | None:
    match node:
        case Literal(value):
            return KIND_OF[type(value)]
        case ColumnRef(index) if index >= 0:
            # Behind a row's own columns are those of the row that it is in conflict with.
            return table.columns[index % len(table.columns)].type
        case ColumnRef(index):
            return SqlType.BOOLEAN if index == DELETED else SqlType.BIGINT
        case Call("COALESCE", arguments):
            return next((kind for each in arguments if (kind := _kind(each, table))), None)
        case Call("CASE", arguments):
            values = (*arguments[1::2], arguments[-1])
            return next((kind for each in values if (kind := _kind(each, table))), None)
        case Call(function):
            return _KINDS.get(function)
        case _:
            return SqlType.BOOLEAN


def _is_one_kind(nodes: tuple[Node, ...], table: Table) -> bool:
    return len({_kind(node, table) for node in nodes} - {None}) <= 1


def _compares(left: Node, right: Node, table: Table) -> bool:
    a, b = _kind(left, table), _kind(right, table)
    if isinstance(left, Literal) and isinstance(right, Literal):
        return False  # folded by rules of its own
    if isinstance(left, Literal):
        return _compares(right, left, table)
    if isinstance(right, Literal):
        return _compares_with(right, left, a, b)
    return a == b or not ({a, b} & _FLOATS and {a, b} <= NUMBERS) or {a, b} <= _exact_in(a, b)


def _exact_in(a: SqlType | None, b: SqlType | None) -> set[SqlType | None]:
    return {SqlType.DOUBLE, SqlType.SMALLINT, SqlType.INT} if SqlType.DOUBLE in (a, b) else set()


def _compares_with(literal: Literal, other: Node, kind: SqlType | None, of_literal: SqlType | None) -> bool:
    """Tell whether what has a `kind` is compared with this literal alike."""
    value = literal.value
    if kind in MOMENTS:
        return value is None or (isinstance(value, int) and abs(value) <= _NANOSECONDS_US_MAX)
    if kind is SqlType.UUID:
        return isinstance(other, ColumnRef)
    if kind in INTEGER_BITS and of_literal is SqlType.DOUBLE:
        return isinstance(value, float) and abs(value) < _EXACT_MAX[SqlType.DOUBLE]
    if kind in _FLOATS and isinstance(value, (int, float)):
        assert kind is not None, "it is one of the floats"
        return (value == int(value) and 0 < abs(value) < _EXACT_MAX[kind]) or kind is of_literal
    return True
