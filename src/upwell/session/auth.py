"""Authentication: credentials → principal.

Law: a token's signature is checked once and remembered, the account behind it on every request. A token
never gives more than its account has now: another role, a missing account or a device's token are refused.
Tokens are HS256 JWTs (RFC 7519) with the claims of the reference contract, section 5.1; a device's token
has `sub` and `did` (device sync contract, section 1.3).
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import bcrypt
import jwt

from upwell.clock import Clock
from upwell.config import PASSWORD_BYTES_MAX
from upwell.engine.catalog import Catalog, Role, User
from upwell.errors import AuthenticationFailed, InvalidInput
from upwell.issuer import OWN_ISSUER, Issuer
from upwell.session.policy import Principal
from upwell.session.trust import Trust, is_for_access

LEEWAY_S = 60
"""After its end a token is still accepted for so long; a device's is not (its contract, section 1.3)."""
DEVICE_CHARS_MAX = SUBJECT_CHARS_MAX = 256
"""Of a device's token; OpenID Connect lets a subject have 255."""
TOKENS_KEPT_MAX = 10_000
_ALGORITHM = "HS256"
_DEVICE_ALGORITHMS = [_ALGORITHM, "HS384", "HS512"]
"""An app's own back end may sign a device's token with any of them, as section 1.3 of its contract says."""
_ERA = "era"
_ANEW = "anew"
"""Of a device's token: its account's `anew_at_us`. A new password ends none of them, a new account all."""


@dataclass(frozen=True, slots=True)
class Token:
    """A signed token and when it ends, in seconds since the epoch."""

    text: str
    expires_at_s: int


@dataclass(frozen=True, slots=True)
class Login:
    """What a successful login gives."""

    user: User
    access: Token
    refresh: Token


@dataclass(frozen=True, slots=True)
class Verified:
    """The claims of a token whose signature is right, and who issued it (None: this server)."""

    claims: dict[str, object]
    issuer: Issuer | None

    @property
    def device_claim(self) -> str:
        """What names the device that a token is for."""
        return "did" if self.issuer is None else self.issuer.device_claim

    @property
    def accepted_until_s(self) -> float | None:
        """The last second at which the token is accepted; None: for ever."""
        expires = self.claims.get("exp")
        if not isinstance(expires, (int, float)):
            return None
        return expires - 1 if self.device_claim in self.claims else expires + LEEWAY_S


class Authenticator:
    """Checks passwords and tokens. `check_password` is slow on purpose: call it in a thread."""

    def __init__(
        self,
        *,
        secret: str,
        clock: Clock,
        expiry_hours: int,
        device_expiry_hours: int,
        bcrypt_cost: int,
        is_strict: bool = False,
        trust: Trust | None = None,
    ) -> None:
        self.is_strict = is_strict
        """Whether weak passwords are refused."""
        self._secret = secret
        self._clock = clock
        self._expiry_s = expiry_hours * 3600
        self._device_expiry_s = device_expiry_hours * 3600
        self._bcrypt_cost = bcrypt_cost
        self._trust = trust
        self._verified: OrderedDict[str, Verified] = OrderedDict()
        self._known: tuple[Mapping[str, User] | None, dict[str, Principal]] = (None, {})
        self._nobody_hash = bcrypt.hashpw(b"nobody", bcrypt.gensalt(bcrypt_cost))

    def hash_password(self, password: str) -> str:
        return bcrypt.hashpw(_bounded(password), bcrypt.gensalt(self._bcrypt_cost)).decode()

    def check_password(self, user: User | None, password: str) -> User:
        """Return the user; an unknown one costs the same time as a wrong password."""
        known = user is not None and user.password_hash is not None
        stored = user.password_hash.encode() if user and user.password_hash else self._nobody_hash
        if not bcrypt.checkpw(_bounded(password), stored) or not known or _is_long(password):
            raise AuthenticationFailed("INVALID_CREDENTIALS", "Invalid credentials")
        assert user is not None
        return user

    def is_password(self, user: User, password: str) -> bool:
        """Whether `password` opens the account."""
        stored = user.password_hash
        return stored is not None and bcrypt.checkpw(_bounded(password), stored.encode())

    def log_in(self, user: User) -> Login:
        """Return fresh tokens for an account whose password was checked."""
        return Login(
            user, self._sign(user, "access", self._expiry_s), self._sign(user, "refresh", 7 * self._expiry_s)
        )

    def device_token(
        self, user: str, device: str, *, account: User | None = None, expiry_s: int | None = None
    ) -> Token:
        """Return a token that opens the device endpoints only, given to `account` if the user has one."""
        now = self.now_s()
        until = now + (self._device_expiry_s if expiry_s is None else expiry_s)
        claims = {"sub": user, "did": device, "iat": now, "exp": until, "iss": OWN_ISSUER}
        if account is not None:
            claims[_ANEW] = account.anew_at_us
        return Token(jwt.encode(claims, self._secret, _ALGORITHM), until)

    def principal(self, authorization: str | None, catalog: Catalog) -> Principal:
        """Return who sends an `Authorization` header of an access token, ours or a trusted issuer's."""
        known = self._known_principal(authorization, catalog)
        if known is not None:
            return known
        verified = self._verified_claims(_bearer(authorization))
        claims = verified.claims
        if verified.issuer is not None:
            return self._outside(verified, verified.issuer, catalog)
        _require_own(claims)
        if claims.get("token_type") != "access":
            raise _invalid()
        user = _account(claims, catalog)
        if user is None or user.role.value != claims.get("role"):
            raise _invalid()
        principal = Principal(user.name, user.role, expires_at_s=verified.accepted_until_s)
        self._remember(authorization, catalog, principal)
        return principal

    def _known_principal(self, authorization: str | None, catalog: Catalog) -> Principal | None:
        """Return who sent this header before, if no account has changed since and the token goes on."""
        of, principals = self._known
        if of is not catalog.users or authorization is None:
            return None
        found = principals.get(authorization)
        is_over = found is not None and (found.expires_at_s is None or found.expires_at_s < self.now_s())
        return None if is_over else found

    def _remember(self, authorization: str | None, catalog: Catalog, principal: Principal) -> None:
        of, principals = self._known
        if of is not catalog.users or len(principals) >= TOKENS_KEPT_MAX:
            principals = {}
            self._known = (catalog.users, principals)
        if authorization is not None:
            principals[authorization] = principal

    def _outside(self, verified: Verified, issuer: Issuer, catalog: Catalog) -> Principal:
        claims = verified.claims
        if "exp" not in claims or issuer.device_claim in claims:
            raise _invalid()
        assert self._trust is not None, "it verified the token"
        user = self._trust.account(issuer, claims, catalog)
        return Principal(user.name, user.role, expires_at_s=verified.accepted_until_s)

    def refresh_user(self, authorization: str | None, catalog: Catalog) -> User:
        """Return the account behind a refresh token."""
        verified = self._verified_claims(_bearer(authorization))
        if verified.issuer is not None:
            raise _invalid()
        claims = verified.claims
        _require_own(claims)
        if claims.get("token_type") != "refresh":
            raise AuthenticationFailed("INVALID_CREDENTIALS", "Refresh endpoint requires a refresh token")
        user = _account(claims, catalog)
        if user is None or user.role.value != claims.get("role"):
            raise AuthenticationFailed("INVALID_CREDENTIALS", "Token role does not match user role")
        return user

    def device(self, authorization: str | None, catalog: Catalog) -> Principal:
        """Return the device behind an `Authorization` header; an app's own user needs no account.

        Raises `InvalidInput` for names that are too long.

        Accounts above role user are refused (a phone is no place for their rights), dropped ones, and tokens
        of an earlier account of the name.
        """
        verified = self._verified_claims(_bearer(authorization))
        claims, issuer = verified.claims, verified.issuer
        device = claims.get(verified.device_claim)
        if not isinstance(device, str) or not device:
            raise _invalid()
        if issuer is None:
            name = str(claims["sub"])
            user = catalog.users.get(name)
        else:
            assert self._trust is not None, "it verified the token"
            name, user = self._trust.whose(issuer, claims, catalog)
        _refuse_long(name, device)
        if name in catalog.dropped_users or (user is not None and user.role is not Role.USER):
            raise _invalid()
        # An issuer's token names somebody there, whom our accounts begin and end for: it has no earlier one.
        if user is not None and issuer is None and not _is_of_this(user, claims):
            raise _invalid()
        return Principal(name, Role.USER, device, verified.accepted_until_s)

    def _sign(self, user: User, token_type: str, expiry_s: int) -> Token:
        now = self.now_s()
        claims = {
            "sub": user.name,
            "iss": OWN_ISSUER,
            "iat": now,
            "exp": now + expiry_s,
            "email": user.email,
            "role": user.role.value,
            "token_type": token_type,
            _ERA: user.era,
        }
        return Token(jwt.encode(claims, self._secret, _ALGORITHM), now + expiry_s)

    def _verified_claims(self, token: str) -> Verified:
        digest = hashlib.sha256(token.encode()).hexdigest()
        verified = self._verified.get(digest)
        if verified is None:
            verified = self._verify(token)
            self._verified[digest] = verified
            while len(self._verified) > TOKENS_KEPT_MAX:
                self._verified.popitem(last=False)
        until_s = verified.accepted_until_s
        if until_s is not None and until_s < self.now_s():
            self._verified.pop(digest, None)
            raise AuthenticationFailed("TOKEN_EXPIRED", "Invalid credentials")
        return verified

    def _verify(self, token: str) -> Verified:
        outside = self._trust.find(token) if self._trust is not None else None
        try:
            if outside is not None:
                claims = outside.verify(token, leeway_s=LEEWAY_S)
            else:
                claims = self._decode(token)
        except jwt.InvalidTokenError as error:
            raise _invalid() from error
        issuer = None if outside is None else outside.issuer
        if outside is not None and not is_for_access(token, claims):
            raise _invalid()
        names = ("sub", "did") if issuer is None else (issuer.user_claim, issuer.device_claim)
        if not _is_text(claims.get(names[0])) or not _is_text(claims.get(names[1], "-")):
            raise _invalid()
        expires = claims.get("exp", 0)
        if not isinstance(expires, (int, float)) or not math.isfinite(expires):
            raise _invalid()
        return Verified(claims, issuer)

    def _decode(self, token: str) -> dict[str, object]:
        found = jwt.decode_complete(
            token,
            self._secret,
            algorithms=_DEVICE_ALGORITHMS,
            options={"verify_exp": False, "verify_iat": False, "verify_aud": False},
            leeway=LEEWAY_S,
        )
        claims: dict[str, object] = found["payload"]
        if "did" not in claims and found["header"]["alg"] != _ALGORITHM:
            raise jwt.InvalidAlgorithmError("only a device's token may be signed with this algorithm")
        return claims

    def now_s(self) -> int:
        """The time that tokens are judged by, in whole seconds since the epoch."""
        return self._clock.now_us() // 1_000_000


def _require_own(claims: dict[str, object]) -> None:
    """Raise unless only this server can have issued the token: with an end, and for no device."""
    if claims.get("iss") != OWN_ISSUER or "exp" not in claims or "did" in claims:
        raise _invalid()


def _is_of_this(user: User, claims: dict[str, object]) -> bool:
    """Whether a device's token was issued to this account, not to a dropped one of its name."""
    if _ANEW in claims:
        return claims[_ANEW] == user.anew_at_us
    return _is_issued_after(claims, user.anew_at_us)


def _account(claims: dict[str, object], catalog: Catalog) -> User | None:
    """Return the account that a token was given to; None: it is gone, another one, or has a new password."""
    user = catalog.users.get(str(claims["sub"]))
    if user is None:
        return None
    if _ERA in claims:
        return user if claims[_ERA] == user.era else None
    return user if _is_issued_after(claims, max(user.anew_at_us, user.era_began_us)) else None


def _is_issued_after(claims: dict[str, object], began_us: int) -> bool:
    """Whether a token that somebody made who has our secret is of what began then; 0: it always was.

    Such a token tells its time in seconds, if at all: what may be of before is taken for it.
    """
    issued = claims.get("iat")
    return not began_us or (isinstance(issued, (int, float)) and issued >= began_us // 1_000_000 + 1)


def _refuse_long(user: str, device: str) -> None:
    """Raise `InvalidInput` for names that would stand in every entry of the log."""
    for what, name, chars_max in (("sub", user, SUBJECT_CHARS_MAX), ("did", device, DEVICE_CHARS_MAX)):
        if len(name) > chars_max:
            raise InvalidInput(f"the token's {what} has more than {chars_max} characters: make a shorter one")


def _is_text(claim: object) -> bool:
    """Whether a claim is a text that isn't empty, and that can be stored: JSON knows halves of characters."""
    return isinstance(claim, str) and claim != "" and claim == claim.encode(errors="ignore").decode()


def _is_long(password: str) -> bool:
    return len(password.encode()) > PASSWORD_BYTES_MAX


def _bearer(authorization: str | None) -> str:
    if not authorization:
        raise AuthenticationFailed("MISSING_AUTHORIZATION", "Authentication required")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _invalid()
    return token.strip()


def _bounded(password: str) -> bytes:
    return password.encode()[:PASSWORD_BYTES_MAX]


def _invalid() -> AuthenticationFailed:
    return AuthenticationFailed("INVALID_CREDENTIALS", "Invalid credentials")
