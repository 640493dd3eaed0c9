"""Files are whole and durable or not there; points do what the environment asks, nowhere else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.effects import (
    HOLD_S_MAX,
    POINTS,
    HoldPoints,
    KillPoints,
    NoPoints,
    OsFiles,
    points_from_environment,
    temp_beside,
)
from upwell.testing import FailingFiles, PointActions, each_fault

NEVER = 1_000_000


def calls(files: FailingFiles) -> list[str]:
    return [name for name, _ in files.trace]


def test_write_new_creates_the_file_and_nothing_else(tmp_path: Path) -> None:
    OsFiles().write_new(tmp_path / "a", b"one")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"one"


def test_write_new_never_overwrites(tmp_path: Path) -> None:
    OsFiles().write_new(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        OsFiles().write_new(tmp_path / "a", b"two")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"one"


def test_write_new_syncs_the_file_before_it_has_its_name_and_the_directory_after(tmp_path: Path) -> None:
    files = FailingFiles(NEVER)
    files.write_new(tmp_path / "a", b"one")
    assert calls(files) == ["open", "write", "fsync", "link", "open", "fsync-dir", "unlink"]


def test_replace_syncs_the_file_before_it_has_its_name_and_the_directory_after(tmp_path: Path) -> None:
    files = FailingFiles(NEVER)
    files.replace(tmp_path / "a", b"one")
    assert calls(files) == ["open", "write", "fsync", "rename", "open", "fsync-dir"]
    assert (tmp_path / "a").read_bytes() == b"one"


def test_publish_gives_the_finished_file_its_name_and_takes_the_temporary_one(tmp_path: Path) -> None:
    files = FailingFiles(NEVER)
    temp = temp_beside(tmp_path / "a.parquet")
    temp.write_bytes(b"rows")
    files.publish(temp, tmp_path / "a.parquet")
    assert calls(files) == ["open", "fsync", "link", "open", "fsync-dir", "unlink"]
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_publish_never_overwrites(tmp_path: Path) -> None:
    temp = tmp_path / "t.tmp"
    temp.write_bytes(b"new")
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        OsFiles().publish(temp, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert temp.read_bytes() == b"new"


def test_short_writes_are_continued(tmp_path: Path) -> None:
    class ShortWrites(OsFiles):
        def _call(self, name, path, fn):  # type: ignore[no-untyped-def]
            if name != "write":
                return fn()
            descriptor, data = fn.args
            return os.write(descriptor, data[:3])

    ShortWrites().write_new(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_make_dirs_creates_and_syncs_every_missing_parent(tmp_path: Path) -> None:
    files = FailingFiles(NEVER)
    files.make_dirs(tmp_path / "a" / "b")
    assert [(name, path) for name, path in files.trace if name in ("mkdir", "fsync-dir")] == [
        ("mkdir", tmp_path / "a"),
        ("fsync-dir", tmp_path),
        ("mkdir", tmp_path / "a" / "b"),
        ("fsync-dir", tmp_path / "a"),
    ]
    files.make_dirs(tmp_path / "a" / "b")


def test_make_dirs_refuses_a_file_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError):
        OsFiles().make_dirs(tmp_path / "a" / "b")


def test_read_size_exists_list_and_remove(tmp_path: Path) -> None:
    files = OsFiles()
    files.write_new(tmp_path / "b", b"two")
    files.write_new(tmp_path / "a", b"1")
    temp_beside(tmp_path / "c").touch()
    assert files.list(tmp_path) == ["a", "b"]
    assert (files.read(tmp_path / "b"), files.mark(tmp_path / "b").size_bytes) == (b"two", 3)
    files.remove(tmp_path / "b")
    assert (files.exists(tmp_path / "a"), files.exists(tmp_path / "b")) == (True, False)
    for missing in (files.read, files.mark, files.remove):
        with pytest.raises(FileNotFoundError):
            missing(tmp_path / "b")


def test_temporary_names_are_never_used_twice(tmp_path: Path) -> None:
    names = [temp_beside(tmp_path / "a") for _ in range(100)]
    assert len(set(names)) == 100
    assert {name.parent for name in names} == {tmp_path}


def write_new(files: OsFiles, directory: Path) -> None:
    files.write_new(directory / "a", b"new")


def publish(files: OsFiles, directory: Path) -> None:
    temp = temp_beside(directory / "a")
    temp.write_bytes(b"new")
    try:
        files.publish(temp, directory / "a")
    except OSError:
        temp.unlink()
        raise


@pytest.mark.parametrize("create", [write_new, publish])
def test_a_failed_creation_leaves_no_file_and_can_be_repeated(
    tmp_path: Path, create: Callable[[OsFiles, Path], None]
) -> None:
    def run(n: int) -> bool:
        directory = tmp_path / str(n)
        directory.mkdir()
        files = FailingFiles(n)
        try:
            create(files, directory)
        except OSError:
            assert files.fired
            assert os.listdir(directory) == []
            create(files, directory)
        assert (directory / "a").read_bytes() == b"new"
        assert OsFiles().list(directory) == ["a"]
        return files.fired

    assert each_fault(run) >= 6


def test_a_failed_replace_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    def run(n: int) -> bool:
        directory = tmp_path / str(n)
        directory.mkdir()
        (directory / "a").write_bytes(b"old")
        files = FailingFiles(n)
        try:
            files.replace(directory / "a", b"new")
        except OSError:
            is_renamed = "rename" in calls(files)[: n - 1]
            assert (directory / "a").read_bytes() == (b"new" if is_renamed else b"old")
            files.replace(directory / "a", b"new")
        assert os.listdir(directory) == ["a"]
        assert (directory / "a").read_bytes() == b"new"
        return files.fired

    assert each_fault(run) == 6


def test_without_a_wish_points_do_nothing() -> None:
    points = points_from_environment({})
    assert isinstance(points, NoPoints)
    for name in POINTS:
        points.reach(name)


@pytest.mark.parametrize("points", [NoPoints(), KillPoints("flush:begin"), PointActions()])
def test_an_unknown_point_is_a_mistake_in_the_program(points: NoPoints | KillPoints | PointActions) -> None:
    with pytest.raises(AssertionError, match="flush:nowhere"):
        points.reach("flush:nowhere")


@pytest.mark.parametrize("wish", ["flush:nowhere", "flush:begin#0", "flush:begin#", "flush:begin#x", "#1"])
@pytest.mark.parametrize("variable", ["UPWELL_CRASH_POINT", "UPWELL_HOLD_POINT"])
def test_a_wish_that_cannot_be_met_is_refused(variable: str, wish: str) -> None:
    with pytest.raises(ValueError, match=variable):
        points_from_environment({variable: wish, "UPWELL_HOLD_FILE": "/nowhere"})


def test_a_hold_without_its_file_is_refused() -> None:
    with pytest.raises(ValueError, match="UPWELL_HOLD_FILE"):
        points_from_environment({"UPWELL_HOLD_POINT": "flush:begin"})


@pytest.mark.parametrize(("wish", "printed"), [("flush:begin", "0"), ("flush:begin#3", "012")])
def test_the_crash_point_kills_the_process_at_the_named_time(wish: str, printed: str) -> None:
    program = """if True:
        import os
        from upwell.effects import points_from_environment
        points = points_from_environment(os.environ)
        for time in range(5):
            points.reach("flush:after-commit")
            print(time, end="", flush=True)
            points.reach("flush:begin")
    """
    environment = {**os.environ, "UPWELL_CRASH_POINT": wish}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert (result.returncode, result.stdout.decode()) == (-9, printed), result.stderr


def test_a_hold_says_that_it_is_reached_and_waits_until_told_to_go(tmp_path: Path) -> None:
    file = tmp_path / "hold"
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        assert os.listdir(tmp_path) == ["hold.reached"]
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / "hold.go").touch()

    points = HoldPoints("flush:begin", file, 2, sleep)
    points.reach("flush:after-commit")
    points.reach("flush:begin")
    assert (os.listdir(tmp_path), slept) == ([], [])
    points.reach("flush:begin")
    points.reach("flush:begin")
    assert len(slept) == 3


def test_a_hold_that_nobody_ends_is_bounded(tmp_path: Path) -> None:
    slept: list[float] = []
    with pytest.raises(TimeoutError, match="flush:begin"):
        HoldPoints("flush:begin", tmp_path / "hold", 1, slept.append).reach("flush:begin")
    assert sum(slept) == pytest.approx(HOLD_S_MAX)


def test_hold_and_crash_can_be_asked_for_together(tmp_path: Path) -> None:
    (tmp_path / "hold.go").touch()
    points = points_from_environment(
        {
            "UPWELL_HOLD_POINT": "flush:begin",
            "UPWELL_HOLD_FILE": str(tmp_path / "hold"),
            "UPWELL_CRASH_POINT": "flush:after-commit",
        }
    )
    points.reach("flush:begin")
    assert (tmp_path / "hold.reached").exists()
