"""The sign-in of a development server: `POST /dummy-signin` gives a device's token to whoever asks.

Law: it exists only where `dev` is set, gives tokens of devices only, and none for an account above role user.

Protocol: device sync contract, section 1.4.
"""

from collections.abc import Callable

import msgspec

from upwell.edge.devices import refuse
from upwell.edge.http import Receive, Scope, Send, read_body, respond
from upwell.edge.json import BODY_BYTES_MAX
from upwell.engine.catalog import Role, User
from upwell.engine.view import Publication
from upwell.errors import InvalidInput, TooLarge
from upwell.protocol import sync
from upwell.session.auth import DEVICE_CHARS_MAX, SUBJECT_CHARS_MAX, Authenticator

LIFETIME_S = 300
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class DummySignin:
    """A bare ASGI handler; `next_id` names devices that have no name."""

    def __init__(
        self, authenticator: Authenticator, publication: Publication, next_id: Callable[[], int]
    ) -> None:
        self._authenticator = authenticator
        self._publication = publication
        self._next_id = next_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await refuse(send, 405, "method_not_allowed", "use POST")
            return
        try:
            asked = _parsed(await read_body(scope, receive, bytes_max=BODY_BYTES_MAX))
        except (InvalidInput, TooLarge) as error:
            status = 413 if isinstance(error, TooLarge) else 400
            await refuse(send, status, "invalid_request", str(error))
            return
        account = self._publication.view.catalog.users.get(asked.user)
        if account is not None and account.role is not Role.USER:
            await refuse(send, 403, "forbidden", "device tokens are for accounts of role user")
            return
        await respond(send, 200, sync.encode(self._signed_in(asked, account)))

    def _signed_in(self, asked: sync.SigninRequest, account: User | None) -> sync.DeviceTokenResponse:
        device = asked.device or f"device-{_base36(self._next_id())}"
        token = self._authenticator.device_token(asked.user, device, account=account, expiry_s=LIFETIME_S)
        return sync.DeviceTokenResponse(
            token=token.text, expires_in=LIFETIME_S, user=asked.user, device=device
        )


def _parsed(body: bytes) -> sync.SigninRequest:
    try:
        asked = msgspec.json.decode(body, type=sync.SigninRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("invalid JSON") from error
    if not asked.user:
        raise InvalidInput("user required")
    if len(asked.user) > SUBJECT_CHARS_MAX:
        raise InvalidInput(f"user has at most {SUBJECT_CHARS_MAX} characters")
    if len(asked.device) > DEVICE_CHARS_MAX:
        raise InvalidInput(f"device has at most {DEVICE_CHARS_MAX} characters")
    return asked


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits
