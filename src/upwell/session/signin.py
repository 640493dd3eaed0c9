"""Sign-ins: how often the password of an account was wrong, and when it was right (contract, 5.3).

Law: after `FAILED_MAX` wrong passwords in a row no password opens the account for `LOCKED_S`, also across a
restart; its tokens go on, so that a stranger's guesses don't put anybody out. The state is a record of its
own, beside the catalog: a login changes no schema.
"""

import msgspec

from upwell.clock import Clock
from upwell.decodable import decodable
from upwell.engine.commit import Committer
from upwell.errors import AuthenticationFailed
from upwell.ids import Seq
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite

FAILED_MAX = 5
LOCKED_S = 15 * 60


@decodable
class SignIn(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of an account's logins; times in microseconds since the epoch."""

    failed: int = 0
    locked_until_us: int | None = None
    last_login_us: int | None = None


def load_sign_in(reader: HotReader, user: str) -> SignIn:
    """Return the state of an account's logins."""
    record = reader.find_record(Kind.SIGN_IN, user)
    return msgspec.json.decode(record, type=SignIn) if record else SignIn()


class SignIns:
    """Counts the logins of accounts that exist. Thread-safe."""

    def __init__(self, committer: Committer, clock: Clock) -> None:
        self._committer = committer
        self._clock = clock

    def refuse_locked(self, user: str) -> None:
        """Raise `AuthenticationFailed` if no password opens the account now."""
        state = load_sign_in(self._committer.newest, user)
        left_us = (state.locked_until_us or 0) - self._clock.now_us()
        if left_us > 0:
            minutes = -(-left_us // 60_000_000)
            raise AuthenticationFailed(
                "ACCOUNT_LOCKED", f"Account locked after too many attempts. Try again in {minutes} minute(s)"
            )

    def failed(self, user: str) -> Seq:
        """Count a wrong password."""
        with self._committer.lock:
            state = load_sign_in(self._committer.newest, user)
            now = self._clock.now_us()
            failed = state.failed + 1 if (state.locked_until_us or now) >= now else 1
            locked = now + LOCKED_S * 1_000_000 if failed >= FAILED_MAX else None
            return self._put(user, SignIn(failed, locked, state.last_login_us))

    def succeeded(self, user: str) -> Seq:
        """Note a login: the count begins anew."""
        return self._put(user, SignIn(last_login_us=self._clock.now_us()))

    def unlock(self, user: str) -> Seq:
        """Forget wrong passwords: the account has a new one, or is gone."""
        with self._committer.lock:
            state = load_sign_in(self._committer.newest, user)
            return self._put(user, SignIn(last_login_us=state.last_login_us))

    def _put(self, user: str, state: SignIn) -> Seq:
        record = RecordWrite(Kind.SIGN_IN, user, msgspec.json.encode(state))
        return self._committer.apply(Batch(records=[record]))
