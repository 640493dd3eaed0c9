"""Names of the records that are kept of devices, and of resumes of live queries.

Law: the name of a device's record is the user, the source and what it is about, percent-encoded and joined by
slashes, so that the records of a user, or of a device, stand together, as do those of a table's resumes. A
prefix is for `HotReader.scan_records`.
"""

from functools import lru_cache
from urllib.parse import quote

from upwell.types import TableId


def user_prefix(user: str) -> str:
    """Return what the names of a user's records begin with."""
    return f"{quote(user, safe='')}/"


def source_name(user: str, source: str) -> str:
    """Return the name of one device."""
    return user_prefix(user) + quote(source, safe="")


@lru_cache(maxsize=1_000)
def source_prefix(user: str, source: str) -> str:
    """Return what the names of a device's changes begin with."""
    return f"{source_name(user, source)}/"


def change_name(user: str, source: str, change_id: int) -> str:
    """Return the name of one change of a device."""
    return f"{source_prefix(user, source)}{change_id}"


def resume_prefix(table: TableId) -> str:
    """Return what the names of a table's resumes begin with."""
    return f"resume/{table:010d}/"


def resume_name(table: TableId, user: str) -> str:
    """Return the name of a user's resumes of a table."""
    return resume_prefix(table) + quote(user, safe="")
