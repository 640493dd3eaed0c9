"""The background loop of the blocking driver: one thread makes rounds, another holds the watch stream.

Law: whoever starts it waits for its end; no thread is left when `stop` returns.
"""

import threading
from collections.abc import Callable
from typing import TypeAlias

from upwell.device.background import Background, Round
from upwell.device.failures import DeviceError, NotSynced, Unreachable
from upwell.device.pace import Pause
from upwell.device.transport import Request, Stream
from upwell.device.watch import Open, Read, Watch

OpenStream: TypeAlias = Callable[[Request], Stream]


class Threads:
    """One run of the loop. `sync` makes a round; `open_stream` None: the transport has no streams."""

    def __init__(
        self,
        background: Background,
        watch: Watch,
        *,
        sync: Callable[[], object],
        open_stream: OpenStream | None,
        abort: Callable[[], None],
        file_lock: threading.RLock,
        grace_s: float,
        now: Callable[[], float],
    ) -> None:
        self._background = background
        self._watch = watch
        self._sync = sync
        self._open_stream = open_stream
        self._abort = abort
        self._file_lock = file_lock
        self._grace_s = grace_s
        self._now = now
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._ended = threading.Condition()
        self._stream_lock = threading.Lock()
        self._stream: Stream | None = None
        self._is_cut = False
        self._threads = [threading.Thread(target=self._run_rounds, name="upwell-sync", daemon=True)]
        if open_stream is not None:
            self._threads.append(threading.Thread(target=self._run_watch, name="upwell-watch", daemon=True))

    @property
    def is_running(self) -> bool:
        return not self._stopped.is_set()

    @property
    def is_cut(self) -> bool:
        """True when a round that is under way must not send anything more."""
        return self._is_cut

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for it; a round under way gets a moment, then its connection is broken."""
        with self._stream_lock:
            self._stopped.set()
            if self._stream is not None:
                self._stream.abort()
        self._woken.set()
        with self._ended:
            self._ended.notify_all()
        for thread in self._threads:
            # A callback of the app may stop the loop that called it.
            if thread is not threading.current_thread():
                thread.join(self._grace_s)
                if thread.is_alive():
                    self._is_cut = True
                    self._abort()
                    thread.join()

    def ask(self, until_s: float | None) -> Exception | None:
        """Wait for a round that begins after this call; return why there was no successful one."""
        number = self._background.ask()
        self._woken.set()
        with self._ended:
            self._ended.wait_for(
                lambda: self._background.ended >= number or not self.is_running,
                None if until_s is None else max(until_s - self._now(), 0.0),
            )
        if self._background.succeeded >= number:
            return None
        return self._background.failure or NotSynced("the round has not ended")

    def _run_rounds(self) -> None:
        steps = self._background.steps()
        failure: Exception | None = None
        try:
            while self.is_running:
                with self._file_lock:
                    step = steps.send(failure)
                with self._ended:
                    self._ended.notify_all()
                failure = self._perform(step)
        finally:
            # Nobody may wait for a loop that is no more.
            self._stopped.set()
            with self._ended:
                self._ended.notify_all()

    def _perform(self, step: Round | Pause) -> Exception | None:
        match step:
            case Pause():
                self._woken.wait(step.seconds)
                self._woken.clear()
                return None
            case Round():
                try:
                    self._sync()
                # The app's resolver runs in there, too: whatever it raises must not end the loop silently.
                except Exception as failure:  # noqa: BLE001
                    return failure
                return None

    def _run_watch(self) -> None:
        steps = self._watch.steps()
        step = next(steps)
        while self.is_running:
            try:
                chunk = self._perform_watch(step)
            except DeviceError as failure:
                step = steps.throw(failure)
            # A transport of the app may raise anything: the thread must not end for it.
            except Exception as failure:  # noqa: BLE001
                step = steps.throw(Unreachable(str(failure)))
            else:
                step = steps.send(chunk)
            self._woken.set()
        self._close_stream()

    def _perform_watch(self, step: Open | Read | Pause) -> bytes | None:
        match step:
            case Pause():
                self._close_stream()
                self._stopped.wait(step.seconds)
                return None
            case Open():
                stream = self._open(step.request)
                stream.open()
                return None
            case Read():
                assert self._stream is not None, "opened before it is read"
                return self._stream.read()

    def _open(self, request: Request) -> Stream:
        assert self._open_stream is not None, "there is no watch thread without streams"
        stream = self._open_stream(request)
        with self._stream_lock:
            self._stream = stream
            if not self.is_running:
                stream.abort()
        return stream

    def _close_stream(self) -> None:
        with self._stream_lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
