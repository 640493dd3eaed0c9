"""A power cut in `async` durability takes the last writes back, and nothing else: no row of before is lost.

The image of the disk has of the log what somebody waited for; the thread that syncs for writers never gets to
it. It is taken after each call that removes or replaces a cold file, in flush, compaction, collection and
DROP; each image is opened, answers as some moment did, and works on.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from upwell.effects import Call, OsFiles, is_temp
from upwell.engine.commit import Durability
from upwell.testing import cold
from upwell.testing.embedded import Embedded, Tuples
from upwell.types import SHARED

T = TypeVar("T")
LINKS = shutil.ignore_patterns(".links")
ASK = "SELECT id, n FROM app.t ORDER BY id"
CHANGES: frozenset[Call] = frozenset({"unlink", "rename"})


class Disk(OsFiles):
    """The files of a server, and images of them with the log as it was synced last."""

    def __init__(self, root: Path, images: Path) -> None:
        self._root, self._images = root, images
        self._synced: Path | None = None
        self.taken: list[Path] = []
        self.is_watched = False

    def sync_log(self, sync: Callable[[], None]) -> None:
        is_for_writers = threading.current_thread().name == "upwell-wal-sync"
        if is_for_writers and self.is_watched:
            return  # slower than the cut
        sync()
        if is_for_writers:
            return
        self._synced = self._images / f"log-{len(self.taken)}"
        shutil.rmtree(self._synced, ignore_errors=True)
        shutil.copytree(self._root / "hot", self._synced, ignore=shutil.ignore_patterns("LOCK"))

    def _call(self, name: Call, path: Path, fn: Callable[[], T]) -> T:
        result = super()._call(name, path, fn)
        if self.is_watched and name in CHANGES and not is_temp(path.name):
            image = self._images / f"image-{len(self.taken)}-{name}-{path.name}"
            assert self._synced is not None, "the log was synced before"
            shutil.copytree(self._synced, image / "hot")
            shutil.copytree(self._root / "storage", image / "storage", ignore=LINKS)
            self.taken.append(image)
        return result


def test_a_power_cut_takes_only_the_last_writes_back(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "data", tmp_path / "images")
    states: list[Tuples | None] = []

    def run(sql: str) -> None:
        db.run(sql)
        states.append(db.rows(ASK))

    with Embedded(tmp_path / "data", files=disk, wal_sync=disk.sync_log, durability=Durability.ASYNC) as db:
        db.run("CREATE NAMESPACE app; CREATE SHARED TABLE app.t (id INT PRIMARY KEY, n INT)")
        db.run("INSERT INTO app.t VALUES (1, 1), (2, 2), (3, 3)")
        db.flush("app.t")
        run("UPDATE app.t SET n = 20 WHERE id = 2")
        db.committer.settle_on_disk()
        disk.is_watched = True
        run("INSERT INTO app.t VALUES (4, 4)")
        db.flush("app.t")
        run("DELETE FROM app.t WHERE id = 1; INSERT INTO app.t VALUES (5, 5)")
        db.flush("app.t")
        db.compact("app.t")
        run("UPDATE app.t SET n = 30 WHERE id = 3")
        table = db.table("app.t")
        db.run("DROP TABLE app.t")
        db.cleanup.remove_table(table.id, namespace="app", name="t")
        disk.is_watched = False
    print(f"{len(disk.taken)} images")
    for image in disk.taken:
        with Embedded(image) as db:
            if ("app", "t") not in db.view.catalog.tables:
                db.cleanup.remove_table(table.id, namespace="app", name="t")
                assert not list(image.glob("storage/app/t/*")), image.name
                continue
            [copy] = cold.partitions(db.cold_root)
            in_force = db.rows_by_key.manifest_number(db.view.hot, table, SHARED)
            assert copy.version <= in_force, f"{image.name}: other readers know more than the server"
            told = db.rows(ASK)
            assert told in states, image.name
            db.flush("app.t")
            db.compact("app.t")
            assert db.rows(ASK) == told, image.name
            assert [tuple(row.values()) for row in db.cold_rows("app.t")] == told, image.name
            assert cold.audit(db.cold_root) == [], image.name
