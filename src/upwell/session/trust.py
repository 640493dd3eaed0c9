"""Trust: the signatures of tokens that others issued, and whom such a token means.

Law: a key of an issuer verifies the tokens of that issuer only, with the algorithm that the key is for. An
outside token opens the account that is bound to its (issuer, subject), or makes one of role user; never an
account that exists in another way, whatever its name.
"""

from collections.abc import Callable, Sequence

import jwt
import msgspec

from upwell.clock import Clock
from upwell.engine.catalog import Catalog, Role, User
from upwell.errors import AuthenticationFailed, StartRefused
from upwell.issuer import Issuer
from upwell.sql.account import NAME_CHARS_MAX, Identity

_ASYMMETRIC = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

# What issuers call the kind of a token, in its claims and in the header `typ` (RFC 9068).
_KINDS = ("token_type", "token_use", "typ")
_ACCESS = frozenset({"access", "access_token", "bearer", "jwt", "at+jwt"})

Claims = dict[str, object]


class Trusted:
    """One issuer and its keys."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at: int | None = None
        if issuer.jwks_file is not None:
            self._read()

    def verify(self, token: str, *, leeway_s: int) -> Claims:
        """Return the claims of a token; raise `jwt.InvalidTokenError` if this issuer didn't sign it."""
        key, algorithm = self._key(token)
        audience = self.issuer.audience
        claims: Claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=audience or None,
            issuer=self.issuer.issuer,
            options={"verify_exp": False, "verify_iat": False, "verify_aud": bool(audience)},
            leeway=leeway_s,
        )
        return claims

    def _key(self, token: str) -> tuple[str | jwt.PyJWK, str]:
        if self.issuer.jwks_file is None:
            return self.issuer.secret, "HS256"
        kid = jwt.get_unverified_header(token).get("kid")
        found = self._find(kid)
        if found is None and self._file_changed():
            self._read()
            found = self._find(kid)
        if found is None:
            raise jwt.InvalidTokenError("no such key")
        return found, str(found.algorithm_name)

    def _find(self, kid: object) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _file_changed(self) -> bool:
        assert self.issuer.jwks_file is not None, "only files change"
        try:
            return self.issuer.jwks_file.stat().st_mtime_ns != self._read_at
        except OSError:
            return False  # the keys that are known stay

    def _read(self) -> None:
        """Read the keys; those for a shared secret, or for no signature, are left out."""
        file = self.issuer.jwks_file
        assert file is not None, "there is a file to read"
        try:
            read_at = file.stat().st_mtime_ns
            keys = jwt.PyJWKSet.from_json(file.read_text(encoding="utf-8")).keys
        except (OSError, ValueError, jwt.PyJWTError) as error:
            if self._keys:
                return  # half-written: the next unknown key looks again
            raise StartRefused(f"jwks_file {file} can't be read: {error}") from error
        usable = {key.key_id: key for key in keys if key.algorithm_name in _ASYMMETRIC}
        if not usable and not self._keys:
            raise StartRefused(f"jwks_file {file} has no public key for signatures")
        self._keys, self._read_at = usable or self._keys, read_at


class Trust:
    """All issuers. `provision` makes an account unless its name is taken, and returns what there is."""

    def __init__(self, issuers: Sequence[Issuer], provision: Callable[[User], User], clock: Clock) -> None:
        self._by_claim = {each.issuer: Trusted(each) for each in issuers}
        self._provision = provision
        self._clock = clock

    def find(self, token: str) -> Trusted | None:
        """Return the issuer that a token says it is from; None for our own, and for strangers."""
        if not self._by_claim:
            return None
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return None
        issuer = claims.get("iss")
        return self._by_claim.get(issuer) if isinstance(issuer, str) else None

    def account(self, issuer: Issuer, claims: Claims, catalog: Catalog) -> User:
        """Return the account that a verified token opens, made if need be; raise `AuthenticationFailed`."""
        name, user = self.whose(issuer, claims, catalog)
        if user is not None:
            return user
        if not issuer.auto_provision:
            raise _invalid()
        email, now = claims.get(issuer.email_claim), self._clock.now_us()
        made = self._provision(
            User(
                name, Role.USER, None, email if isinstance(email, str) else None, "oauth", now, now,
                identity(issuer, claims),
            )
        )  # fmt: skip
        if made.auth_data != identity(issuer, claims):
            raise _invalid()
        return made

    def whose(self, issuer: Issuer, claims: Claims, catalog: Catalog) -> tuple[str, User | None]:
        """Return the name behind a verified token and its account, None if it has none."""
        bound = catalog.by_identity.get(identity(issuer, claims))
        if bound is not None:
            return bound.name, bound
        name = f"{issuer.user_prefix}{claims[issuer.user_claim]}"
        if len(name) > NAME_CHARS_MAX or name in catalog.users or name in catalog.dropped_users:
            raise _invalid()
        return name, None


def is_for_access(token: str, claims: Claims) -> bool:
    """Whether a token doesn't say that it is for something else: to refresh, or to show who somebody is."""
    said = [claims[name] for name in _KINDS if claims.get(name) is not None]
    kind = jwt.get_unverified_header(token).get("typ")
    said += [] if kind is None else [str(kind).lower().removeprefix("application/")]
    return all(isinstance(each, str) and each.lower() in _ACCESS for each in said)


def identity(issuer: Issuer, claims: Claims) -> str:
    """Return who a token is about, as an account keeps it."""
    return msgspec.json.encode(Identity(issuer.name, str(claims[issuer.user_claim]))).decode()


def _invalid() -> AuthenticationFailed:
    return AuthenticationFailed("INVALID_CREDENTIALS", "Invalid credentials")
