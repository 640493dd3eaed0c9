"""Copies stay within their bound, but never at the price of one that may be in use."""

from pathlib import Path

from upwell.storage.cache import FileCache


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.us = 1_000_000_000

    def now_us(self) -> int:
        return self.us


def copy(root: Path, name: str, size_bytes: int = 10) -> Path:
    path = root / "s3" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size_bytes)
    return path


def test_the_least_recently_used_goes_when_it_is_old_enough(tmp_path: Path) -> None:
    clock = Hands()
    cache = FileCache(tmp_path, bytes_max=25, keep_s=60, clock=clock)
    a, b = copy(tmp_path, "a"), copy(tmp_path, "b")
    cache.use(a)
    cache.use(b)
    clock.us += 30_000_000
    cache.use(a)
    c = copy(tmp_path, "c")
    cache.use(c)
    assert (cache.size_bytes, b.exists()) == (30, True), "used a moment ago: the bound has to wait"
    clock.us += 31_000_000
    cache.use(c)
    assert (a.exists(), b.exists(), c.exists(), cache.size_bytes) == (True, False, True, 20)
    cache.forget(a)
    assert cache.size_bytes == 10


def test_a_start_finds_what_is_there_and_removes_halves(tmp_path: Path) -> None:
    clock = Hands()
    a, half = copy(tmp_path, "a", 20), copy(tmp_path, ".b.1-2.tmp")
    links = tmp_path / "s3" / ".links" / "1-1"
    links.mkdir(parents=True)
    (links / "a").symlink_to(a)
    cache = FileCache(tmp_path, bytes_max=25, keep_s=60, clock=clock)
    assert (cache.size_bytes, half.exists(), a.exists()) == (20, False, True)
    c = copy(tmp_path, "c", 20)
    cache.use(c)
    assert (a.exists(), c.exists(), cache.size_bytes) == (False, True, 20), "of an earlier run: long ago"
