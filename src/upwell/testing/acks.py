"""The log of acknowledged writes: what a store has to hold after a crash.

Law: acknowledged ⊆ recovered ⊆ attempted, each once. A key's recovered state is its last acknowledged one
or one attempted later; a state that an acknowledged write has replaced, or that nobody wrote, is a problem.
"""

import threading
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# What was found, by key; as pairs, a key found twice can be seen. (Any: a mapping's key type is invariant.)
States = Mapping[Any, object] | Iterable[tuple[Any, object]]


class Absent:
    """The state of a key that has no row: never inserted, or deleted."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


@dataclass(slots=True)
class Attempt:
    """One write of one key. `begun` and `ended` are positions in the order in which the log was told."""

    value: object
    writer: Hashable
    begun: int
    ended: int | None = None
    is_acknowledged: bool = False


class AckLog:
    """Record `attempt` before a write is sent and `acknowledge` when its success came back; any thread may.

    A deletion is an attempt of `ABSENT`. Writers of one key that overlap in time may end in either order; a
    writer (by default the thread) does one thing after the other, so its next attempt ends its previous one.
    """

    def __init__(self) -> None:
        self._attempts: dict[Hashable, list[Attempt]] = {}
        self._time = 0
        self._lock = threading.Lock()

    @property
    def attempted_count(self) -> int:
        with self._lock:
            return sum(len(attempts) for attempts in self._attempts.values())

    @property
    def acknowledged_count(self) -> int:
        with self._lock:
            return sum(a.is_acknowledged for attempts in self._attempts.values() for a in attempts)

    def attempt(self, key: Hashable, value: object, *, writer: Hashable | None = None) -> None:
        """Say that a write which gives `key` the state `value` is about to be sent."""
        writer = threading.get_ident() if writer is None else writer
        with self._lock:
            now = self._tick()
            attempts = self._attempts.setdefault(key, [])
            for earlier in attempts:
                if earlier.writer == writer and earlier.ended is None:
                    earlier.ended = now
            attempts.append(Attempt(value, writer, begun=now))

    def acknowledge(self, key: Hashable, value: object) -> None:
        """Say that the write which gives `key` the state `value` was answered with success."""
        with self._lock:
            attempt = self._find_open(key, value)
            attempt.ended, attempt.is_acknowledged = self._tick(), True

    def refuse(self, key: Hashable, value: object) -> None:
        """Say that the write was answered with an error: it must have had no effect."""
        with self._lock:
            self._attempts[key].remove(self._find_open(key, value))

    def check(self, recovered: States) -> list[str]:
        """Compare the (key, state) found after recovery; return the problems, none if all is well."""
        found: dict[Hashable, list[object]] = {}
        for key, value in _pairs(recovered):
            found.setdefault(key, []).append(value)
        with self._lock:
            keys = [*self._attempts, *(key for key in found if key not in self._attempts)]
            problems = [_problem(key, self._attempts.get(key, []), found.get(key, [])) for key in keys]
        return [problem for problem in problems if problem]

    def settle(self, recovered: States) -> None:
        """Take what was recovered as acknowledged: not even a write that had no answer may vanish now."""
        with self._lock:
            begun, ended = self._tick(), self._tick()
            self._attempts = {
                key: [Attempt(value, "recovered", begun=begun, ended=ended, is_acknowledged=True)]
                for key, value in _pairs(recovered)
            }

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def _find_open(self, key: Hashable, value: object) -> Attempt:
        attempts = self._attempts.get(key, [])
        found = [a for a in attempts if a.value == value and not a.is_acknowledged]
        assert found, f"{key!r}: an answer for {value!r}, which was never attempted"
        mine = [a for a in found if a.writer == threading.get_ident()]
        return (mine or found)[-1]


def _pairs(states: States) -> Iterable[tuple[Any, object]]:
    return states.items() if isinstance(states, Mapping) else states


def _problem(key: Hashable, attempts: list[Attempt], found: list[object]) -> str | None:
    if not attempts:
        return f"{key!r}: invented: nobody wrote {found!r}" if found else None
    if len(found) > 1:
        return f"{key!r}: {len(found)} rows for one key: {found!r}"
    state = found[0] if found else ABSENT
    possible = _possible(attempts)
    if state in possible:
        return None
    kind = "lost" if state is ABSENT else "stale" if any(a.value == state for a in attempts) else "invented"
    return f"{key!r}: {kind}: found {state!r}, possible are {possible!r}"


def _possible(attempts: list[Attempt]) -> list[object]:
    """Return the states that the key may end in: those that no acknowledged write has surely replaced."""
    replaced_before = max((a.begun for a in attempts if a.is_acknowledged), default=0)
    states = [a.value for a in attempts if a.ended is None or a.ended > replaced_before]
    return states if replaced_before else [ABSENT, *states]
