"""Stop: asks work in another thread to give up, and settles which of the two was faster.

Law: work that was stopped has no effect, and work that has begun to take effect is not stopped any more.
Where the query engine makes no pause stopped work may still burn its thread for a while.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from upwell.errors import SqlFailure


class Stopped(SqlFailure):
    """The work was asked to stop before it took effect."""


class Stop:
    """One request to stop, shared by the one who waits and the thread that works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_requested = False
        self._is_taking_effect = False
        self._call: Callable[[], object] | None = None

    def request(self) -> bool:
        """Ask the work to stop; False if it is too late and its outcome has to be waited for."""
        with self._lock:
            self._is_requested = not self._is_taking_effect
            if self._is_requested and self._call is not None:
                self._call()
            return self._is_requested

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Call `call`, from the thread that asks, when the work is asked to stop meanwhile."""
        with self._lock:
            self._call = call
        if self._is_requested:
            call()
        try:
            yield
        finally:
            with self._lock:
                self._call = None

    def check(self) -> None:
        """Raise `Stopped` if the work was asked to stop."""
        if self._is_requested:
            raise Stopped("stopped")

    def take_effect(self) -> None:
        """Begin what can't be taken back; raise `Stopped` if the work was asked to stop before."""
        with self._lock:
            self.check()
            self._is_taking_effect = True
