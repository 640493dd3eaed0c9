"""Every partition has a directory of its own, whatever its owner is called, and files only of its own."""

import re
import shutil
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.effects import Mark, OsFiles
from upwell.errors import ColdFileMissing
from upwell.storage.files import PartitionFiles, Whole
from upwell.storage.place import Partition, encode_name, partition_dir
from upwell.storage.storages import Storages
from upwell.testing.wait import wait_until
from upwell.types import SHARED, TableId, user_owner

HARMLESS = re.compile(r"[a-z0-9_%-]+")


def files_in(root: Path, table_id: int = 7, user: str | None = "alice") -> PartitionFiles:
    owner = SHARED if user is None else user_owner(user)
    files = Storages(root, OsFiles()).open(Partition("app", "todo", TableId(table_id), owner))
    files.make()
    return files


def wholes(files: PartitionFiles, names: Iterable[str]) -> dict[str, Whole]:
    """Return the files of which each holds its own name."""
    return {name: files.whole(name, len(name), sha256(name.encode()).hexdigest()) for name in names}


def touched(directory: Path) -> int:
    """Write something, and return what the file system's clock says."""
    path = directory / "touched"
    path.write_bytes(b"x")
    return path.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("alice", "app/todo/alice"),
        ("u-1_x", "app/todo/u-1_x"),
        ("shared", "app/todo/shared"),
        ("Alice", "app/todo/%41lice"),
        ("../x", "app/todo/%2e%2e%2fx"),
        (".", "app/todo/%2e"),
        ("..", "app/todo/%2e%2e"),
        (".links", "app/todo/%2elinks"),
        ("manifest.json", "app/todo/manifest%2ejson"),
        ("a@b.c", "app/todo/a%40b%2ec"),
        ("%41lice", "app/todo/%2541lice"),
        ("é", "app/todo/%c3%a9"),
        ("\0", "app/todo/%00"),
        ("", "app/todo/%"),
    ],
)
def test_a_user_is_only_a_directory(user: str, expected: str) -> None:
    assert partition_dir("app", "todo", user_owner(user)) == expected


def test_a_shared_partition_is_the_table_itself() -> None:
    assert partition_dir("app", "todo", SHARED) == "app/todo"


@given(st.text(st.characters()), st.text(st.characters()))
def test_encoded_names_are_harmless_and_differ(one: str, other: str) -> None:
    assert HARMLESS.fullmatch(encode_name(one))
    assert (encode_name(one) == encode_name(other)) == (one == other)


def test_long_names_are_short_and_differ() -> None:
    assert encode_name("a" * 200) == "a" * 200
    names = [encode_name("a" * count) for count in (201, 202, 5000)] + [encode_name("é" * 100)]
    assert len(set(names)) == 4
    assert all(len(name) <= 200 and HARMLESS.fullmatch(name) for name in names)
    assert names[0].startswith("a" * 100 + "%%")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "batch-8-0.parquet", "batch-7-0.parquet/..", "", "x.json"]
)
def test_only_files_of_the_table_have_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ColdFileMissing, match="no file of table 7"):
        files_in(tmp_path).path(name)


def test_a_table_of_the_same_name_sees_only_its_own_files(tmp_path: Path) -> None:
    old, new = files_in(tmp_path, 7), files_in(tmp_path, 77)
    old.write_new("batch-7-4.filter", b"old")
    new.write_new("batch-77-0.filter", b"new")
    assert (old.names(), new.names()) == (["batch-7-4.filter"], ["batch-77-0.filter"])
    assert [old.next_number("batch"), new.next_number("batch"), new.next_number("hidden")] == [5, 1, 0]


def test_names_of_a_directory_that_is_not_there(tmp_path: Path) -> None:
    files = Storages(tmp_path, OsFiles()).open(Partition("app", "t", TableId(1), SHARED))
    assert (files.names(), files.next_number("batch"), files.remove_temps()) == ([], 0, [])


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    for read in (files.read, lambda name: files.whole(name, 0, "")):
        with pytest.raises(ColdFileMissing, match=r"app/todo/alice/batch-7-0\.filter is missing"):
            read("batch-7-0.filter")
    files.path("batch-7-0.filter").mkdir()
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.filter can't be read: Is a directory"):
        files.read("batch-7-0.filter")


def test_a_file_is_created_once(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    files.write_new("manifest-7-1.json", b"first")
    with pytest.raises(FileExistsError):
        files.write_new("manifest-7-1.json", b"second")
    temp = files.temp("manifest-7-1.json")
    temp.write_bytes(b"third")
    with pytest.raises(FileExistsError):
        files.publish(temp, "manifest-7-1.json")
    assert files.read("manifest-7-1.json") == b"first"
    files.remove("manifest-7-1.json")
    files.remove("manifest-7-1.json")
    assert files.names() == []


def test_temporary_files_of_this_table_are_removed_and_no_others(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    mine = [files.temp("batch-7-0.parquet"), files.temp("manifest.json")]
    foreign = [files_in(tmp_path, 8).temp("batch-8-0.parquet"), files.directory / "notes.tmp"]
    for path in mine + foreign:
        path.write_bytes(b"half")
    assert files.remove_temps() == sorted(path.name for path in mine)
    assert sorted(files.directory.iterdir()) == sorted(foreign)


def test_a_link_directory_has_exactly_the_named_files_and_is_made_once(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    names = [f"batch-7-{number}.parquet" for number in range(3)]
    for name in names:
        files.write_new(name, name.encode())
    linked = files.link_dir(5, wholes(files, names[:2]))
    links = linked.directory
    assert links == files.directory / ".links" / "7-5"
    assert {path.name: path.stat().st_ino for path in links.iterdir()} == {
        name: files.path(name).stat().st_ino for name in names[:2]
    }
    assert files.link_dir(5, wholes(files, names[:2])) == linked
    assert linked.is_intact()


def lose(links: Path) -> None:
    (links / "batch-7-0.parquet").unlink()


def add(links: Path) -> None:
    (links / "batch-7-9.parquet").write_bytes(b"another")


def swap(links: Path) -> None:
    (links / "new").write_bytes((links / "batch-7-0.parquet").read_bytes())
    (links / "new").rename(links / "batch-7-0.parquet")


def lose_all(links: Path) -> None:
    shutil.rmtree(links.parent)


def be_in_a_file(links: Path) -> None:
    shutil.rmtree(links.parent)
    links.parent.write_bytes(b"")


def be_a_file(links: Path) -> None:
    shutil.rmtree(links)
    links.write_bytes(b"")


def lead_nowhere(links: Path) -> None:
    shutil.rmtree(links)
    links.symlink_to(links.parent / "nowhere")


@pytest.mark.parametrize("damage", [lose, add, swap, lose_all, be_a_file, be_in_a_file, lead_nowhere])
def test_a_link_directory_that_was_changed_is_made_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    files = files_in(tmp_path)
    names = [f"batch-7-{number}.parquet" for number in range(2)]
    for name in names:
        files.write_new(name, name.encode())
    linked = files.link_dir(5, wholes(files, names))
    wait_until(
        lambda: touched(tmp_path) > linked.changed_ns,
        timeout_s=9,
        what="the next tick of the file system's clock",
    )
    damage(linked.directory)
    assert not linked.is_intact()
    again = files.link_dir(5, wholes(files, names))
    assert again.is_intact()
    assert {path.name: path.stat().st_ino for path in again.directory.iterdir()} == {
        name: files.path(name).stat().st_ino for name in names
    }
    assert files.names() == names


def test_link_directories_are_dropped_but_for_the_numbers_kept(tmp_path: Path) -> None:
    files, other = files_in(tmp_path, 7), files_in(tmp_path, 77)
    files.write_new("batch-7-0.parquet", b"batch-7-0.parquet")
    for number in (1, 2, 3):
        files.link_dir(number, wholes(files, ["batch-7-0.parquet"]))
    other.link_dir(1, {})
    assert files.drop_links(keep=[3]) == ["7-1", "7-2"]
    assert sorted(path.name for path in (files.directory / ".links").iterdir()) == ["7-3", "77-1"]
    assert files.read("batch-7-0.parquet") == b"batch-7-0.parquet"


def test_linking_a_missing_file_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.parquet is missing"):
        wholes(files, ["batch-7-0.parquet"])
    files.make()
    found = {"batch-7-0.parquet": Whole(files.path("batch-7-0.parquet"), Mark(0, 0, 0, 0), is_kept=True)}
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.parquet is missing"):
        files.link_dir(1, found)
    assert list((files.directory / ".links").iterdir()) == []


def test_a_file_is_what_was_written_or_is_named(tmp_path: Path) -> None:
    """Whatever changes it: another file of its size in its place, or one letter of it."""
    files = files_in(tmp_path)
    name = "batch-7-0.parquet"
    files.write_new(name, name.encode())
    found = wholes(files, [name])[name]
    assert wholes(files, [name])[name] == found
    other = tmp_path / "other"
    other.write_bytes(name.encode()[::-1])
    other.rename(found.path)
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.parquet is damaged: it isn't what was written"):
        wholes(files, [name])
    found.path.write_bytes(name.encode())
    assert wholes(files, [name])[name].path == found.path
    wait_until(lambda: touched(tmp_path) > found.path.stat().st_mtime_ns, timeout_s=9, what="the next tick")
    with found.path.open("r+b") as file:
        file.write(b"B")
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.parquet is damaged"):
        wholes(files, [name])
