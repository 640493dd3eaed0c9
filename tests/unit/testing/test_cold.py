"""The reader reads what manifests name and nothing else; the audit sees each kind of damage."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from upwell.testing import cold

Version = tuple[str, str, int, bool]


def write_segment(directory: Path, name: str, versions: list[Version]) -> dict[str, Any]:
    """Write a segment; return its entry in the manifest."""
    columns = {key: [v[i] for v in versions] for i, key in enumerate(("id", "name", "_seq", "_deleted"))}
    directory.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), directory / name, compression="zstd")
    seqs = columns["_seq"]
    size = (directory / name).stat().st_size
    return {
        "path": name,
        "row_count": len(versions),
        "min_seq": min(seqs),
        "max_seq": max(seqs),
        "size_bytes": size,
    }


def write_manifest(directory: Path, segments: list[dict[str, Any]], **fields: Any) -> None:
    manifest = {"table_id": "app.notes", "user_id": None, "version": 1, "segments": segments, **fields}
    (directory / cold.MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A shared table of two segments and one file that is not in force."""
    directory = tmp_path / "app" / "notes"
    first = [("a", "1", 10, False), ("b", "1", 11, False), ("c", "1", 12, False)]
    second = [("a", "2", 20, False), ("b", "", 21, True), ("d", "1", 22, False)]
    segments = [write_segment(directory, "0.parquet", first), write_segment(directory, "1.parquet", second)]
    write_manifest(directory, segments)
    return directory


def test_rows_are_the_newest_versions_without_tombstones(notes: Path) -> None:
    assert cold.rows(cold.load_partition(notes), "id") == [
        {"id": "a", "name": "2"},
        {"id": "c", "name": "1"},
        {"id": "d", "name": "1"},
    ]
    first = cold.rows(cold.load_partition(notes), ["id"], system=True)[0]
    assert first == {"id": "a", "name": "2", "_seq": 20, "_deleted": False}


def test_a_file_that_no_manifest_names_is_not_read(notes: Path) -> None:
    write_segment(notes, "2.parquet", [("a", "3", 30, False), ("e", "1", 31, False)])
    assert [row["id"] for row in cold.rows(cold.load_partition(notes), "id")] == ["a", "c", "d"]


def test_two_versions_with_one_seq_are_an_error(notes: Path) -> None:
    write_manifest(notes, [write_segment(notes, "0.parquet", [("a", "1", 5, False), ("a", "2", 5, False)])])
    with pytest.raises(AssertionError, match="twice"):
        cold.rows(cold.load_partition(notes), "id")


def test_partitions_are_found_by_table_and_owner(notes: Path, tmp_path: Path) -> None:
    for user in ("anna", "berta"):
        directory = tmp_path / "app" / "todo" / user
        segment = write_segment(directory, "0.parquet", [(user, "1", 1, False)])
        write_manifest(directory, [segment], table_id="app.todo", user_id=user)
    assert [(p.table_id, p.user_id) for p in cold.partitions(tmp_path)] == [
        ("app.notes", None),
        ("app.todo", "anna"),
        ("app.todo", "berta"),
    ]
    assert len(cold.partitions(tmp_path, table_id="app.todo")) == 2
    berta = cold.find_partition(tmp_path, "app.todo", "berta")
    assert berta is not None
    assert cold.rows(berta, "id") == [{"id": "berta", "name": "1"}]
    assert cold.find_partition(tmp_path, "app.todo") is None
    assert cold.audit(tmp_path) == []


def test_sound_files_have_no_problems_and_further_links_are_fine(notes: Path, tmp_path: Path) -> None:
    (notes / "view-1").mkdir()
    os.link(notes / "0.parquet", notes / "view-1" / "0.parquet")
    assert cold.audit(tmp_path) == []


def hide(notes: Path, *seqs: int) -> cold.Partition:
    (notes / "hidden-0.json").write_text(json.dumps(seqs))
    manifest = json.loads((notes / cold.MANIFEST).read_text())
    write_manifest(notes, manifest["segments"], hidden=[{"path": "hidden-0.json", "count": len(seqs)}])
    return cold.load_partition(notes)


def test_hidden_sets_that_name_all_superseded_rows_have_no_problems(notes: Path, tmp_path: Path) -> None:
    assert cold.audit_hidden(hide(notes, 10, 11), "id") == []
    assert cold.audit_hidden(hide(notes, 5, 10, 11, 21), "id") == []
    assert cold.audit(tmp_path) == []


def test_a_row_hidden_wrongly_and_one_not_hidden_are_reported(notes: Path) -> None:
    assert cold.audit_hidden(hide(notes, 10, 12), "id") == [
        f"{notes}: _seq 11 is superseded, but not hidden",
        f"{notes}: _seq 12 is the newest, but hidden",
    ]


def remove_file(notes: Path) -> None:
    (notes / "1.parquet").unlink()


def add_file(notes: Path) -> None:
    write_segment(notes, "2.parquet", [("a", "3", 30, False)])


def leave_temporary(notes: Path) -> None:
    (notes / ".2.parquet.tmp").touch()


def truncate_file(notes: Path) -> None:
    os.truncate(notes / "1.parquet", 100)


def truncate_manifest(notes: Path) -> None:
    os.truncate(notes / cold.MANIFEST, 50)


def remove_companions(notes: Path) -> None:
    manifest = json.loads((notes / cold.MANIFEST).read_text())
    manifest["segments"][1]["filter"] = "1.filter"
    write_manifest(notes, manifest["segments"], hidden=[{"path": "hidden-0.json", "count": 0}])
    (notes / "0.filter").touch()


REMOVED_COMPANIONS = [
    "hidden-0.json: missing, but the manifest names it",
    "1.filter: missing, but the manifest names it",
    "0.filter: no manifest names it",
]


def name_twice(notes: Path) -> None:
    segment = write_segment(notes, "0.parquet", [("a", "1", 10, False)])
    second = json.loads((notes / cold.MANIFEST).read_text())["segments"][1]
    write_manifest(notes, [segment, segment, second])


def lie(field: str) -> Callable[[Path], None]:
    def change(notes: Path) -> None:
        manifest = json.loads((notes / cold.MANIFEST).read_text())
        manifest["segments"][0][field] += 1
        write_manifest(notes, manifest["segments"])

    return change


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (remove_file, ["1.parquet: missing, but the manifest names it"]),
        (add_file, ["2.parquet: no manifest names it"]),
        (leave_temporary, [".2.parquet.tmp: no manifest names it"]),
        (remove_companions, REMOVED_COMPANIONS),
        (name_twice, ["0.parquet: named 2 times"]),
        (lie("row_count"), ["0.parquet: row_count is 3, the manifest says 4"]),
        (lie("min_seq"), ["0.parquet: min_seq is 10, the manifest says 11"]),
        (lie("max_seq"), ["0.parquet: max_seq is 12, the manifest says 13"]),
    ],
)
def test_the_audit_reports_each_damage(
    notes: Path, tmp_path: Path, damage: Callable[[Path], None], problems: list[str]
) -> None:
    damage(notes)
    assert cold.audit(tmp_path) == [f"{notes}/{problem}" for problem in problems]


def test_the_audit_reports_a_wrong_size(notes: Path, tmp_path: Path) -> None:
    lie("size_bytes")(notes)
    size = (notes / "0.parquet").stat().st_size
    problem = f"{notes}/0.parquet: size_bytes is {size}, the manifest says {size + 1}"
    assert cold.audit(tmp_path) == [problem]


def test_the_audit_reports_half_a_file(notes: Path, tmp_path: Path) -> None:
    truncate_file(notes)
    unreadable, size = cold.audit(tmp_path)
    assert unreadable.startswith(f"{notes}/1.parquet: not readable as a segment: ")
    assert size.startswith(f"{notes}/1.parquet: size_bytes is 100, the manifest says ")


def test_the_audit_reports_half_a_manifest(notes: Path, tmp_path: Path) -> None:
    truncate_manifest(notes)
    manifest, *orphans = cold.audit(tmp_path)
    assert manifest.startswith(f"{notes}/manifest.json: not a whole manifest: ")
    assert orphans == [f"{notes}/{name}: no manifest names it" for name in ("0.parquet", "1.parquet")]


def test_the_kit_is_imported_without_pyarrow() -> None:
    program = "import sys, upwell.testing; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
