"""A token opens the account that it was given to, and no other of its name, whatever the clock says.

Expected is what docs/access.md says of dropped accounts; times in tokens are those of RFC 7519.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jwt
import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.catalog import Catalog, Role, User
from upwell.engine.commit import Committer
from upwell.engine.schema import Schema
from upwell.errors import AuthenticationFailed
from upwell.session.auth import Authenticator
from upwell.storage.memory import MemoryStore

SECRET = "s" * 32


class World:
    """Accounts, and tokens for them; the clock stands still."""

    def __init__(self, committer: Committer, clock: ManualClock) -> None:
        self.clock = clock
        self.schema = Schema(committer, clock)
        self._committer = committer
        self.gate = Authenticator(
            secret=SECRET, clock=clock, expiry_hours=24, device_expiry_hours=24, bcrypt_cost=4
        )

    @property
    def catalog(self) -> Catalog:
        return self._committer.newest_catalog

    def create(self) -> User:
        now = self.clock.now_us()
        self.schema.create_user(User("ann", Role.USER, "hash", created_at_us=now, updated_at_us=now))
        return self.catalog.users["ann"]

    def drop(self) -> None:
        self.schema.alter_user("ann", lambda user: replace(user, deleted_at_us=self.clock.now_us()))

    def tokens(self, user: User) -> list[tuple[Callable[[str, Catalog], object], str]]:
        """Return a token of each kind, with what opens it."""
        login = self.gate.log_in(user)
        phone = self.gate.device_token(user.name, "phone", account=user)
        return [
            (self.gate.principal, login.access.text),
            (self.gate.refresh_user, login.refresh.text),
            (self.gate.device, phone.text),
        ]

    def opens(self, opener: Callable[[str, Catalog], object], token: str) -> bool:
        try:
            opener(f"Bearer {token}", self.catalog)
        except AuthenticationFailed:
            return False
        return True


@pytest.fixture
def world() -> Iterator[World]:
    clock = ManualClock()
    committer = Committer(MemoryStore(clock=clock), points=NoPoints())
    yield World(committer, clock)
    committer.close()


@pytest.mark.parametrize("step_s", [0, 0.4, 2, -7200])
def test_each_life_of_a_name_is_opened_by_its_own_tokens_only(world: World, step_s: float) -> None:
    """All of it within a second, too, and after the clock was set back."""
    lives = []
    for _ in range(3):
        lives.append(world.tokens(world.create()))
        for life in lives:
            assert [world.opens(*each) for each in life] == [life is lives[-1]] * 3
        world.drop()
        world.clock.advance(step_s)
    assert not any(world.opens(*each) for life in lives for each in life)


@pytest.mark.parametrize("step_s", [0, -7200])
def test_a_new_password_ends_access_and_not_devices(world: World, step_s: float) -> None:
    before = world.tokens(world.create())
    world.clock.advance(step_s)
    now = world.clock.now_us()
    world.schema.alter_user("ann", lambda user: replace(user, era=user.era + 1, era_began_us=now))
    assert [world.opens(*each) for each in before] == [False, False, True]
    assert [world.opens(*each) for each in world.tokens(world.catalog.users["ann"])] == [True] * 3


@pytest.mark.parametrize(
    ("issued_s", "opens"),
    [(-5, False), (0, False), (0.9, False), (1, True), (None, False), ("1", False), (float("nan"), False)],
)
def test_what_an_apps_back_end_signs_has_to_be_of_a_later_second(
    world: World, issued_s: float | str | None, opens: bool
) -> None:
    """Its tokens know of no account: in the second in which one began anew they may be of the one before."""
    world.create()
    claims: dict[str, object] = {"sub": "ann", "did": "phone"}
    token = jwt.encode(claims, SECRET, "HS256")
    assert world.opens(world.gate.device, token), "a first account has nobody before it"
    world.drop()
    world.clock.advance(0.3)
    began_s = world.create().anew_at_us // 1_000_000
    if issued_s is not None:
        claims["iat"] = began_s + issued_s if isinstance(issued_s, (int, float)) else issued_s
    assert world.opens(world.gate.device, jwt.encode(claims, SECRET, "HS256")) == opens
