"""Makes `format-1.tar.gz`: a data directory with something of everything, as this release writes it.

    python tests/data/make.py      (at the root of the repository; only to give up a format on purpose)

The test that opens it is the promise that later releases do.
"""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from upwell.testing.embedded import Embedded

ARCHIVE = Path(__file__).parent / "format-1.tar.gz"


def fill(db: Embedded) -> None:
    """Rows in both tiers, in segments of several schemas, superseded ones, a synced table, users."""
    db.run(
        "CREATE NAMESPACE app;"
        "CREATE TABLE app.ours (id INT PRIMARY KEY, n BIGINT, s TEXT) WITH (TYPE = 'SHARED');"
        "CREATE TABLE app.mine (id TEXT PRIMARY KEY, at TIMESTAMP, ok BOOLEAN, x DOUBLE, raw BYTES, doc JSON)"
        " WITH (TYPE = 'USER');"
        "CREATE TABLE app.todo (id TEXT PRIMARY KEY, title TEXT) WITH (TYPE = 'USER', SYNC = TRUE)"
    )
    db.run("INSERT INTO app.ours VALUES (1, 10, 'one'), (2, 20, 'two'), (3, 30, 'three')")
    db.flush("app.ours")
    db.run("ALTER TABLE app.ours ADD COLUMN added INT DEFAULT 7")
    db.run("UPDATE app.ours SET n = 21 WHERE id = 2; DELETE FROM app.ours WHERE id = 3")
    db.flush("app.ours")
    db.run("INSERT INTO app.ours VALUES (4, 9007199254740993, NULL, NULL); DELETE FROM app.ours WHERE id = 1")
    values = ["2026-01-02T03:04:05.678901Z", b"\x00\xff", '{"a": [1, null]}']
    for user in ("ann", "böb/.."):
        sql = "INSERT INTO app.mine VALUES ('k', $1, TRUE, -1.5, $2, $3), ('l', NULL, NULL, NULL, NULL, NULL)"
        db.change(sql, values, user=user)
        db.change("INSERT INTO app.todo VALUES ('a', 'buy milk'), ('b', 'gone')", user=user)
    db.flush("app.mine")
    db.flush("app.todo")
    db.change("UPDATE app.mine SET x = 2.5 WHERE id = 'l'", user="ann")
    db.change("DELETE FROM app.todo WHERE id = 'b'", user="ann")
    db.run("CREATE USER 'ann' WITH PASSWORD 'a-password-of-a-test' ROLE user")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Embedded(directory / "work") as db:
            fill(db)
            db.settle()
            db.store.checkpoint(directory / "hot")
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            archive.add(directory / "hot", "hot")
            for links in (directory / "work" / "storage").rglob(".links"):
                shutil.rmtree(links)
            archive.add(directory / "work" / "storage", "storage")
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
