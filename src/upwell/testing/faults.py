"""Faults on purpose: effects that fail at the n-th call, answers that get lost, actions at named points.

Law: a fault fires exactly once, at the call that was named, and says so in `fired`; so a test can go through
every n until a run passes without the fault, and knows that no call was left out.
"""

import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from upwell.effects import POINTS, Call, OsFiles

RUNS_MAX = 10_000

T = TypeVar("T")
Request_contra = TypeVar("Request_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)
Request = TypeVar("Request")
Answer = TypeVar("Answer")


def disk_full() -> OSError:
    """Return the error of a full disk (ENOSPC)."""
    return OSError(errno.ENOSPC, "No space left on device (injected)")


def connection_lost() -> ConnectionResetError:
    """Return the error of a connection that broke (ECONNRESET)."""
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer (injected)")


class FailOnce:
    """Counts calls from any thread; the n-th, counted from 1, raises `error`."""

    def __init__(self, fail_at: int, error: BaseException | None = None) -> None:
        assert fail_at >= 1, f"calls are counted from 1, not {fail_at}"
        self.fail_at = fail_at
        self.error = error or disk_full()
        self.count = 0
        self._lock = threading.Lock()

    @property
    def fired(self) -> bool:
        return self.count >= self.fail_at

    def is_due(self) -> bool:
        """Count one call; return whether it is the one to fail."""
        with self._lock:
            self.count += 1
            return self.count == self.fail_at

    def step(self) -> None:
        """Count one call; raise the error if it is the one to fail."""
        if self.is_due():
            raise copy(self.error)  # whose traceback would keep alive what the frames held


class FailingFiles(OsFiles):
    """`Files` on the local file system whose n-th elementary call fails, instead of being made.

    `trace` lists the elementary calls so far as (name, path), the failed one included.
    """

    def __init__(self, fail_at: int, error: OSError | None = None) -> None:
        self.fault = FailOnce(fail_at, error)
        self.trace: list[tuple[Call, Path]] = []
        self._only: Call | None = None

    @property
    def fired(self) -> bool:
        return self.fault.fired

    def arm(self, fail_at: int, *, only: Call | None = None) -> None:
        """Count again from here: the `fail_at`-th call from now fails, of one name if `only` says it."""
        self.fault = FailOnce(fail_at, self.fault.error)
        self._only = only
        self.trace = []

    def _call(self, name: Call, path: Path, fn: Callable[[], T]) -> T:
        self.trace.append((name, path))
        if self._only in (None, name):
            self.fault.step()
        return fn()


class TornFiles(OsFiles):
    """`Files` whose next write to a file with `part` in its name, once armed, stops half-way by `end`."""

    def __init__(self, part: str, end: Callable[[], None]) -> None:
        self._part = part
        self._end = end
        self._is_armed = False

    def arm(self) -> None:
        """Tear the next such write, and no other."""
        self._is_armed = True

    def _call(self, name: Call, path: Path, fn: Callable[[], T]) -> T:
        if name == "write" and self._is_armed and self._part in path.name:
            self._is_armed = False
            assert isinstance(fn, partial), "a write says what it writes, and where"
            descriptor, rest = fn.args
            os.write(descriptor, rest[: len(rest) // 2])
            self._end()
            raise AssertionError("a torn write ends what it is part of")
        return fn()


WRITING: frozenset[Call] = frozenset({"write", "fsync", "fsync-dir", "link", "rename", "unlink", "mkdir"})


class SteeredFiles(OsFiles):
    """`Files` of a server in another process, whose writing fails as a test says in a file.

    The file `orders` is JSON: for each directory below `root` the first of its writing calls that fails, the
    last one, and the error's number; the calls of a directory are counted from the order that first named it.
    Without the file nothing fails.
    """

    def __init__(self, root: Path, orders: Path) -> None:
        self._root = root
        self._orders = orders
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def _call(self, name: Call, path: Path, fn: Callable[[], T]) -> T:
        with self._lock:
            number = self._due(path) if name in WRITING else 0
        if number:
            raise OSError(number, f"{os.strerror(number)} (injected)", str(path))
        return fn()

    def _due(self, path: Path) -> int:
        try:
            orders: dict[str, tuple[int, int, int]] = json.loads(self._orders.read_bytes())
        except FileNotFoundError:
            return 0
        for directory, (first, last, number) in orders.items():
            if path.is_relative_to(self._root / directory):
                self._counts[directory] += 1
                return number if first <= self._counts[directory] <= last else 0
        return 0


def steer(orders: Path, faults: Mapping[str, tuple[int, int, int]]) -> None:
    """Write the orders for a `SteeredFiles`, all at once."""
    temp = orders.with_suffix(".new")
    temp.write_text(json.dumps(dict(faults)))
    temp.replace(orders)


def each_fault(make_run: Callable[[int], bool], *, runs_max: int = RUNS_MAX) -> int:
    """Call `make_run(1)`, `make_run(2)`, … until one returns False; return how many faults fired.

    `make_run(n)` builds a fresh world in which the n-th call fails, does the work in it, checks what must
    hold afterwards, and returns whether the fault fired. An exception of a run carries its n as a note.
    """
    for n in range(1, runs_max + 1):
        try:
            fired = make_run(n)
        except BaseException as error:
            error.add_note(f"in the run whose call number {n} fails")
            raise
        assert isinstance(fired, bool), f"a run returns whether its fault fired, not {fired!r}"
        if not fired:
            assert n > 1, "no fault fired at all: the run doesn't use the failing effect"
            return n - 1
    raise AssertionError(f"still failing after {runs_max} runs: the work has no end of calls")


class Transport(Protocol[Request_contra, Answer_co]):
    """Whatever sends a request and returns its answer."""

    def send(self, request: Request_contra, /) -> Answer_co:
        """Send `request`; return the answer."""

    def close(self) -> None:
        """Give back what it holds."""


class DroppingTransport(Generic[Request, Answer]):
    """Sends every request, but loses the n-th answer: the other side did the work, the sender can't know.

    With `before=True` the n-th request is lost on the way there instead. `error` is what the sender sees.
    """

    def __init__(
        self,
        inner: Transport[Request, Answer],
        *,
        drop_at: int,
        before: bool = False,
        error: Exception | None = None,
    ) -> None:
        self._inner = inner
        self._before = before
        self.fault = FailOnce(drop_at, error or connection_lost())

    @property
    def fired(self) -> bool:
        return self.fault.fired

    def send(self, request: Request) -> Answer:
        is_due = self.fault.is_due()
        if is_due and self._before:
            raise self.fault.error
        answer = self._inner.send(request)
        if is_due:
            raise self.fault.error
        return answer

    def close(self) -> None:
        self._inner.close()


class PointActions:
    """`Points` inside a test's own process: calls the action of each point, and lists the points reached."""

    def __init__(self, actions: Mapping[str, Callable[[], None]] | None = None) -> None:
        self._actions = dict(actions or {})
        assert self._actions.keys() <= POINTS, f"unknown points {sorted(self._actions.keys() - POINTS)}"
        self.reached: list[str] = []

    def reach(self, name: str) -> None:
        assert name in POINTS, f"unknown point {name!r}"
        self.reached.append(name)
        if action := self._actions.get(name):
            action()
