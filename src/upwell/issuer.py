"""Issuers: who else's tokens open the server, as `[auth.issuers.NAME]` of the configuration file says.

Law: two issuers never mean the same user: their names begin with different prefixes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from upwell.errors import StartRefused

SECRET_CHARS_MIN = 32
OWN_ISSUER = "kalamdb"
"""The `iss` of the server's own tokens, as the reference's clients know it."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer. Its tokens are signed with `secret` (HS256), or by a key of `jwks_file`."""

    name: str
    issuer: str  # the claim `iss` of its tokens
    secret: str = ""  # text of 32 characters at least that signs its tokens
    jwks_file: Path | None = None  # a file with its public keys (RFC 7517), read again when a key is unknown
    audience: str = ""  # what the claim `aud` must have; empty: anything
    user_claim: str = "sub"  # the claim with the user's name
    email_claim: str = "email"  # the claim with the user's e-mail address
    device_claim: str = "did"  # the claim with the device, in tokens of devices
    user_prefix: str = ""  # what is put in front of the user's name here
    auto_provision: bool = True  # whether a user who isn't known gets an account of role user


def read_issuers(settings: object, directory: Path) -> tuple[Issuer, ...]:
    """Return the issuers of a file's table `auth`; paths are relative to `directory`."""
    if not isinstance(settings, Mapping) or set(settings) - {"issuers"}:
        raise StartRefused("[auth] has nothing but issuers: [auth.issuers.NAME]")
    issuers = settings.get("issuers", {})
    if not isinstance(issuers, Mapping) or not all(isinstance(each, Mapping) for each in issuers.values()):
        raise StartRefused("[auth.issuers.NAME] is a table of settings")
    found = tuple(_issuer(name, each, directory) for name, each in issuers.items())
    _refuse_alike(found)
    return found


def _issuer(name: str, settings: Mapping[str, object], directory: Path) -> Issuer:
    where = f"[auth.issuers.{name}]"
    kinds = {field.name: bool if field.name == "auto_provision" else str for field in fields(Issuer)}
    del kinds["name"]
    for key, value in settings.items():
        if key not in kinds:
            raise StartRefused(f"{where} has an unknown setting: {key}")
        if type(value) is not kinds[key]:
            raise StartRefused(f"{where}: {key} is {'text' if kinds[key] is str else 'true or false'}")
    values = {key: str(value) for key, value in settings.items() if kinds[key] is str}
    file = values.pop("jwks_file", "")
    if not values.get("issuer") or values["issuer"] == OWN_ISSUER:
        raise StartRefused(f"{where}: issuer is the `iss` of its tokens, and isn't {OWN_ISSUER}")
    if bool(values.get("secret")) == bool(file):
        raise StartRefused(f"{where} needs either secret or jwks_file")
    if values.get("secret") and len(values["secret"]) < SECRET_CHARS_MIN:
        raise StartRefused(f"{where}: secret has fewer than {SECRET_CHARS_MIN} characters")
    if "" in (values.get("user_claim", "-"), values.get("device_claim", "-")):
        raise StartRefused(f"{where}: user_claim and device_claim name claims")
    return Issuer(
        name,
        **values,
        jwks_file=directory / file if file else None,
        auto_provision=settings.get("auto_provision") is not False,
    )


def _refuse_alike(issuers: Sequence[Issuer]) -> None:
    for what in ("issuer", "user_prefix"):
        values = [getattr(each, what) for each in issuers]
        if len(set(values)) < len(values):
            raise StartRefused(
                f"two of the issuers have the same {what}; give each its own, so that their users differ"
            )
