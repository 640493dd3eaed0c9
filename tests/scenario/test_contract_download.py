"""What the reference's own server tests ask of a download, asked of ours: the cases not asked elsewhere.

Written from the device sync contract, sections 1.3, 1.9, 3, 7 and 13.1; the names of cases (W…, S…) are its.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest

from upwell.testing.sync_world import World, delete, key, now_s, upsert
from upwell.testing.wire import Site

A, B, C = (key(number) for number in range(1, 4))


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


@pytest.mark.parametrize("include_self", ["true", "false"])
def test_w01_w02_a_windowed_hydration_beside_a_writer_is_exact(world: World, include_self: str) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    reader = phone if include_self == "true" else world.handset(user, "tablet")
    phone.put(*(upsert(n, "notes", f"p{n:03}", body="b") for n in range(1, 61)))
    found: list[dict[str, Any]] = []
    page = reader.download(limit=7, include_self=include_self)
    window = page["window_until"]

    def write() -> None:
        for n in range(1, 31):
            laptop.put(upsert(n, "notes", f"l{n:03}", body="b"))

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while True:
            found += page["changes"]
            assert page["window_until"] == window == 60
            if not page["has_more"]:
                break
            query = {"after": page["next_after"], "until": window, "limit": 7, "include_self": include_self}
            page = reader.download(**query)
        writer.result()
    assert [change["pk"] for change in found] == [f"p{n:03}" for n in range(1, 61)]
    assert page["next_after"] == window
    later = reader.download(after=window)
    assert [change["pk"] for change in later["changes"]] == [f"l{n:03}" for n in range(1, 31)]


def test_s02_a_device_that_was_away_catches_up(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "users", A, name="a"))
    at = laptop.download()["next_after"]
    laptop.put(upsert(1, "users", B, name="own"))
    phone.put(upsert(2, "users", A, 1, name="a2"), upsert(3, "users", C, name="c"))
    phone.put(delete(4, "users", C, 1))
    page = laptop.download(after=at)
    assert [(c["pk"], c["op"], c["server_version"]) for c in page["changes"]] == [
        (A, "UPDATE", 2), (C, "INSERT", 1), (C, "DELETE", 2),
    ]  # fmt: skip
    assert laptop.download(after=page["next_after"])["changes"] == []


def test_an_old_entry_keeps_its_own_version_and_flag(world: World) -> None:
    """Not those that the row has now (section 10.10)."""
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "users", A, name="1"))
    phone.put(upsert(2, "users", A, 1, name="2"))
    phone.put(delete(3, "users", A, 2))
    log = world.handset(user, "tablet").download()["changes"]
    assert [(c["server_version"], c["deleted"], c["payload"]) for c in log] == [
        (1, False, {"id": A, "name": "1"}), (2, False, {"id": A, "name": "2"}), (3, True, None),
    ]  # fmt: skip


def test_the_numbers_of_a_user_are_strictly_ascending_under_two_devices(world: World) -> None:
    user = world.user()
    devices = [world.handset(user, source) for source in ("phone", "laptop")]
    highest = 0
    for n in range(1, 11):
        for device in devices:
            found = device.post(upsert(n, "notes", f"{n}-{id(device)}", body="b"))["highest_server_seq"]
            assert found > highest
            highest = found
    ids = [change["server_id"] for change in devices[0].log(3)]
    assert ids == sorted(set(ids))
    assert ids[-1] == highest


def test_a_cursor_beyond_the_log_gets_an_empty_page(world: World) -> None:
    """As a device has whose server was emptied."""
    phone = world.handset()
    page = phone.download(after=5000, limit=1000, schema=world.ns)
    assert (page["changes"], page["has_more"], page["next_after"]) == ([], False, 5000)
    phone.put(upsert(1, "users", A, name="n"))
    assert phone.download(after=5000, include_self="true")["changes"] == []


def test_payloads_keep_every_digit_and_every_kind(world: World) -> None:
    phone = world.handset()
    columns = {
        "name": "n", "i": 9007199254740993, "big": -(2**63), "f": 0.1, "e": 1e-7, "t": True, "z": None,
        "s": "1.0", "nested": {"b": [1, 2.5, {"c": "Ünïcode 🌊\n"}]}, "empty": "",
    }  # fmt: skip
    phone.put({**upsert(1, "users", A), "payload": {"id": A, **columns}})
    found = phone.log()[0]["payload"]
    assert repr(sorted(found.items())) == repr(sorted({"id": A, **columns}.items()))


def test_health_needs_no_token(world: World) -> None:
    answer = world.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "healthy")


def test_a_token_as_the_stock_client_signs_it(world: World) -> None:
    claims = {
        "sub": world.user(),
        "did": "phone",
        "iss": "go-oversync",
        "iat": now_s(),
        "exp": now_s() + 86_400,
    }
    token = jwt.encode(claims, world.server.jwt_secret, "HS256")
    headers = {"authorization": f"Bearer {token}"}
    for path in ("/sync/download", "/sync/schema-version"):
        assert world.http.get(path, headers=headers).status_code == 200
    # A back end's clock may be a minute ahead, not more; what is over is over.
    for said, status in (
        ({"nbf": now_s() + 40}, 200),
        ({"nbf": now_s() + 100}, 401),
        ({"exp": now_s()}, 401),
    ):
        token = jwt.encode({**claims, **said}, world.server.jwt_secret, "HS256")
        answer = world.http.get("/sync/download", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"] == "authentication_failed"
