"""Noninterference: what anybody is answered is the same, whatever rows, files and watchers others have.

Everything that an account can ask is asked while it is alone, and again after each thing that somebody else
does. Each byte of each answer has to be what it was, but for times and random numbers: so a row, a count, an
error's text, a plan or a file of another user would show by any route, one nobody thought of too.
"""

import re

import pytest

from upwell.testing.websocket import Socket
from upwell.testing.wire import SQL, Answer, Site

SECRET = "a-secret-of-ann"
# What differs from one asking to the next by itself: durations, moments, seqs, ids of transactions and jobs.
_VARIES = re.compile(
    rb'"took":[0-9.]+|"[0-9]{17,20}"|\b[0-9]{16,20}\b|CO-[0-9a-f]{12}|[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}'
)

QUERIES = """
SELECT * FROM {ns}.t
SELECT COUNT(*) FROM {ns}.t
SELECT COUNT(*), MAX(id), MIN(v) FROM {ns}.t WHERE id > 0
SELECT id FROM {ns}.t WHERE id = 1
SELECT v FROM {ns}.t WHERE v LIKE 'a-secret%' ORDER BY v LIMIT 1
SELECT * FROM {ns}.t WHERE v = 'a-secret-of-ann'
SELECT 1 WHERE EXISTS (SELECT 1 FROM {ns}.t)
SELECT (SELECT MAX(v) FROM {ns}.t)
WITH q AS (SELECT * FROM {ns}.t) SELECT a.id FROM q a JOIN q b ON a.id = b.id
SELECT id FROM {ns}.t UNION SELECT id FROM {ns}.c
SELECT id FROM {ns}.t EXCEPT SELECT 1
SELECT id FROM {ns}.t INTERSECT SELECT 1
SELECT id, SUM(id) OVER () FROM {ns}.t
SELECT s.id, COUNT(t.id) FROM {ns}.s s LEFT JOIN {ns}.t t ON t.s = s.id GROUP BY s.id ORDER BY 1
SELECT 1 / (SELECT COUNT(*) FROM {ns}.t)
SELECT CAST(v AS INT) FROM {ns}.t
SELECT CAST(v AS INT) FROM {ns}.private
SELECT 1 / COUNT(*) FROM {ns}.private
SELECT * FROM all_owners('{ns}.t')
SELECT * FROM {ns}.seen
SELECT COUNT(*) FROM {ns}.seen WHERE id IN (SELECT id FROM {ns}.t)
SELECT * FROM {ns}.hidden_private
SELECT CURRENT_USER() = '{ann}', COUNT(*) FROM {ns}.t WHERE v <> CURRENT_USER()
SELECT nothing FROM {ns}.t
SELECT nothing FROM {ns}.private
EXPLAIN SELECT * FROM {ns}.t WHERE id = 1
EXPLAIN ANALYZE SELECT COUNT(*) FROM {ns}.t
SHOW STATS FOR TABLE {ns}.t
SHOW STATS FOR TABLE {ns}.private
SHOW MANIFEST
SHOW TABLES IN {ns}
DESCRIBE TABLE {ns}.t HISTORY
SELECT table_name FROM information_schema.tables WHERE table_schema = '{ns}'
SELECT COUNT(*) FROM system.changes WHERE namespace_id = '{ns}'
SELECT * FROM system.live
SELECT COUNT(*) FROM system.audit_log
SELECT COUNT(*) FROM system.jobs
SELECT * FROM system.manifest
SELECT * FROM system.transactions
SELECT * FROM system.sessions
EXECUTE AS USER '{ann}' (SELECT * FROM {ns}.t)
EXECUTE AS USER '{ann}' (SELECT * FROM {ns}.nothing)
KILL LIVE QUERY '{ann}-1-s'
""".strip().splitlines()

# Each leaves nothing behind: what it changes is taken back.
CHANGES = """
BEGIN; INSERT INTO {ns}.t VALUES (1, 'mine', 1); ROLLBACK
BEGIN; INSERT INTO {ns}.t VALUES (1, 'mine', 1), (1, 'twice', 1); ROLLBACK
BEGIN; INSERT INTO {ns}.t VALUES (1, 'm', 1) ON CONFLICT (id) DO UPDATE SET v = t.v RETURNING v; ROLLBACK
BEGIN; INSERT INTO {ns}.t VALUES (1, 'm', 1) ON CONFLICT DO NOTHING RETURNING v; ROLLBACK
BEGIN; UPDATE {ns}.t SET v = v || '!' RETURNING v; ROLLBACK
BEGIN; UPDATE {ns}.t SET id = 1 WHERE id = 2; ROLLBACK
BEGIN; DELETE FROM {ns}.t WHERE id = 1 RETURNING *; ROLLBACK
INSERT INTO {ns}.c VALUES (5, 1)
INSERT INTO {ns}.c VALUES (5, 99)
INSERT INTO {ns}.t SELECT id + 100, v, 1 FROM {ns}.t
INSERT INTO {ns}.t SELECT id + 100, v, 1 FROM {ns}.private
INSERT INTO {ns}.t SELECT 1 / COUNT(*), 'x', 1 FROM {ns}.c
UPDATE {ns}.private SET v = 'x' WHERE id = 1 / 0
DELETE FROM {ns}.private WHERE id = 1
ALTER TABLE {ns}.t ADD COLUMN more INT NOT NULL
ALTER TABLE {ns}.private ADD COLUMN more INT NOT NULL
ALTER TABLE {ns}.t ALTER COLUMN v SET NOT NULL
DROP TABLE {ns}.t
CREATE TABLE {ns}.t (id INT PRIMARY KEY)
CREATE USER TABLE {ns}.prober (id INT PRIMARY KEY, p INT REFERENCES {ns}.private (id))
CREATE VIEW {ns}.other AS SELECT * FROM {ns}.t
STORAGE COMPACT TABLE {ns}.t
""".strip().splitlines()

CALLS = (
    ("POST", "/sync/upload", {"source_id": "x", "changes": []}),
    ("GET", "/sync/download?after=0&limit=10", None),
    ("GET", "/sync/hydrate?limit=10", None),
    ("GET", "/admin/materialize-failures", None),
    ("GET", "/v1/api/auth/me", None),
    ("GET", "/v1/files/{ns}/t/f0001/1?user_id={ann}", None),
    ("GET", "/v1/exports/{ann}/export-1", None),
    ("POST", "/v1/api/topics/consume", {"topic_id": "{ns}.t", "group_id": "g"}),
    ("POST", "/v1/api/topics/ack", {"topic_id": "{ns}.t", "group_id": "g", "upto_offset": 1}),
)


class World:
    """Tables that ann and root write to, and who looks at them."""

    def __init__(self, site: Site) -> None:
        self.site, self.ns = site, site.namespace()
        ns = self.ns
        site.root.run(
            f"CREATE SHARED TABLE {ns}.s (id INT PRIMARY KEY) WITH (ACCESS_LEVEL = 'PUBLIC');"
            f"CREATE USER TABLE {ns}.t (id INT PRIMARY KEY, v TEXT, s INT REFERENCES {ns}.s (id));"
            f"CREATE USER TABLE {ns}.c (id INT PRIMARY KEY, t INT REFERENCES {ns}.t (id));"
            f"CREATE SHARED TABLE {ns}.private (id INT PRIMARY KEY, v TEXT) WITH (ACCESS_LEVEL = 'DBA');"
            f"CREATE VIEW {ns}.seen AS SELECT id, v FROM {ns}.t;"
            f"CREATE VIEW {ns}.hidden_private AS SELECT COUNT(*) AS n, MAX(v) AS v FROM {ns}.private;"
            f"INSERT INTO {ns}.s VALUES (1), (2)"
        )
        self.ann_name, self.ann = site.account()
        self.lookers = {role: site.account(role)[1] for role in ("user", "service", "dba")}

    def filled(self, text: str) -> str:
        return text.replace("{ns}", self.ns).replace("{ann}", self.ann_name)

    def answers(self, role: str) -> dict[str, bytes]:
        """Return what a role is answered, whatever it asks."""
        wire = self.lookers[role]
        found: dict[str, bytes] = {}
        for text in [*QUERIES, *CHANGES]:
            if (role == "dba" and not _is_of_rows(text)) or (
                role != "user" and text.startswith(("ALTER", "EXECUTE"))
            ):
                continue  # whoever may alter or act for others has to know
            found[text] = _plain(wire.sql(self.filled(text)))
            for accept in ("text/csv", "application/x-ndjson"):
                if text.startswith(("SELECT", "WITH")) and role == "user":
                    streamed = wire.call("POST", SQL, {"sql": self.filled(text)}, headers={"Accept": accept})
                    found[f"{text} ({accept})"] = _plain(streamed)
        for method, path, body in CALLS:
            filled = (
                None
                if body is None
                else {k: self.filled(v) if isinstance(v, str) else v for k, v in body.items()}
            )
            found[path] = _plain(wire.call(method, self.filled(path), filled))
        for table in ("t",) if role == "dba" else ("t", "private"):
            with Socket(wire.port, wire.token) as socket:
                found[f"live {table}"] = _VARIES.sub(
                    b"_", repr(_subscribed(socket, f"SELECT * FROM {self.ns}.{table}")).encode()
                )
        return found


def _is_of_rows(text: str) -> bool:
    """Whether a statement reads rows as their owner does: administrators see more of the server."""
    return not re.search(
        r"^SHOW|system\.|all_owners|^EXECUTE|^KILL|private|^CREATE|^DROP|^STORAGE|\.s (?:WHERE|SET)|EXPLAIN",
        text,
    )


def _subscribed(socket: Socket, sql: str) -> list[object]:
    socket.say(type="subscribe", subscription={"id": "x", "sql": sql, "options": {}})
    return [{k: v for k, v in socket.message().items() if "seq" not in k} for _ in range(1)]


def _plain(answer: Answer) -> bytes:
    assert SECRET.encode() not in answer.body.replace(b"v = 'a-secret-of-ann'", b""), answer.body
    return b"%d %s" % (answer.status, _VARIES.sub(b"_", answer.body))


@pytest.fixture(scope="module")
def world(site: Site) -> World:
    return World(site)


def test_nobody_learns_of_others_by_any_answer(world: World) -> None:
    ns, root, ann = world.ns, world.site.root, world.ann
    alone = {role: world.answers(role) for role in world.lookers}
    assert b"200" in alone["user"]["SELECT * FROM {ns}.t"][:3], "what is asked is asked rightly"

    def insert() -> None:
        ann.run(f"INSERT INTO {ns}.t VALUES (1, '{SECRET}', 1), (2, '{SECRET}', 1), (3, NULL, NULL)")
        ann.run(f"INSERT INTO {ns}.c VALUES (1, 1)")
        root.run(f"INSERT INTO {ns}.private VALUES (1, '{SECRET}')")

    def flush() -> None:
        for table in ("t", "c", "private"):
            world.site.flush(f"{ns}.{table}")

    def change() -> None:
        ann.run(f"UPDATE {ns}.t SET v = '{SECRET} 2' WHERE id < 3; DELETE FROM {ns}.t WHERE id = 3")
        ann.sql(f"SELECT * FROM {ns}.t WHERE v = '{SECRET}'; SELECT nothing FROM {ns}.t WHERE id = 1")

    for do in (insert, flush, change):
        do()
        with Socket(ann.port, ann.token) as socket:
            _subscribed(socket, f"SELECT * FROM {ns}.t")
            for role in world.lookers:
                now = world.answers(role)
                differing = {
                    text: (alone[role][text], now[text]) for text in now if now[text] != alone[role][text]
                }
                assert not differing, f"{do.__name__}, {role}: {differing}"
