"""Manifests and hidden sets are created once, come back exactly, and are refused when they are damaged."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from upwell.effects import OsFiles
from upwell.errors import ColdFileMissing
from upwell.storage.files import PartitionFiles
from upwell.storage.manifest import (
    ColumnStats,
    Hidden,
    Manifest,
    Segment,
    copy_manifest,
    empty_manifest,
    encode_manifest,
    load_hidden,
    load_manifest,
    remove_copy,
    write_hidden,
    write_manifest,
)
from upwell.storage.place import Partition
from upwell.storage.storages import Storages
from upwell.types import Owner, TableId, user_owner

ALICE = user_owner("alice")
SEGMENT = Segment(
    min_seq=2**62,
    max_seq=2**62 + 1,
    row_count=2,
    live_count=1,
    size_bytes=5321,
    created_at=1714400001000,
    id="batch-7-0",
    path="batch-7-0.parquet",
    filter="batch-7-0.filter",
    column_stats={"1": ColumnStats({"Int64": "1"}, {"Int64": "100"}, 0), "2": ColumnStats(None, None, 2)},
    schema_version=3,
)
MANIFEST = Manifest(
    table_id="app.todo",
    table_number=7,
    user_id="alice",
    version=3,
    created_at=1714400000000,
    updated_at=1714400001000,
    segments=(SEGMENT,),
    hidden=(Hidden("hidden-7-0.json", 2),),
    flushed_until=2**62 + 1,
    last_sequence_number=0,
)


def open_files(root: Path, *, table_id: int = 7, owner: Owner = ALICE) -> PartitionFiles:
    files = Storages(root, OsFiles()).open(Partition("app", "todo", TableId(table_id), owner))
    files.make()
    return files


@pytest.fixture
def files(tmp_path: Path) -> PartitionFiles:
    return open_files(tmp_path)


def test_a_manifest_comes_back_and_is_never_overwritten(files: PartitionFiles) -> None:
    write_manifest(files, MANIFEST)
    assert load_manifest(files, 3) == MANIFEST
    with pytest.raises(FileExistsError):
        write_manifest(files, MANIFEST)
    assert files.names() == ["manifest-7-3.json"]


def test_bounds_stay_what_they_are_in_the_manifests_that_follow(files: PartitionFiles) -> None:
    """1 is no 1.0: a reader in another language may tell them apart."""
    stats = {
        "1": ColumnStats({"Int32": 4}, {"Int32": 5}, 0),
        "2": ColumnStats({"Float64": 4.0}, {"Float64": 5.5}, 0),
        "3": ColumnStats({"Boolean": False}, {"Boolean": True}, 0),
        "4": ColumnStats({"Int64": "1"}, {"Int64": "100"}, 0),
    }
    segment = msgspec.structs.replace(SEGMENT, column_stats=stats)
    manifest = msgspec.structs.replace(MANIFEST, segments=(segment,))
    write_manifest(files, manifest)
    assert encode_manifest(load_manifest(files, 3)) == encode_manifest(manifest)


def test_the_copy_has_the_contract_s_shape(files: PartitionFiles) -> None:
    copy_manifest(files, empty_manifest(files.partition, time_ms=1))
    copy_manifest(files, MANIFEST)
    found = json.loads((files.directory / "manifest.json").read_bytes())
    assert len(found.pop("sha256")) == 64, "of all that follows"
    assert found == {
        "table_id": "app.todo",
        "table_number": 7,
        "user_id": "alice",
        "version": 3,
        "created_at": 1714400000000,
        "updated_at": 1714400001000,
        "segments": [
            {
                "min_seq": 2**62,
                "max_seq": 2**62 + 1,
                "row_count": 2,
                "live_count": 1,
                "size_bytes": 5321,
                "created_at": 1714400001000,
                "id": "batch-7-0",
                "path": "batch-7-0.parquet",
                "filter": "batch-7-0.filter",
                "column_stats": {
                    "1": {"min": {"Int64": "1"}, "max": {"Int64": "100"}, "null_count": 0},
                    "2": {"min": None, "max": None, "null_count": 2},
                },
                "schema_version": 3,
                "status": "committed",
                "storage": "",
                "directory": "",
                "sha256": "",
                "filter_bytes": "",
            }
        ],
        "hidden": [{"path": "hidden-7-0.json", "count": 2, "storage": "", "directory": "", "sha256": ""}],
        "flushed_until": 2**62 + 1,
        "last_sequence_number": 0,
        "files": {"subfolder": 1, "count": 0},
        "vector_indexes": {},
        "columns": [],
        "storage": "",
        "directory": "",
    }
    assert MANIFEST.names_at(files.place) == [
        "manifest-7-3.json",
        "batch-7-0.parquet",
        "batch-7-0.filter",
        "hidden-7-0.json",
    ]


def test_the_copy_of_a_dropped_table_goes_but_not_its_successor_s(tmp_path: Path) -> None:
    dropped, successor = open_files(tmp_path), open_files(tmp_path, table_id=8)
    remove_copy(dropped)
    copy_manifest(dropped, MANIFEST)
    remove_copy(successor)
    assert (dropped.directory / "manifest.json").exists()
    remove_copy(dropped)
    assert not (dropped.directory / "manifest.json").exists()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"version": 3}', b"\xff\xfe", json.dumps({"version": "three"}).encode()],
)
def test_a_damaged_manifest_is_named(files: PartitionFiles, damage: bytes) -> None:
    files.path("manifest-7-3.json").write_bytes(damage)
    with pytest.raises(ColdFileMissing, match=r"manifest-7-3\.json is damaged"):
        load_manifest(files, 3)


def test_a_missing_manifest_is_named(files: PartitionFiles) -> None:
    with pytest.raises(ColdFileMissing, match=r"app/todo/alice/manifest-7-3\.json is missing"):
        load_manifest(files, 3)


def test_a_manifest_of_another_is_refused(tmp_path: Path, files: PartitionFiles) -> None:
    write_manifest(files, MANIFEST)
    files.path("manifest-7-4.json").write_bytes(files.read("manifest-7-3.json"))
    with pytest.raises(ColdFileMissing, match="another table, user or number"):
        load_manifest(files, 4)
    bob = open_files(tmp_path, owner=user_owner("bob"))
    bob.path("manifest-7-3.json").write_bytes(files.read("manifest-7-3.json"))
    with pytest.raises(ColdFileMissing, match="another table, user or number"):
        load_manifest(bob, 3)


def test_a_hidden_set_comes_back_sorted_and_once(files: PartitionFiles) -> None:
    hidden = write_hidden(files, 0, [2**63 - 1, 5, 5, 1])
    assert (hidden.path, hidden.count) == ("hidden-7-0.json", 3)
    assert load_hidden(files, hidden) == [1, 5, 2**63 - 1]
    with pytest.raises(FileExistsError):
        write_hidden(files, 0, [])


def test_a_damaged_or_missing_hidden_set_is_named(files: PartitionFiles) -> None:
    hidden = write_hidden(files, 0, [1, 2])
    with pytest.raises(ColdFileMissing, match=r"hidden-7-0\.json has 2 seqs, not 3"):
        load_hidden(files, Hidden(hidden.path, 3))
    files.path(hidden.path).write_bytes(b"[1, 2")
    with pytest.raises(ColdFileMissing, match=r"hidden-7-0\.json is damaged"):
        load_hidden(files, hidden)
    files.remove(hidden.path)
    with pytest.raises(ColdFileMissing, match=r"hidden-7-0\.json is missing"):
        load_hidden(files, hidden)


def test_threads_may_be_the_first_that_read_a_manifest() -> None:
    """Two at once crashed the process, when the first one to decode it worked out what a manifest is."""
    program = """
import sys, threading
from upwell.storage.manifest import Manifest
import msgspec
sys.setswitchinterval(1e-7)
start = threading.Barrier(8)
def read():
    start.wait()
    msgspec.json.decode(sys.argv[1], type=Manifest)
threads = [threading.Thread(target=read) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    text = encode_manifest(MANIFEST).decode()
    for _ in range(5):
        subprocess.run([sys.executable, "-c", program, text], check=True, timeout=60)
