"""Values and clauses of changes, bound: what a column is set to, RETURNING, ON CONFLICT.

Law: what the query engine has to evaluate keeps its text. Of a row that is returned that text is asked of a
table of the changed rows; of a conflict, of a table whose columns are the row's and, behind them, those of
the row that was to be inserted, under names of their own (`EXCLUDED`).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from upwell.engine.catalog import Table
from upwell.engine.expression import Call, ColumnRef, Literal, Node, Parameter, columns_read
from upwell.engine.named_query import quoted
from upwell.errors import InvalidOperation, InvalidSql, QueryFailure, SystemColumnViolation
from upwell.sql.agreement import agreed_condition
from upwell.sql.lex import Fragment
from upwell.sql.parse import judge
from upwell.sql.scalar import SYSTEM_COLUMNS, Scope, parameter_index, parse_scalar
from upwell.sql.statements import OnConflict, Returning, Scalar
from upwell.sql.tree import ConflictTree, ReturnedItem
from upwell.types import Column, SqlType, WrittenFloat

EXCLUDED = "excluded"


class ExcludedScope(Scope):
    """The columns of a row and, behind them, those of the one that was to be inserted."""

    def column(self, parts: Sequence[str]) -> tuple[int, SqlType]:
        assert self.table is not None, "a conflict has a table"
        if parts[-1] in SYSTEM_COLUMNS:
            raise InvalidOperation(f"ON CONFLICT … DO UPDATE can't read {parts[-1]}")
        if tuple(parts[:-1]) != (EXCLUDED,):
            return Scope.column(self, parts)
        index = self.table.index_of.get(parts[-1])
        if index is None:
            raise QueryFailure(f"column '{parts[-1]}' does not exist in {self.table.full_name}")
        return len(self.table.columns) + index, self.table.columns[index].type


def bind_conflict(tree: ConflictTree, scope: Scope) -> OnConflict:
    """Return what to do about a row whose key is there."""
    table = scope.table
    assert table is not None, "a conflict has a table"
    if not table.has_key:
        raise InvalidOperation(f"ON CONFLICT needs a primary key, and {table.full_name} has none")
    fragments = [fragment for _, fragment in tree.assignments] + ([] if tree.where is None else [tree.where])
    if any(token.word == "SELECT" for fragment in fragments for token in fragment.tokens):
        raise InvalidSql("ON CONFLICT … DO UPDATE has no subqueries; SELECT before, in the same transaction")
    key = table.columns[table.key_index].name
    if tree.target is not None and tree.target != (key,):
        named = ", ".join(tree.target)
        raise InvalidOperation(f"ON CONFLICT ({named}): in {table.full_name} only the key '{key}' is unique")
    indexes = distinct([writable(table, name) for name, _ in tree.assignments], table)
    scalars = [
        bind_scalar(fragment, table.columns[index], scope)
        for index, (_, fragment) in zip(indexes, tree.assignments, strict=True)
    ]
    where = None
    if tree.where is not None:
        node = agreed_condition(tree.where, scope)
        if node is None:
            judge(tree.where)
        where = Scalar(own_names(tree.where, scope), node)
    return OnConflict(tuple(zip(indexes, scalars, strict=True)), where)


def bind_returning(items: Sequence[ReturnedItem], scope: Scope) -> Returning:
    """Return what a change gives back of each row."""
    table = scope.table
    assert table is not None, "what is changed has a table"
    columns: list[tuple[int, str]] = []
    texts: list[str] = []
    is_plain = True
    for item in items:
        if item.fragment is None or _is_whole(item, scope):
            columns += [(index, column.name) for index, column in enumerate(table.columns)]
            texts += [quoted(column.name) for column in table.columns]
            continue
        index = _returned_column(item.fragment, scope)
        if index is None:
            is_plain = False
            text = f"({own_names(item.fragment, scope)}\n)"
        else:
            name = table.columns[index].name
            columns.append((index, item.name or name))
            text = quoted(name)
        texts.append(text if item.name is None else f"{text} AS {quoted(item.name)}")
    query = f'SELECT {", ".join(texts)} FROM "{table.namespace}"."{table.name}"'
    return Returning(tuple(columns) if is_plain else None, query)


def _is_whole(item: ReturnedItem, scope: Scope) -> bool:
    """Tell whether an item is `t.*`; raise if its `t` isn't the table."""
    tokens = item.fragment.tokens if item.fragment is not None else ()
    if len(tokens) < 3 or tokens[-1].word != "*" or tokens[-2].word != ".":
        return False
    names = [
        token.text.strip('"') if token.kind == "quoted" else token.text.lower() for token in tokens[:-2:2]
    ]
    if not scope.qualifies(names):
        raise InvalidOperation(f"'{'.'.join(names)}' is not the table that changes; write RETURNING *")
    return True


def _returned_column(fragment: Fragment, scope: Scope) -> int | None:
    """Return the index of the column that `fragment` is; None if it is another expression."""
    if any(token.word == "SELECT" for token in fragment.tokens):
        raise InvalidSql("RETURNING has no subqueries; SELECT afterwards, in the same transaction")
    if any(token.text.strip('"').lower() in SYSTEM_COLUMNS for token in fragment.tokens):
        raise InvalidOperation("RETURNING can't give _seq and _deleted: they are known after the commit")
    node = parse_scalar(fragment, scope)
    if node is None:
        judge(fragment)
    return node.index if isinstance(node, ColumnRef) else None


def writable(table: Table, name: str) -> int:
    """Return the index of a column that DML may set."""
    if name in SYSTEM_COLUMNS:
        raise SystemColumnViolation(f"column '{name}' of {table.full_name} is set by the server")
    index = table.index_of.get(name)
    if index is None:
        raise InvalidOperation(f"column '{name}' does not exist in {table.full_name}")
    return index


def distinct(indexes: list[int], table: Table) -> tuple[int, ...]:
    """Return `indexes`; raise if one comes twice."""
    for at, index in enumerate(indexes):
        if index in indexes[:at]:
            raise InvalidOperation(f"column '{table.columns[index].name}' is named more than once")
    return tuple(indexes)


def _written(fragment: Fragment) -> WrittenFloat | None:
    """Return a fragment that is nothing but a number, with all its digits."""
    *sign, token = fragment.tokens
    if token.kind != "number" or [each.word for each in sign] not in ([], ["-"]):
        return None
    return WrittenFloat("-" * len(sign) + token.text)


def bind_scalar(fragment: Fragment, column: Column, scope: Scope) -> Scalar:
    """Return the value of `column` that `fragment` says."""
    if len(fragment.tokens) == 1:
        token = fragment.tokens[0]
        if token.kind == "parameter":
            return parameter_scalar(parameter_index(token))
        if token.word == "DEFAULT":
            return Scalar("DEFAULT", _default(column))
    if column.type is SqlType.DECIMAL and (number := _written(fragment)) is not None:
        return Scalar(fragment.text, Literal(number))
    node = parse_scalar(fragment, scope)
    if node is None:
        judge(fragment)
    elif any(index < 0 for index in columns_read(node)):
        node = None  # `_seq` and `_deleted` are no cells of the row that it would be evaluated on
    return Scalar(own_names(fragment, scope), node)


@lru_cache(maxsize=65536)
def parameter_scalar(index: int) -> Scalar:
    """Return the scalar `$n` of the parameter at `index` (from 0)."""
    return Scalar(f"${index + 1}", Parameter(index))


def _default(column: Column) -> Node:
    if column.default is None:
        return Literal(None)
    if column.default.function is not None:
        return Call(column.default.function)
    return Literal(column.default.value)


def excluded_name(column: Column) -> str:
    """Return the column of a row that was to be inserted, in a table of conflicts."""
    return f"{EXCLUDED}.{column.name}"


def own_names(fragment: Fragment, scope: Scope) -> str:
    """Return the text with the alias of the table replaced by its name, and `excluded.x` by its column."""
    if scope.table is None or (scope.alias is None and not isinstance(scope, ExcludedScope)):
        return fragment.text
    offset, done, parts = fragment.tokens[0].start, 0, []
    for token, following in pairwise(fragment.tokens):
        if following.word != ".":
            continue
        name = token.text.strip('"').lower()
        if name == scope.alias:
            parts += [fragment.text[done : token.start - offset], scope.table.name]
            done = token.end - offset
        elif name == EXCLUDED and isinstance(scope, ExcludedScope):
            column = fragment.tokens[fragment.tokens.index(following) + 1]
            parts += [
                fragment.text[done : token.start - offset],
                quoted(f"{EXCLUDED}.{column.text.strip(chr(34)).lower()}"),
            ]
            done = column.end - offset
    return "".join(parts) + fragment.text[done:]
