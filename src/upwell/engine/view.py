"""The View: what a reader sees; and its publication.

Law: a View stands at the end of a commit whose WAL sync has returned, never in the middle of one and
never ahead of the disk. Publishing says "the log grew to seq n" and carries no data.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

from upwell.engine.catalog import Catalog
from upwell.errors import ReadOnly
from upwell.ids import Seq
from upwell.storage.hot import HotReader


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class View:
    """The state at `seq`: hot rows, records (the manifests in force among them) and the catalog.

    Who reads holds it until the reading is done: files that its manifests name stay that long.
    """

    seq: Seq
    hot: HotReader
    catalog: Catalog


class Publication:
    """The View in force. One thread publishes, at once if `ask` is called; others read `view` or wait."""

    def __init__(self, first: View, ask: Callable[[], None]) -> None:
        self._view = first
        self._ask = ask
        self._failure: ReadOnly | None = None
        self._changed = threading.Condition()
        self._in_use: WeakSet[View] = WeakSet([first])
        self._listeners: list[Callable[[], object]] = []

    @property
    def view(self) -> View:
        return self._view

    @property
    def failure(self) -> ReadOnly | None:
        """Why nothing will be published any more; None while all is well."""
        return self._failure

    def views(self) -> list[View]:
        """Return the View in force and the older ones that somebody still reads."""
        with self._changed:
            return list(self._in_use)

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener` (in the publishing thread) after every change of `view` or `failure`.

        Returns what ends that; calling `listener` once more meanwhile must do no harm.
        """
        self._listeners = [*self._listeners, listener]

        def unlisten() -> None:
            self._listeners = [each for each in self._listeners if each is not listener]

        return unlisten

    def publish(self, view: View) -> None:
        with self._changed:
            self._in_use.add(view)
            self._view = view
        self._notify()

    def fail(self, failure: ReadOnly) -> None:
        self._failure = failure
        self._notify()

    def wait(self, seq: int) -> View:
        """Block this thread until the View has reached `seq`; raise `ReadOnly` if it never will."""
        if self._view.seq < seq:
            self._ask()
        with self._changed:
            self._changed.wait_for(lambda: self._view.seq >= seq or self._failure is not None)
        if self._view.seq < seq and self._failure is not None:
            raise self._failure
        return self._view

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for listener in self._listeners:
            listener()
