"""Typed texts: casts to the types that the query engine has as text only.

Law: what a cast gives is what a column of the type would store of the same text, or an error.

    typed_uuid(text) → dashed, lower case · typed_json(text) → the text, if it is JSON
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from upwell.errors import InvalidValue
from upwell.types import Column, SqlType, coerce

SHOWN_CHARS_MAX = 60
_TEXT = pa.string()


def _cast(column: Column, texts: pa.Array) -> pa.Array:
    return pa.array([None if text is None else _value(text, column) for text in texts.to_pylist()], _TEXT)


def _value(text: str, column: Column) -> Any:
    try:
        return coerce(text, column)
    except InvalidValue as error:
        raise ValueError(f"cannot cast '{text[:SHOWN_CHARS_MAX]}' to {column.name}") from error


FUNCTIONS: Sequence[tuple[str, Sequence[pa.DataType], pa.DataType, Callable[..., pa.Array]]] = [
    ("typed_uuid", [_TEXT], _TEXT, partial(_cast, Column(0, "UUID", SqlType.UUID))),
    ("typed_json", [_TEXT], _TEXT, partial(_cast, Column(0, "JSON", SqlType.JSON))),
]
"""(name, types of the arguments, type of the result, over columns)."""
