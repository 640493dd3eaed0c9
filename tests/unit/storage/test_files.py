"""Every partition has a directory of its own, whatever its owner is called, and files only of its own."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.effects import OsFiles
from upwell.errors import ColdFileMissing
from upwell.storage.files import PartitionFiles
from upwell.storage.place import Partition, encode_name, partition_dir
from upwell.storage.storages import Storages
from upwell.types import SHARED, TableId, user_owner

HARMLESS = re.compile(r"[a-z0-9_%-]+")


def files_in(root: Path, table_id: int = 7, user: str | None = "alice") -> PartitionFiles:
    owner = SHARED if user is None else user_owner(user)
    files = Storages(root, OsFiles()).open(Partition("app", "todo", TableId(table_id), owner))
    files.make()
    return files


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
    for read in (files.read, files.size):
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
    links = files.link_dir(5, dict.fromkeys(names[:2], files))
    assert links == files.directory / ".links" / "7-5"
    assert {path.name: path.stat().st_ino for path in links.iterdir()} == {
        name: files.path(name).stat().st_ino for name in names[:2]
    }
    made_ns = links.stat().st_ctime_ns
    assert files.link_dir(5, dict.fromkeys(names[:2], files)) == links
    assert links.stat().st_ctime_ns == made_ns
    (links / names[0]).unlink()
    assert (
        sorted(path.name for path in files.link_dir(5, dict.fromkeys(names[:2], files)).iterdir())
        == names[:2]
    )
    assert files.names() == names


def test_link_directories_are_dropped_but_for_the_numbers_kept(tmp_path: Path) -> None:
    files, other = files_in(tmp_path, 7), files_in(tmp_path, 77)
    files.write_new("batch-7-0.parquet", b"")
    for number in (1, 2, 3):
        files.link_dir(number, {"batch-7-0.parquet": files})
    other.link_dir(1, {})
    assert files.drop_links(keep=[3]) == ["7-1", "7-2"]
    assert sorted(path.name for path in (files.directory / ".links").iterdir()) == ["7-3", "77-1"]
    assert files.read("batch-7-0.parquet") == b""


def test_linking_a_missing_file_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.parquet is missing"):
        files.link_dir(1, {"batch-7-0.parquet": files})
    assert list((files.directory / ".links").iterdir()) == []
