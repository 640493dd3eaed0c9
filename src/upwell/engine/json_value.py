"""JSON values in queries: the functions that a path into a document is made of.

Law: a step into what isn't there, or isn't JSON, is NULL, never an error. A value that is found keeps the
text that it has in the document, so that no number loses digits.

    json_step(doc, key) · json_step_at(doc, index)       → JSON text of what is there
    json_value_str|int|float|bool|array|text|length|keys(value), json_value_of_text(text)
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa

from upwell.types import INTEGER_BITS, SqlType

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_any = msgspec.json.Decoder().decode
_encode = msgspec.json.encode
_INT64 = 1 << (INTEGER_BITS[SqlType.BIGINT] - 1)


def step(doc: str, key: str) -> str | None:
    """Return the JSON text of a member of an object."""
    if doc.lstrip()[:1] != "{":
        return None
    found = _object(doc.encode()).get(key)
    return None if found is None else bytes(found).decode()


def step_at(doc: str, index: int) -> str | None:
    """Return the JSON text of an element of an array, counted from 0."""
    if index < 0 or doc.lstrip()[:1] != "[":
        return None
    elements = _list(doc.encode())
    return bytes(elements[index]).decode() if index < len(elements) else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: Any) -> int | None:
    return value if type(value) is int and -_INT64 <= value < _INT64 else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, (dict, list)) else None


def _keys(value: Any) -> list[str] | None:
    return list(value) if isinstance(value, dict) else None


def _decoded(read: Callable[[Any], Any]) -> Callable[[str], Any]:
    return lambda text: read(_any(text.encode()))


def text(value: str) -> str | None:
    """Return a string without its quotes, NULL for null, and anything else as it is written."""
    if value.lstrip()[:1] == '"':
        return str(_any(value.encode()))
    return None if value.strip() == "null" else value


def _array(value: str) -> list[str] | None:
    if value.lstrip()[:1] != "[":
        return None
    return [bytes(element).decode() for element in _list(value.encode())]


def _of_text(value: str) -> str:
    return _encode(value).decode()


def _each(function: Callable[..., Any], result: pa.DataType) -> Callable[..., pa.Array]:
    """Return `function` over whole columns; NULL for a NULL argument and for what isn't JSON."""

    def run(*columns: pa.Array) -> pa.Array:
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return pa.array([find(function, row) for row in rows], result)

    return run


def find(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return what a function finds; NULL for a NULL argument and for what isn't JSON."""
    if None in arguments:
        return None
    try:
        return function(*arguments)
    except (msgspec.DecodeError, UnicodeError):
        return None


_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
FUNCTIONS: list[tuple[str, list[pa.DataType], pa.DataType, Callable[..., pa.Array]]] = [
    (name, arguments, result, _each(function, result))
    for name, arguments, result, function in (
        ("json_step", [_TEXT, _TEXT], _TEXT, step),
        ("json_step_at", [_TEXT, pa.int64()], _TEXT, step_at),
        ("json_value_str", [_TEXT], _TEXT, _decoded(_str)),
        ("json_value_int", [_TEXT], pa.int64(), _decoded(_int)),
        ("json_value_float", [_TEXT], pa.float64(), _decoded(_float)),
        ("json_value_bool", [_TEXT], pa.bool_(), _decoded(_bool)),
        ("json_value_length", [_TEXT], pa.int64(), _decoded(_length)),
        ("json_value_keys", [_TEXT], _TEXTS, _decoded(_keys)),
        ("json_value_array", [_TEXT], _TEXTS, _array),
        ("json_value_text", [_TEXT], _TEXT, text),
        ("json_value_of_text", [_TEXT], _TEXT, _of_text),
    )
]
"""(name, types of the arguments, type of the result, over columns)."""
