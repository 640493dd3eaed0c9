"""CORS: which pages of other origins a browser lets read our answers (Fetch standard; contract, 1.1 and 2.1).

Law: with a list of origins nobody else's page gets an answer, nor a socket; without one all may ask, and what
they may see is decided by the token that they send. Cookies never come from other sites (SameSite=Strict).
"""

from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]

ANY = "*"
_METHODS = b"GET, POST, PUT, DELETE, PATCH, OPTIONS"
_HEADERS = b"Authorization, Content-Type, Accept, Origin, X-Requested-With, X-Request-ID"
_EXPOSED = b"X-Request-ID"
_MAX_AGE_S = b"600"


class Cors:
    """Says what an answer to a page carries; `origins` is a list with commas, empty: all may ask."""

    def __init__(self, origins: str) -> None:
        listed = {each.strip().rstrip("/").lower() for each in origins.split(",") if each.strip()}
        self._allowed = None if not listed or ANY in listed else listed

    def may(self, origin: str | None) -> bool:
        """Whether a page of this origin may ask; None: no page asks."""
        return origin is None or self._allowed is None or origin.rstrip("/").lower() in self._allowed

    def headers(self, origin: str | None) -> Headers:
        """Return what lets the page read the answer."""
        if origin is None or not self.may(origin):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]

    def preflight(self) -> Headers:
        """Return what a browser wants to know before it asks."""
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", _MAX_AGE_S),
        ]
