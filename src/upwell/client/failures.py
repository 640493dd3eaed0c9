"""What can go wrong in a client, as one closed tree.

ClientError
  ├─ ServerError            the server refused a request: status, code, message
  │    └─ AuthenticationFailed   it doesn't accept who we are
  ├─ LiveError              the server ended a live query: code, message
  ├─ ConnectionLost         no answer: nobody knows whether a statement took effect
  └─ ProtocolViolation      the other side doesn't speak this protocol
"""


class ClientError(Exception):
    """Anything that this client raises on its own account."""


class ServerError(ClientError):
    """The server's refusal. `body` is the raw answer."""

    def __init__(self, status: int, code: str, message: str, body: bytes = b"") -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.body = body


class AuthenticationFailed(ServerError):
    """The server doesn't accept the user's password or token."""


class LiveError(ClientError):
    """The server ended a live query. What was delivered before is complete up to `cursor`."""

    def __init__(self, code: str, message: str, cursor: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.cursor = cursor


class ConnectionLost(ClientError):
    """The server couldn't be reached, or went away before it answered."""


class ProtocolViolation(ClientError):
    """An answer isn't what the protocol allows."""
