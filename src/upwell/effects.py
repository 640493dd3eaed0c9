"""Effects: every call on the file system, and every named crash point, behind objects a test can replace.

Law: a call that returned is on the disk (file and directory synced); a call that raised leaves no
half-written file under a final name. Each elementary call passes through `OsFiles._call`, so that a test
can fail any one of them.
"""

import itertools
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

Call = Literal[
    "open", "read", "write", "fsync", "fsync-dir", "link", "rename", "unlink", "mkdir", "stat", "list"
]
T = TypeVar("T")

POINTS: frozenset[str] = frozenset(
    {
        "commit:before-write",
        "commit:after-write",
        "commit:after-sync",
        "commit:after-publish",
        "flush:begin",
        "flush:segment-written",
        "flush:segment-published",
        "flush:manifest-written",
        "flush:before-commit",
        "flush:after-commit",
        "flush:mid-cleanup",
        "flush:after-cleanup",
        "flush:job-completed",
        "compact:begin",
        "compact:segment-written",
        "compact:segment-published",
        "compact:manifest-written",
        "compact:before-commit",
        "compact:after-commit",
        "compact:after-copy",
        "compact:job-completed",
        "cleanup:begin",
        "cleanup:partition-removed",
        "cleanup:rows-removed",
        "collect:removed",
        "backup:hot-copied",
        "backup:file-copied",
        "backup:files-copied",
        "backup:list-written",
        "backup:named",
        "restore:files-copied",
        "restore:named",
        "restore:replaced",
        "job:queued",
        "job:started",
        "job:worked",
        "job:ended",
        "trim:after-slice",
    }
)

CRASH_POINT = "UPWELL_CRASH_POINT"
HOLD_POINT = "UPWELL_HOLD_POINT"
HOLD_FILE = "UPWELL_HOLD_FILE"
HOLD_POLL_S = 0.005
HOLD_S_MAX = 120.0

CHUNK_BYTES = 1 << 20

_READ = os.O_RDONLY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_temp_numbers = itertools.count()


class Mark(NamedTuple):
    """Which file it is, and when it was written last: what of a file changes when its content does."""

    device: int
    inode: int
    size_bytes: int
    written_ns: int


class Files(Protocol):
    """Durable files. Every method raises `OSError` when the system refuses."""

    def write_new(self, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        """Create `path` with `data`, durably; raise `FileExistsError` if there is one already.

        Without `sync_name` the name becomes durable with `sync_dir`.
        """

    def sync_dir(self, directory: Path) -> None:
        """Make the names in `directory` durable."""

    def replace(self, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        """Put `data` at `path`, durably; a reader sees the old or the new content, never a mixture.

        Without `sync_name` a power cut may bring the old content back until the directory is synced.
        """

    def publish(self, temp: Path, final: Path, *, sync_name: bool = True) -> None:
        """Sync `temp` and give it the new name `final`, durably; raise `FileExistsError` if that is taken.

        `sync_name` as in `write_new`.
        """

    def read(self, path: Path) -> bytes:
        """Return the content; raise `FileNotFoundError` if there is none."""

    def exists(self, path: Path) -> bool:
        """Return whether a file or directory has this name."""

    def mark(self, path: Path) -> Mark:
        """Return the mark of the file, or of what a symbolic link leads to."""

    def make_dirs(self, path: Path, *, sync_name: bool = True) -> None:
        """Create the directory and its missing parents, durably; an existing one is fine.

        `sync_name` as in `write_new`, for the last name.
        """

    def remove(self, path: Path) -> None:
        """Remove the file, durably; raise `FileNotFoundError` if there is none."""

    def list(self, directory: Path) -> list[str]:
        """Return the names in `directory`, sorted, without temporary files."""

    def write_stream(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Write a file, below directories that may be missing, and sync it; `sync_tree` syncs the names."""

    def read_stream(self, path: Path) -> Iterator[bytes]:
        """Yield the content in chunks; raise `FileNotFoundError` if there is none."""

    def sync_tree(self, root: Path) -> None:
        """Make all files below `root`, and the names of all, durable, its own too."""

    def move(self, source: Path, target: Path) -> None:
        """Give a file or directory another name, durably; a directory only where nothing is."""

    def remove_tree(self, root: Path) -> None:
        """Remove a directory and what is in it as far as the system lets it; a missing one is fine."""


class OsFiles:
    """`Files` on the local file system."""

    def write_new(self, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        temp = self._write_temp(path, data)
        try:
            self._link_new(temp, path, sync_name=sync_name)
        finally:
            self._discard(temp)

    def replace(self, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        temp = self._write_temp(path, data)
        try:
            self._call("rename", path, lambda: os.replace(temp, path))
        except OSError:
            self._discard(temp)
            raise
        if sync_name:
            self.sync_dir(path.parent)

    def sync_dir(self, directory: Path) -> None:
        descriptor = self._call("open", directory, lambda: os.open(directory, _DIRECTORY))
        try:
            self._call("fsync-dir", directory, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)

    def publish(self, temp: Path, final: Path, *, sync_name: bool = True) -> None:
        self._sync(temp)
        self._link_new(temp, final, sync_name=sync_name)
        self._discard(temp)

    def read(self, path: Path) -> bytes:
        return self._call("read", path, path.read_bytes)

    def exists(self, path: Path) -> bool:
        return self._call("stat", path, path.exists)

    def mark(self, path: Path) -> Mark:
        status = self._call("stat", path, lambda: os.stat(path))
        return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def make_dirs(self, path: Path, *, sync_name: bool = True) -> None:
        if self._is_dir(path):
            return
        for is_last in (False, True):
            self.make_dirs(path.parent)
            try:
                with suppress(FileExistsError):
                    self._call("mkdir", path, lambda: path.mkdir())
                break
            except FileNotFoundError:  # somebody has just removed the parent, since nothing was in it
                if is_last:
                    raise
        if sync_name:
            self.sync_dir(path.parent)

    def remove(self, path: Path) -> None:
        self._call("unlink", path, path.unlink)
        self.sync_dir(path.parent)

    def list(self, directory: Path) -> list[str]:
        names = self._call("list", directory, lambda: os.listdir(directory))
        return sorted(name for name in names if not is_temp(name))

    def write_stream(self, path: Path, chunks: Iterable[bytes]) -> None:
        self._call("mkdir", path.parent, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        self._write_synced(path, chunks)

    def read_stream(self, path: Path) -> Iterator[bytes]:
        with self._call("open", path, lambda: path.open("rb")) as file:
            while chunk := self._call("read", path, lambda: file.read(CHUNK_BYTES)):
                yield chunk

    def sync_tree(self, root: Path) -> None:
        below = sorted(root.rglob("*"))
        for path in [*(path for path in below if not path.is_dir()), *filter(Path.is_dir, below), root]:
            self._sync(path)
        self.sync_dir(root.parent)

    def move(self, source: Path, target: Path) -> None:
        self._call("rename", target, lambda: source.rename(target))
        self.sync_dir(target.parent)

    def remove_tree(self, root: Path) -> None:
        with suppress(OSError):
            self._call("unlink", root, lambda: shutil.rmtree(root, ignore_errors=True))

    def _call(self, name: Call, path: Path, fn: Callable[[], T]) -> T:
        """Make one elementary call of the operating system; a failing wrapper overrides this."""
        return fn()

    def _write_temp(self, path: Path, data: bytes) -> Path:
        temp = temp_beside(path)
        try:
            self._write_synced(temp, [data])
        except OSError:
            self._discard(temp)
            raise
        return temp

    def _write_synced(self, path: Path, chunks: Iterable[bytes]) -> None:
        descriptor = self._call("open", path, lambda: os.open(path, _WRITE, 0o644))
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[self._call("write", path, partial(os.write, descriptor, rest)) :]
            self._call("fsync", path, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)

    def _link_new(self, temp: Path, final: Path, *, sync_name: bool) -> None:
        # A link refuses to overwrite, a rename doesn't.
        self._call("link", final, lambda: os.link(temp, final))
        if not sync_name:
            return
        try:
            self.sync_dir(final.parent)
        except OSError:
            self._discard(final)
            raise

    def _discard(self, path: Path) -> None:
        # What stays behind is named by nobody: failing to remove it must not hide how the caller fared.
        with suppress(OSError):
            self._call("unlink", path, path.unlink)

    def _sync(self, path: Path) -> None:
        if path.is_dir():
            self.sync_dir(path)
            return
        descriptor = self._call("open", path, lambda: os.open(path, _READ))
        try:
            self._call("fsync", path, lambda: os.fsync(descriptor))
        finally:
            os.close(descriptor)

    def _is_dir(self, path: Path) -> bool:
        try:
            mode = self._call("stat", path, lambda: path.stat().st_mode)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(f"{path} is a file; a directory is needed here")
        return True


def temp_beside(path: Path) -> Path:
    """Return a name in the directory of `path` that no other writer uses and `Files.list` doesn't show."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_temp_numbers)}.tmp")


def is_temp(name: str) -> bool:
    """Return whether `name` is a temporary file's: never read, free to remove when nobody writes."""
    return name.startswith(".") and name.endswith(".tmp")


class Points(Protocol):
    """Named points that the engine passes; a test crashes or holds the process there."""

    def reach(self, name: str) -> None:
        """Say that the process is at the point `name`, one of `POINTS`."""


class NoPoints:
    """Nothing happens at any point."""

    def reach(self, name: str) -> None:
        assert name in POINTS, f"unknown point {name!r}"


class NthReach:
    """Counts how often one point was reached, from any thread."""

    def __init__(self, name: str, nth: int = 1) -> None:
        assert name in POINTS, f"unknown point {name!r}"
        assert nth >= 1, f"points are counted from 1, not {nth}"
        self._name, self._nth = name, nth
        self._count = 0
        self._lock = threading.Lock()

    def is_due(self, name: str) -> bool:
        """Count `name` if it is ours; return whether this was the n-th time."""
        assert name in POINTS, f"unknown point {name!r}"
        if name != self._name:
            return False
        with self._lock:
            self._count += 1
            return self._count == self._nth


class KillPoints:
    """Kills its own process with SIGKILL when `name` is reached the n-th time."""

    def __init__(self, name: str, nth: int = 1) -> None:
        self._due = NthReach(name, nth)

    def reach(self, name: str) -> None:
        if self._due.is_due(name):
            os.kill(os.getpid(), signal.SIGKILL)


class HoldPoints:
    """Holds the thread that reaches `name` the n-th time, between `FILE.reached` and `FILE.go`.

    It creates the first file when it is there, and goes on when a test has created the second.
    """

    def __init__(
        self, name: str, file: Path, nth: int = 1, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._due = NthReach(name, nth)
        self._reached = file.with_name(f"{file.name}.reached")
        self._go = file.with_name(f"{file.name}.go")
        self._sleep = sleep

    def reach(self, name: str) -> None:
        if not self._due.is_due(name):
            return
        self._reached.touch()
        for _ in range(int(HOLD_S_MAX / HOLD_POLL_S)):
            if self._go.exists():
                return
            self._sleep(HOLD_POLL_S)
        raise TimeoutError(f"held at {name} for {HOLD_S_MAX:.0f} s, but {self._go} never came")


class EveryPoints:
    """Passes each point on to several, in order."""

    def __init__(self, *points: Points) -> None:
        self._points = points

    def reach(self, name: str) -> None:
        for points in self._points:
            points.reach(name)


def points_from_environment(env: Mapping[str, str]) -> Points:
    """Return the points that `env` asks for; raise `ValueError` if it names one that doesn't exist.

    `UPWELL_CRASH_POINT=name`, or `name#3` for the third time; `UPWELL_HOLD_POINT` likewise, together with
    `UPWELL_HOLD_FILE=path`.
    """
    asked: list[Points] = []
    if hold := env.get(HOLD_POINT):
        if not (file := env.get(HOLD_FILE)):
            raise ValueError(f"{HOLD_POINT} needs {HOLD_FILE}: PATH, for PATH.reached and PATH.go")
        name, nth = _parse_point(HOLD_POINT, hold)
        asked.append(HoldPoints(name, Path(file), nth))
    if crash := env.get(CRASH_POINT):
        asked.append(KillPoints(*_parse_point(CRASH_POINT, crash)))
    return EveryPoints(*asked) if asked else NoPoints()


def _parse_point(variable: str, text: str) -> tuple[str, int]:
    name, mark, nth = text.partition("#")
    if name not in POINTS or (mark and not (nth.isascii() and nth.isdigit() and int(nth) >= 1)):
        raise ValueError(f"{variable}={text!r}: want NAME or NAME#TIMES; the names are {sorted(POINTS)}")
    return name, int(nth) if mark else 1
