"""Who is on this machine, and who only says so."""

import pytest

from upwell.edge.allowance import ASKERS_MAX, RateLimit
from upwell.edge.peer import address, is_local


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        (("127.0.0.1", 5), {}, True),
        (("127.8.0.1", 5), {}, True),
        (("::1", 5), {}, True),
        (("192.0.2.7", 5), {}, False),
        (("2001:db8::1", 5), {}, False),
        (None, {}, False),
        (("a-name", 5), {}, False),
        (("127.0.0.1", 5), {b"x-forwarded-for": b"127.0.0.1"}, False),
        (("127.0.0.1", 5), {b"forwarded": b"for=127.0.0.1"}, False),
        (("127.0.0.1", 5), {b"x-real-ip": b"127.0.0.1"}, False),
        (("192.0.2.7", 5), {b"x-forwarded-for": b"127.0.0.1"}, False),
    ],
)
def test_who_is_on_this_machine(
    client: tuple[str, int] | None, headers: dict[bytes, bytes], local: bool
) -> None:
    scope = {"type": "http", "client": client, "headers": list(headers.items())}
    assert is_local(scope) is local
    assert address(scope) == (client[0] if client else None)


def test_a_limit_is_each_ones_own_and_comes_back_with_time() -> None:
    now = [100.0]
    limit = RateLimit(3, lambda: now[0])
    assert [limit.take("ann") for _ in range(5)] == [True, True, True, False, False]
    assert limit.take("bob")
    now[0] += 0.34
    assert [limit.take("ann") for _ in range(2)] == [True, False]


def test_a_limit_remembers_a_bounded_number_of_askers() -> None:
    now = [100.0]
    limit = RateLimit(1, lambda: now[0])
    for asker in range(ASKERS_MAX):
        limit.take(asker)
    now[0] += 2
    assert limit.take("last")
    assert not limit.take("last")
    assert len(limit._allowances) == 1
