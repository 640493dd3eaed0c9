"""Prepared statements: text → (Statement, values), through caches of what was seen before.

Law: with or without shapes and caches the same text means the same; a cached Statement is only used
with the very catalog that it was bound to, and only with values of the types it was bound for. A long
text isn't kept: what the caches can hold is entries × `CACHED_TEXT_CHARS_MAX`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

from upwell.engine.catalog import Catalog
from upwell.engine.expression import Parameter
from upwell.errors import ParameterError, UpwellError
from upwell.sql.bind import Binder
from upwell.sql.clause import parameter_scalar
from upwell.sql.lex import Fragment, split
from upwell.sql.parse import judge, parse
from upwell.sql.render import parameter_count
from upwell.sql.scalar import Scope, parse_scalar
from upwell.sql.shape import Lifted, lift, lift_all, numbered
from upwell.sql.statements import Delete, Insert, Scalar, Select, Statement, Update
from upwell.sql.tree import (
    CreateViewTree,
    DeleteTree,
    ExecuteAsTree,
    InsertTree,
    SelectTree,
    Tree,
    UpdateTree,
)
from upwell.types import SqlType, Value

PARAMETERS_MAX = 50
PARAMETER_BYTES_MAX = 512 * 1024
CACHED_TEXT_CHARS_MAX = 4 * 1024
_ROWS_ALIKE_MIN = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """A Statement and how many values its `$n` ask for."""

    statement: Statement
    parameter_count: int


@dataclass(frozen=True, slots=True)
class _ByTypes:
    """Stands for statements that depend on the types of their values; those are cached with them."""


@dataclass(frozen=True, slots=True)
class _Unlifted:
    """Stands for a shape whose literals have to stay in the text."""


_BY_TYPES = _ByTypes()
_UNLIFTED = _Unlifted()
Entry = Prepared | _ByTypes | _Unlifted


@dataclass(slots=True)
class _Cache:
    """Entries of one catalog, oldest out first. Holding on to the catalog makes its identity unique."""

    catalog: Catalog
    entries_max: int
    entries: dict[Hashable, Entry] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def of_shape(self, lifted: Lifted, namespace: str) -> Entry | None:
        """Return what is known of a shape with values of these types."""
        shape, values = lifted
        found = self.entries.get((shape, namespace))
        if found is _BY_TYPES:
            found = self.entries.get((shape, namespace, tuple(map(type, values))))
        return found

    def put(self, key: Hashable, entry: Entry) -> None:
        with self._lock:
            while len(self.entries) >= self.entries_max:
                del self.entries[next(iter(self.entries))]
            self.entries[key] = entry


class Preparer:
    """Turns text into Statements. Thread-safe; keeps at most `cache_entries_max` of them.

    `shapes=False` parses every new text as it stands.
    """

    def __init__(self, *, cache_entries_max: int = 2048, shapes: bool = True) -> None:
        self._entries_max = cache_entries_max
        self._shapes = shapes
        self._cache: _Cache | None = None
        self._checked: dict[str, None] = {}

    def statements(self, sql: str) -> list[tuple[str, Lifted | None]]:
        """Return text and shape of the statements in `sql`, none if there is nothing but comments.

        Their names are looked up by `prepare`, when the statements before have run.
        """
        sql = sql.strip()
        if sql.find(";") in (-1, len(sql) - 1) and not sql.startswith(("--", "/*")):
            sql = sql.removesuffix(";")
            return [(sql, self._lift(sql))] if sql else []
        lifted = lift_all(sql) if self._shapes else None
        return [(text, None) for text in split(sql)] if lifted is None else lifted

    def _lift(self, sql: str) -> Lifted | None:
        return lift(sql) if self._shapes else None

    def check(self, sql: str, lifted: Lifted | None) -> Tree | None:
        """Return the tree of a statement, None if its shape was checked; raise `InvalidSql` if it is none.

        Whether the query in it is one, is for the query engine to say; `note_checked` tells that all is well.
        """
        if lifted is not None and lifted[0] in self._checked:
            return None
        tree = parse(sql)
        for fragment in _expressions(tree):
            if len(fragment.tokens) > 1 and parse_scalar(fragment, _Nameless(None)) is None:
                judge(fragment)
        return tree

    def note_checked(self, lifted: Lifted | None) -> None:
        """Remember a shape that `check` and the query engine accepted; its statements are for every role."""
        if lifted is not None and len(lifted[0]) <= CACHED_TEXT_CHARS_MAX:
            if len(self._checked) >= self._entries_max:
                self._checked.clear()
            self._checked[lifted[0]] = None

    def prepare(
        self,
        sql: str,
        catalog: Catalog,
        namespace: str,
        params: Sequence[Value] = (),
        rows: Sequence[Sequence[Value]] | None = None,
        lifted: Lifted | None = None,
    ) -> tuple[Statement, Sequence[Value]]:
        """Return the Statement of one statement's text and the values of its `$n`; `lifted` is its shape.

        With `rows` it is an INSERT, UPDATE or DELETE that takes as many values as each of them has.

        Raise `InvalidSql`, `ParameterError`, or an `SqlFailure` for names that aren't there.
        """
        cache = self._cache
        if cache is None or cache.catalog is not catalog:
            # A new object, never cleared: a thread that still binds to the old catalog fills the old one.
            cache = self._cache = _Cache(catalog, self._entries_max)
        if rows is not None:
            return self._of_rows(catalog, sql, namespace, rows), ()
        if self._shapes and not params:
            lifted = lifted or lift(sql)
            if lifted is not None:
                shape, values = lifted
                found = cache.entries.get((shape, namespace))
                if found is None or found is _BY_TYPES:
                    found = self._by_types(cache, shape, namespace, values)
                if isinstance(found, Prepared):
                    return found.statement, values
        return self._written(cache, sql, namespace, params).statement, params

    def find(
        self, sql: str, catalog: Catalog, namespace: str, params: Sequence[Value]
    ) -> tuple[Statement, Sequence[Value]] | None:
        """Return what `prepare` would, if `sql` is one statement that was seen before; else None."""
        cache = self._cache
        if cache is None or cache.catalog is not catalog:
            return None
        if params:
            found = cache.entries.get(("text", sql, namespace, tuple(map(type, params))))
            check_parameters(params)
            return (found.statement, params) if isinstance(found, Prepared) else None
        lifted = self._lift(sql)
        if lifted is None:
            return None
        found = cache.of_shape(lifted, namespace)
        return (found.statement, lifted[1]) if isinstance(found, Prepared) else None

    def prepare_insert(self, lifted: Lifted, catalog: Catalog, namespace: str) -> Insert | None:
        """Return an INSERT of rows that its shape was seen to be; None for what takes more than its values.

        That are queries, clauses, and references among its own rows.
        """
        cache = self._cache
        if cache is None or cache.catalog is not catalog:
            return None
        match cache.of_shape(lifted, namespace):
            case Prepared(Insert(table, query=None, conflict=None, returning=None) as statement):
                is_own = any(reference.parent == table.id for reference in table.references)
                return None if is_own else statement
            case _:
                return None

    @staticmethod
    def _of_rows(catalog: Catalog, sql: str, namespace: str, rows: Sequence[Sequence[Value]]) -> Statement:
        tree = parse(sql)
        inner = tree.inner if isinstance(tree, ExecuteAsTree) else tree
        if not isinstance(inner, (InsertTree, UpdateTree, DeleteTree)):
            raise ParameterError("rows go with INSERT, UPDATE or DELETE; run other statements with params")
        wanted = parameter_count(sql)
        for number, row in enumerate(rows, 1):
            if len(row) != wanted:
                raise ParameterError(f"row {number} has {len(row)} values, but the statement takes {wanted}")
            check_parameters(row)
        kinds = {tuple(map(type, row)) for row in rows}
        binder = Binder(catalog, namespace, next(iter(kinds), ()))
        statement = binder.bind(tree)
        if binder.used_types and len(kinds) > 1:
            # Without types what depends on them is left to the query engine, which gets the values.
            statement = Binder(catalog, namespace).bind(tree)
        return statement

    def _by_types(self, cache: _Cache, shape: str, namespace: str, values: Sequence[Value]) -> Entry:
        key = (shape, namespace, tuple(map(type, values)))
        found = cache.entries.get(key)
        if found is not None:
            return found
        entry, used_types = self._learn(cache, shape, namespace, values)
        if entry is not None and len(shape) <= CACHED_TEXT_CHARS_MAX:
            cache.put(key if used_types else (shape, namespace), entry)
            if used_types:
                cache.put((shape, namespace), _BY_TYPES)
        return entry or _UNLIFTED

    def _learn(
        self, cache: _Cache, shape: str, namespace: str, values: Sequence[Value]
    ) -> tuple[Entry | None, bool]:
        """Bind a shape that is new; None if only the text as written can say what is wrong with it."""
        many = self._rows_alike(cache, shape, namespace, values)
        if many is not None:
            return many, False
        binder = Binder(cache.catalog, namespace, tuple(map(type, values)))
        try:
            statement = binder.bind(parse(numbered(shape)))
        except UpwellError:
            return None, False
        match statement:
            case Insert(query=None) | Update() | Delete():
                pass
            case Select(point=point, direct=direct) if point is not None or direct is not None:
                pass
            case _:
                return _UNLIFTED, False
        return Prepared(statement, len(values)), binder.used_types

    def _rows_alike(
        self, cache: _Cache, shape: str, namespace: str, values: Sequence[Value]
    ) -> Prepared | None:
        """Return an INSERT of many rows of one form, made from the INSERT of one such row."""
        template = _one_row(shape)
        if template is None:
            return None
        text, rows = template
        width = text.count("?")
        entry = cache.entries.get((text, namespace))
        if entry is None:
            entry = self._by_types(cache, text, namespace, values[:width])
        if not isinstance(entry, Prepared) or not isinstance(entry.statement, Insert):
            return None
        row = entry.statement.rows[0]
        if any("$" in scalar.text and not isinstance(scalar.node, Parameter) for scalar in row):
            return None
        many = tuple(_shifted(row, number * width) for number in range(rows))
        return Prepared(replace(entry.statement, rows=many), rows * width)

    def _written(self, cache: _Cache, sql: str, namespace: str, params: Sequence[Value]) -> Prepared:
        """Parse and bind a text as it stands, with the user's parameters."""
        check_parameters(params)
        types = tuple(map(type, params))
        key = ("text", sql, namespace, types)
        found = cache.entries.get(key)
        if not isinstance(found, Prepared):
            tree = parse(sql)
            takes_values = isinstance(tree, (InsertTree, UpdateTree, DeleteTree, SelectTree, ExecuteAsTree))
            _check_count(parameter_count(sql), params, sql, takes_values=takes_values)
            statement = Binder(cache.catalog, namespace, types).bind(tree)
            found = Prepared(statement, len(params))
            if takes_values and len(sql) <= CACHED_TEXT_CHARS_MAX:
                cache.put(key, found)
        return found


def query_in(tree: Tree) -> str | None:
    """Return the text in a tree that the query engine reads as a whole; None if there is none."""
    match tree:
        case SelectTree(text) | CreateViewTree(text=text):
            return text
        case InsertTree(query=query):
            return query
        case ExecuteAsTree(_, inner, _):
            return query_in(inner)
        case _:
            return None


def _expressions(tree: Tree) -> list[Fragment]:
    match tree:
        case InsertTree(rows=rows, conflict=conflict):
            assigned = () if conflict is None else conflict.assignments
            return [fragment for row in rows for fragment in row] + [fragment for _, fragment in assigned]
        case UpdateTree(assignments=assignments, where=where):
            return [fragment for _, fragment in assignments] + ([] if where is None else [where])
        case DeleteTree(where=where):
            return [] if where is None else [where]
        case ExecuteAsTree(_, inner, _):
            return _expressions(inner)
        case _:
            return []


class _Nameless(Scope):
    """Any name is a column: what it means is looked up later."""

    def column(self, parts: Sequence[str]) -> tuple[int, SqlType]:
        return 0, SqlType.TEXT


def check_parameter_count(count: int) -> None:
    """Raise `ParameterError` if no statement takes so many."""
    if count > PARAMETERS_MAX:
        raise ParameterError(
            f"Parameter count exceeded: maximum {PARAMETERS_MAX} parameters allowed, got {count}"
        )


def check_parameters(params: Sequence[Value]) -> None:
    """Raise `ParameterError` if there are too many, or one is too large."""
    check_parameter_count(len(params))
    for number, value in enumerate(params, 1):
        if isinstance(value, (str, bytes)) and len(value) * 4 > PARAMETER_BYTES_MAX:
            size = len(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
            if size > PARAMETER_BYTES_MAX:
                raise ParameterError(
                    f"Parameter ${number} too large: maximum {PARAMETER_BYTES_MAX} bytes allowed, got {size}"
                )


def _check_count(wanted: int, params: Sequence[Value], sql: str, *, takes_values: bool) -> None:
    if (wanted or params) and not takes_values:
        raise ParameterError(f"Parameters not supported for {_kind(sql)} statements")
    check_parameter_count(wanted)
    if wanted != len(params):
        raise ParameterError(f"Parameter count mismatch: expected {wanted} parameters, got {len(params)}")


def _kind(sql: str) -> str:
    words = sql.upper().split(maxsplit=2)
    return " ".join(words[:2])


def _shifted(row: tuple[Scalar, ...], start: int) -> tuple[Scalar, ...]:
    return tuple(
        parameter_scalar(start + scalar.node.index) if isinstance(scalar.node, Parameter) else scalar
        for scalar in row
    )


def _one_row(shape: str) -> tuple[str, int] | None:
    """Return the shape of the INSERT of one row and the number of rows, if all rows look the same."""
    at = shape.upper().find("VALUES")
    opening, closing = shape.find("(", at), shape.find(")", at)
    following = shape.find("(", closing)
    if at < 0 or not opening < closing < following:
        return None
    row, between = shape[opening : closing + 1], shape[closing + 1 : following]
    step = len(row) + len(between)
    rows = (len(shape) - opening + len(between)) // step
    if rows < _ROWS_ALIKE_MIN or between.strip() != "," or "(" in row[1:]:
        return None
    if shape[opening:] != between.join([row] * rows):
        return None
    return shape[: closing + 1], rows
