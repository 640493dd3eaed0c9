"""Checks: what was expected against what was found, each one recorded.

Law: nothing is skipped and nothing is approximate; a run is good only if it made checks and all of them held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_CHARS_MAX = 300
DIFFERENCES_MAX = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison; `difference` says what differs, empty if nothing does."""

    phase: str
    what: str
    difference: str

    @property
    def is_held(self) -> bool:
        return not self.difference


class Checks:
    """Records comparisons under the name of the phase that runs."""

    def __init__(self, on_check: Callable[[Check], None]) -> None:
        self.phase = ""
        self.made: list[Check] = []
        self._on_check = on_check

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.made if not check.is_held]

    def of(self, phase: str) -> list[Check]:
        """Return the checks of one phase."""
        return [check for check in self.made if check.phase == phase]

    def equal(self, what: str, expected: object, found: object) -> None:
        """Record whether `found` equals `expected`, type and all."""
        same = type(expected) is type(found) and expected == found
        self._record(what, "" if same else difference(expected, found))

    def below(self, what: str, limit: float, found: float) -> None:
        """Record whether `found` is less than `limit`."""
        self._record(what, "" if found < limit else f"expected less than {limit:g}, found {found:g}")

    def fail(self, what: str, reason: str) -> None:
        """Record that something didn't happen at all."""
        self._record(what, reason or "failed")

    def _record(self, what: str, found: str) -> None:
        check = Check(self.phase, what, found)
        self.made.append(check)
        self._on_check(check)


def difference(expected: object, found: object) -> str:
    """Say in a line where two values differ: of mappings and lists the first few places."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = [*expected, *(key for key in found if key not in expected)]
        places = [
            key for key in keys if key not in expected or key not in found or expected[key] != found[key]
        ]
        return _places({key: (expected.get(key, _NOTHING), found.get(key, _NOTHING)) for key in places})
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        return _list_difference(expected, found)
    return f"expected {_shown(expected)}, found {_shown(found)}"


def _list_difference(expected: Sequence[object], found: Sequence[object]) -> str:
    length = max(len(expected), len(found))
    pairs = {index: (_at(expected, index), _at(found, index)) for index in range(length)}
    differing = {index: pair for index, pair in pairs.items() if pair[0] != pair[1]}
    return f"{len(expected)} expected, {len(found)} found; " + _places(differing)


def _places(differing: Mapping[Any, tuple[object, object]]) -> str:
    shown = [
        f"at {place!r} expected {_shown(expected)}, found {_shown(found)}"
        for place, (expected, found) in list(differing.items())[:DIFFERENCES_MAX]
    ]
    more = len(differing) - len(shown)
    return "; ".join(shown or ["of another type"]) + (f"; and {more} more" if more else "")


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _at(values: Sequence[object], index: int) -> object:
    return values[index] if index < len(values) else _NOTHING


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"
