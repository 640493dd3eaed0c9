"""JSON answers and bodies of the routes that aren't hot, as Starlette has them."""

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from upwell.protocol.messages import AuthFault

BODY_BYTES_MAX = 64 * 1024
T = TypeVar("T")


def answer(body: msgspec.Struct, status: int = 200) -> Response:
    """Return a struct as an answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def read_struct(request: Request, kind: type[T]) -> T | Response:
    """Return the body as a struct, or the answer that refuses it."""
    chunks = b""
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > BODY_BYTES_MAX:
            return answer(AuthFault("bad_request", f"body larger than {BODY_BYTES_MAX} bytes"), 413)
    try:
        return msgspec.json.decode(chunks, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return answer(AuthFault("bad_request", f"invalid JSON: {error}"), 400)
