"""Lives: engines in processes of their own, one after the other on one directory, that die where it is told.

Law: a life ends by the signal that was asked for, with exit code 0 if all that it had to do is done, or with
1 and a traceback; what it leaves on the disk is all that the next one has.
"""

import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Self

from upwell.effects import Files, KillPoints, OsFiles, Points
from upwell.testing.faults import PointActions, TornFiles

LIFE_S_MAX = 60
SEGMENT_BYTES_MAX = 300
"""Less than any Parquet file has, more than a record of the log."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a life or an attempt ends: at a point of `effects.POINTS`; or, after that point, in the middle of
    a file: of the Parquet file that Arrow writes, or of the first one whose name contains `torn`.
    """

    point: str
    torn: str = ""
    in_segment: bool = False

    def __str__(self) -> str:
        middle = "segment" if self.in_segment else self.torn
        return f"{self.point}~{middle}" if middle else self.point

    def deadly(self) -> tuple[Points, Files]:
        """Return effects with which this process dies there; called in its main thread."""
        if self.in_segment:
            # The system itself ends a process that writes beyond its limit; Python would make it an error.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            return PointActions({self.point: _limit_files}), OsFiles()
        if self.torn:
            files = TornFiles(self.torn, _die)
            return PointActions({self.point: files.arm}), files
        return KillPoints(self.point), OsFiles()


class Lives:
    """Starts processes quickly: a first one imports what engines need, and is copied for each life.

    `with` ends it.
    """

    def __init__(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from upwell.testing.lives import _serve; _serve()"
        self._first = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._first.communicate()

    def live(self, life: Callable[..., None], *args: object) -> int:
        """Call `life`, a function of a module, in a process of its own; return its exit code."""
        assert self._first.stdin is not None, "it is a pipe"
        assert self._first.stdout is not None, "it is a pipe"
        pickle.dump((life, args), self._first.stdin)
        self._first.stdin.flush()
        return int(pickle.load(self._first.stdout))


def _serve() -> None:
    """Live what comes in, one life after the other; say how each ended."""
    importlib.import_module("upwell.testing.embedded")
    told = sys.stdout.buffer
    while True:
        try:
            life, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        child = os.fork()
        if not child:
            _live(life, args)
        pickle.dump(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told)
        told.flush()


def _live(life: Callable[..., None], args: tuple[object, ...]) -> NoReturn:
    signal.alarm(LIFE_S_MAX)  # whatever happens, nobody waits for ever
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    code = 1
    try:
        life(*args)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT_BYTES_MAX, resource.RLIM_INFINITY))
