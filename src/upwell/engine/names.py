"""Names of the records that are kept of devices.

Law: a name is the user, the source and what it is about, percent-encoded and joined by slashes, so that
the records of a user, or of a device, stand together.
"""

from urllib.parse import quote


def user_name(user: str) -> str:
    """Return what the names of a user's records begin with."""
    return f"{quote(user, safe='')}/"


def source_name(user: str, source: str) -> str:
    """Return the name of one device."""
    return user_name(user) + quote(source, safe="")


def change_name(user: str, source: str, change_id: int) -> str:
    """Return the name of one change of a device."""
    return f"{source_name(user, source)}/{change_id}"
