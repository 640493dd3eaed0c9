"""What the two drivers share about their libraries: a connection's settings, and what its failures mean."""

from typing import TypedDict

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException

from upwell.client.failures import ConnectionLost, ServerError
from upwell.protocol.codec import server_frame_bytes_max

connect_s = 10.0
close_s = 1.0
frames_queued_max = 16

SOCKET_FAILURES = (WebSocketException, OSError)


class SocketSettings(TypedDict):
    """Arguments of `connect` in both halves of the library."""

    additional_headers: dict[str, str]
    compression: None
    max_size: int
    max_queue: int
    open_timeout: float
    close_timeout: float
    ping_interval: None


def socket_settings(headers: dict[str, str]) -> SocketSettings:
    """Return the settings of a live query's socket."""
    return SocketSettings(
        additional_headers=headers,
        compression=None,
        max_size=server_frame_bytes_max,
        max_queue=frames_queued_max,
        open_timeout=connect_s,
        close_timeout=close_s,
        # The library stops reading, pongs too, while its queue is full: a slow reader would look like a dead
        # server. The core probes instead, and only while it waits.
        ping_interval=None,
    )


def http_timeout(request_s: float) -> httpx.Timeout:
    """Return the patience of an HTTP request whose answer may take `request_s`."""
    return httpx.Timeout(request_s, connect=connect_s)


def http_failure(error: httpx.TransportError) -> ConnectionLost:
    """Say what a failed HTTP request means, and where it went."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    try:
        return ConnectionLost(f"{what} ({error.request.url})")
    except RuntimeError:  # it failed before there was a request
        return ConnectionLost(what)


def socket_failure(error: BaseException) -> ConnectionLost | ServerError:
    """Say what a failed handshake, send or receive means."""
    if isinstance(error, InvalidStatus):
        body = bytes(error.response.body or b"")
        status = error.response.status_code
        return ServerError(status, f"HTTP_{status}", body[:200].decode(errors="replace"), body)
    return ConnectionLost(f"{type(error).__name__}: {error}")
