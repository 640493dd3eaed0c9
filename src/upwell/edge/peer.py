"""Peers: from where a request comes.

Law: who came through a proxy is never this machine, whatever the headers say; a header that a stranger can
send never makes anybody more than they are. (uvicorn reads the proxy's headers only from loopback.)
"""

import ipaddress
from collections.abc import MutableMapping
from typing import Any

_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})


def address(scope: MutableMapping[str, Any]) -> str | None:
    """Return the address of who asks, None if the connection has none."""
    client = scope.get("client")
    return str(client[0]) if client else None


def is_local(scope: MutableMapping[str, Any]) -> bool:
    """Whether a program on this machine asks, and for itself."""
    if any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        return ipaddress.ip_address(address(scope) or "").is_loopback
    except ValueError:
        return False
