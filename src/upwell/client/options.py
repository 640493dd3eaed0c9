"""Options of live queries, judged where they are written: before anything is sent.

Law: what the wire can't say, or the server would refuse, raises `TypeError` or `ValueError` that names it.
"""

from upwell.protocol.messages import batch_size_default

_INT64_MAX = (1 << 63) - 1


def check_options(
    sql: object,
    *,
    from_seq: object = None,
    batch_size: object = batch_size_default,
    last_rows: object = None,
    **flags: object,
) -> None:
    """Raise for what no live query can be opened with."""
    if not isinstance(sql, str):
        raise TypeError(f"a live query is a text, not a {type(sql).__name__}")
    if not sql.strip():
        raise ValueError("a live query is SELECT … FROM namespace.table [WHERE …]; this text is empty")
    rows = _whole("batch_size", batch_size, least=1)
    if from_seq is not None:
        _whole("from_seq", from_seq, least=0)
    if last_rows is not None and _whole("last_rows", last_rows, least=0) > rows:
        raise ValueError(f"last_rows ({last_rows}) is more than batch_size ({rows}): they come as one batch")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is True or False, not a {type(flag).__name__}")


def check_seconds(**seconds: object) -> None:
    """Raise for what is no length of time."""
    for name, value in seconds.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is a number of seconds, not a {type(value).__name__}")
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it is at least 0")


def check_count(name: str, value: object) -> None:
    """Raise for what counts nothing."""
    _whole(name, value, least=0)


def _whole(name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not a {type(value).__name__}")
    if not least <= value <= _INT64_MAX:
        raise ValueError(f"{name} is {value}; it is from {least} to {_INT64_MAX}")
    return value
