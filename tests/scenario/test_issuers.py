"""Tokens that others issued: an app's own users need no CREATE USER, and nobody becomes somebody else.

One server trusts two issuers: `shop` by a shared secret, `bank` by the public keys of a file.
"""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from upwell.testing import ServerProcess
from upwell.testing.wait import wait_until
from upwell.testing.websocket import Socket
from upwell.testing.wire import PASSWORD, Site

SECRET = "the-shared-secret-of-a-shop-with-32-chars"
INVALID = "INVALID_CREDENTIALS"


class Bank:
    """An issuer with keys of its own, and the file that tells the public ones."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys: dict[str, Any] = {}
        self.add("k1", rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def add(self, kid: str, key: Any) -> None:
        self.keys[kid] = key
        self.publish()

    def publish(self) -> None:
        # A key for a shared secret in a public file would let every reader sign: it must not be used.
        found = [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "oct"}]
        for kid, key in self.keys.items():
            algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
            public = algorithm.to_jwk(key.public_key(), as_dict=True)
            found.append(public | {"kid": kid, "use": "sig"})
        self.file.write_text(json.dumps({"keys": found}))

    def token(self, claims: dict[str, Any], kid: str = "k1") -> str:
        algorithm = "RS256" if isinstance(self.keys[kid], rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(claims, self.keys[kid], algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return Bank(tmp_path_factory.mktemp("bank") / "keys.json")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bank: Bank) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("issuers")
    (directory / "upwell.toml").write_text(
        f"""
        [auth.issuers.shop]
        issuer = "https://shop.example"
        secret = "{SECRET}"

        [auth.issuers.bank]
        issuer = "https://bank.example"
        jwks_file = "{bank.file}"
        audience = "upwell"
        user_claim = "user_name"
        user_prefix = "bank:"
        """
    )
    args = ("--config", str(directory / "upwell.toml"))
    with ServerProcess(directory / "data", args=args, env={"UPWELL_BCRYPT_COST": "4"}) as server:
        site = Site(server)
        site.root.run(
            "CREATE NAMESPACE app; CREATE USER TABLE app.t (id INT PRIMARY KEY) WITH (SYNC = FALSE)"
        )
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


def _name() -> str:
    return f"p{uuid.uuid4().hex[:8]}"


def _shop(sub: str, /, **changes: Any) -> str:
    claims = {"iss": "https://shop.example", "sub": sub, "exp": int(time.time()) + 600} | changes
    return jwt.encode({key: value for key, value in claims.items() if value is not ...}, SECRET, "HS256")


def _bank_claims(user: str, /, **changes: Any) -> dict[str, Any]:
    claims = {"iss": "https://bank.example", "user_name": user, "aud": "upwell", "sub": "x"}
    return claims | {"exp": int(time.time()) + 600} | changes


def test_an_apps_user_needs_no_account(site: Site) -> None:
    name = _name()
    wire = site.wire(_shop(name, email="me@example.com"))
    assert wire.run("SELECT CURRENT_USER(), CURRENT_ROLE()").rows == [[name, "user"]]
    wire.run("INSERT INTO app.t VALUES (1)")
    me = wire.call("GET", "/v1/api/auth/me").json["user"]
    assert (me["id"], me["role"], me["email"]) == (name, "user", "me@example.com")
    row = site.root.run(f"SELECT auth_type, auth_data FROM system.users WHERE user_id = '{name}'").rows[0]
    assert (row[0], json.loads(row[1])) == ("oauth", {"provider": "shop", "subject": name})
    assert site.wire(_shop(name)).run("SELECT COUNT(*) FROM app.t").cell == "1"
    made = "SELECT action, actor_user_id, details FROM system.audit_log WHERE target = $1"
    details = {"role": "user", "auth_type": "oauth", "email": "me@example.com"}
    [[action, actor, told]] = site.root.run(made, name).rows
    assert (action, actor, json.loads(told)) == ("CREATE_USER", name, details)
    wire.sql("SELECT * FROM system.users").refused(403, "PERMISSION_DENIED")
    assert wire.call("POST", "/v1/api/auth/refresh").status == 401


def test_a_role_in_an_outside_token_means_nothing(site: Site) -> None:
    wire = site.wire(_shop(_name(), role="system", token_type="access"))
    assert wire.run("SELECT CURRENT_ROLE()").cell == "user"


@pytest.mark.parametrize(
    "said",
    [
        {"token_type": "refresh"},
        {"token_type": "Refresh"},
        {"token_type": "id"},
        {"token_type": 1},
        {"token_use": "id"},
        {"typ": "Refresh"},
        {"typ": "ID"},
        {"typ": "Bearer", "token_type": "refresh"},
    ],
)
def test_a_token_for_something_else_is_no_access_token(site: Site, said: dict[str, Any]) -> None:
    site.wire(_shop(_name(), **said)).sql("SELECT 1").refused(401, INVALID)
    assert site.wire(_shop(_name(), did="phone", **said)).call("GET", "/sync/schema-version").status == 401


def test_a_header_may_say_what_a_token_is_for(site: Site) -> None:
    claims = {"iss": "https://shop.example", "sub": _name(), "exp": int(time.time()) + 600}
    for kind, status in (("at+jwt", 200), ("application/at+jwt", 200), ("refresh+jwt", 401), (7, 401)):
        token = jwt.encode(claims, SECRET, "HS256", headers={"typ": kind})
        assert site.wire(token).sql("SELECT 1").status == status, kind
    for said in ({"typ": "Bearer"}, {"token_use": "access"}, {"token_type": "access"}):
        site.wire(_shop(_name(), **said)).run("SELECT 1")


def test_a_socket_takes_an_outside_token(site: Site) -> None:
    name = _name()
    with Socket(site.server.port, _shop(name)) as socket:
        assert (socket.welcome["user"], socket.welcome["role"]) == (name, "user")


def test_an_account_of_another_kind_is_never_opened(site: Site) -> None:
    ann, _ = site.account("user")
    for name in ("root", ann):
        site.wire(_shop(name)).sql("SELECT 1").refused(401, INVALID)
        assert site.wire(_shop(name, did="phone")).call("GET", "/sync/schema-version").status == 401
    assert site.login(ann, PASSWORD)["user"]["id"] == ann


def test_a_bound_account_has_its_own_role_and_name(site: Site) -> None:
    name, subject = _name(), _name()
    identity = json.dumps({"provider": "shop", "subject": subject})
    site.root.run(f"CREATE USER {name} WITH OAUTH '{identity}' ROLE dba")
    wire = site.wire(_shop(subject))
    assert wire.run("SELECT CURRENT_USER(), CURRENT_ROLE()").rows == [[name, "dba"]]
    again = site.root.sql(f"CREATE USER {_name()} WITH OAUTH '{identity}' ROLE user")
    assert "already has this provider and subject" in again.refused(400, "SQL_EXECUTION_ERROR")
    site.root.run(f"ALTER USER {name} SET ROLE user")
    assert wire.run("SELECT CURRENT_ROLE()").cell == "user"


def test_a_dropped_user_does_not_come_back_by_their_token(site: Site) -> None:
    name = _name()
    wire = site.wire(_shop(name))
    wire.run("SELECT 1")
    site.root.run(f"DROP USER {name}")
    wire.sql("SELECT 1").refused(401, INVALID)
    phone = site.wire(_shop(name, did="phone"))
    assert phone.call("GET", "/sync/schema-version").status == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": ...}, {"exp": "soon"}, {"sub": ...}, {"sub": ""}, {"sub": 5}, {"sub": "x" * 129},
        {"did": "phone"}, {"nbf": 2**33}, {"iss": "https://stranger.example"}, {"iss": "kalamdb"},
        {"iss": "https://bank.example", "aud": "upwell", "user_name": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_what_an_outside_token_must_be(site: Site, changes: dict[str, Any]) -> None:
    site.wire(_shop(_name(), **changes)).sql("SELECT 1").refused(401, INVALID)


def test_an_expired_outside_token(site: Site) -> None:
    site.wire(_shop(_name(), exp=1)).sql("SELECT 1").refused(401, "TOKEN_EXPIRED")


def test_public_keys_verify_what_the_issuer_signed(site: Site, bank: Bank) -> None:
    user = _name()
    wire = site.wire(bank.token(_bank_claims(user)))
    assert wire.run("SELECT CURRENT_USER()").cell == f"bank:{user}"
    # The same name at another issuer is another user.
    wire.run("INSERT INTO app.t VALUES (1), (2)")
    assert site.wire(_shop(user)).run("SELECT COUNT(*) FROM app.t").cell == "0"
    site.wire(_shop(f"bank:{user}")).sql("SELECT 1").refused(401, INVALID)


def test_what_the_keys_of_an_issuer_do_not_open(site: Site, bank: Bank) -> None:
    claims = _bank_claims(_name())
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = bank.keys["k1"].public_key()
    for token in (
        jwt.encode(claims, stranger, "RS256", headers={"kid": "k1"}),
        jwt.encode(claims, bank.keys["k1"], "RS512", headers={"kid": "k1"}),
        jwt.encode(claims, bank.keys["k1"], "RS256", headers={"kid": "k2"}),
        jwt.encode(claims, "secret-secret-secret-secret-secret", "HS256", headers={"kid": "oct"}),
        jwt.encode(claims, str(public.public_numbers().n), "HS256", headers={"kid": "k1"}),
        jwt.encode(claims, None, "none", headers={"kid": "k1"}),
        bank.token(_bank_claims(_name(), aud="somebody-else")),
        bank.token(_bank_claims(_name(), iss="https://shop.example", sub=_name())),
        bank.token({**claims, "iss": "kalamdb", "sub": "root", "role": "system", "token_type": "access"}),
    ):
        site.wire(token).sql("SELECT 1").refused(401, INVALID)


def test_a_new_key_is_found_without_a_restart(site: Site, bank: Bank) -> None:
    bank.add("k-new", ec.generate_private_key(ec.SECP256R1()))
    token = bank.token(_bank_claims(_name()), "k-new")
    wait_until(lambda: site.wire(token).sql("SELECT 1").status == 200, timeout_s=10, what="the new key")
    assert site.wire(bank.token(_bank_claims(_name()))).sql("SELECT 1").status == 200


def test_a_device_of_an_outside_user_syncs(site: Site) -> None:
    name = _name()
    phone = site.wire(_shop(name, did="phone-1"))
    assert phone.call("GET", "/sync/schema-version").status == 200
    phone.sql("SELECT 1").refused(401, INVALID)
    assert site.wire(_shop(name)).call("GET", "/sync/schema-version").status == 401
