"""Part 6: SIGKILL while several clients write. What was acknowledged is there, once, after the restart.

Law: acknowledged ⊆ recovered ⊆ attempted; a live query that was cut off before the kill goes on after it.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from upwell.client import Client, ConnectionLost, ServerError
from upwell.demo.check import Checks
from upwell.demo.expected import NAMESPACE
from upwell.demo.online import check_live, check_rows
from upwell.demo.sql import read_log
from upwell.demo.watch import Watch
from upwell.demo.world import PASSWORDS, USER, Counts, World
from upwell.testing import ABSENT, AckLog, wait_until

LEDGER = f"{NAMESPACE}.ledger"
WRITERS = 4
ACKS_BEFORE_CUT = 80
ACKS_BEFORE_KILL = 200
DELETES_CUT_OFF = 10
WRITES_AFTER = 12
WRITING_S_MAX = 20.0


@dataclass
class Writer:
    """One client in one thread: inserts, and updates or deletes what it inserted before."""

    number: int
    client: Client
    acks: AckLog
    refused: list[str]
    deletes: int = 0
    is_cut_short: bool = False

    def run(self, rounds: Iterator[int]) -> None:
        """Write until the server is gone or the rounds are over."""
        try:
            for round_ in rounds:
                self._round(round_)
        except ConnectionLost:
            self.is_cut_short = True
        except ServerError as error:
            self.refused.append(str(error))

    def _round(self, round_: int) -> None:
        """Insert three keys, update the first, delete the second."""
        kept, gone, plain = (f"w{self.number}-{round_:05d}-{name}" for name in ("kept", "gone", "plain"))
        for key in (kept, gone, plain):
            self._write(key, "new", f"INSERT INTO {LEDGER} VALUES ($1, {self.number}, 'new')")
        self._write(kept, "changed", f"UPDATE {LEDGER} SET body = 'changed' WHERE id = $1")
        self._write(gone, ABSENT, f"DELETE FROM {LEDGER} WHERE id = $1")
        self.deletes += 1

    def _write(self, key: str, state: object, sql: str) -> None:
        self.acks.attempt(key, state)
        self.client.execute(sql, [key])
        self.acks.acknowledge(key, state)


def kill_and_restart(world: World) -> Counts:
    """Cut the live query off, kill the server among writes, restart, let the live query resume."""
    checks, acks = world.checks, AckLog()
    watch = world.watch("ledger")
    writers = _writers(world, acks)
    threads = [threading.Thread(target=w.run, args=(_forever(),), daemon=True) for w in writers]
    for thread in threads:
        thread.start()
    known = _cut_and_kill(world, watch, writers, acks)
    for thread in threads:
        thread.join(WRITING_S_MAX)
    checks.equal("writers whose connection broke", WRITERS, sum(writer.is_cut_short for writer in writers))
    checks.equal("the killed server's exit code", -9, world.server.wait_exit())
    with world.timed("restart_after_kill_s"):
        world.server.start()
    recovered = _states(world.owner)
    checks.equal("acknowledged writes that are lost or doubled", [], acks.check(recovered))
    checks.equal("keys that are there twice", len(recovered), len(dict(recovered)))
    checks.equal("rows that another user sees", [], _states(world.stranger))
    checks.equal("writes that were refused", [], [text for writer in writers for text in writer.refused])
    acknowledged, attempted = acks.acknowledged_count, acks.attempted_count
    acks.settle(recovered)
    _delete_some(world, acks, [key for key, _ in recovered if key in known])
    _write_more(world, acks)
    seen = {change.seq for change in watch.changes}
    world.cable.mend()
    _check_resumed(world, watch, known, seen)
    check_rows(world, "after the kill")
    check_live(world)
    return {"acknowledged": acknowledged, "attempted": attempted, "rows_live_afterwards": len(recovered)}


def _writers(world: World, acks: AckLog) -> list[Writer]:
    clients = [world.client(USER, PASSWORDS[USER]) for _ in range(WRITERS)]
    for client in clients:
        client.login()
    return [Writer(number, client, acks, []) for number, client in enumerate(clients)]


def _forever() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _cut_and_kill(world: World, watch: Watch, writers: list[Writer], acks: AckLog) -> set[str]:
    """Kill the server when enough was written since the cut; return the keys that the watch had seen."""
    wait_until(
        lambda: acks.acknowledged_count >= ACKS_BEFORE_CUT and len(watch.changes) > 0,
        timeout_s=WRITING_S_MAX,
        what=f"{ACKS_BEFORE_CUT} acknowledged writes",
    )
    cut = world.cable.cut()
    world.checks.equal("live queries cut off before the kill", len(world.watches), cut)
    known = {change.row["id"] for change in watch.changes if change.kind != "delete"}
    deletes = sum(writer.deletes for writer in writers)
    wait_until(
        lambda: (
            acks.acknowledged_count >= ACKS_BEFORE_KILL
            and sum(writer.deletes for writer in writers) >= deletes + DELETES_CUT_OFF
        ),
        timeout_s=WRITING_S_MAX,
        what=f"{ACKS_BEFORE_KILL} acknowledged writes",
    )
    world.server.kill()
    return known


def _states(client: Client) -> list[tuple[str, object]]:
    rows = client.execute(f"SELECT id, body FROM {LEDGER} ORDER BY id").rows
    return [(key, body) for key, body in rows]


def _delete_some(world: World, acks: AckLog, keys: list[str]) -> None:
    """Delete rows that the live query had seen before it was cut off."""
    chosen = keys[:DELETES_CUT_OFF]
    world.checks.equal("known rows to delete after the restart", DELETES_CUT_OFF, len(chosen))
    for key in chosen:
        acks.attempt(key, ABSENT)
        world.owner.execute(f"DELETE FROM {LEDGER} WHERE id = $1", [key])
        acks.acknowledge(key, ABSENT)


def _write_more(world: World, acks: AckLog) -> None:
    """The restarted server takes writes of all clients again."""
    writers = [Writer(WRITERS + writer.number, writer.client, acks, []) for writer in _writers(world, acks)]
    threads = [
        threading.Thread(target=w.run, args=(iter(range(WRITES_AFTER)),), daemon=True) for w in writers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WRITING_S_MAX)
    checks: Checks = world.checks
    checks.equal("refused after the restart", [], [text for writer in writers for text in writer.refused])
    checks.equal("rounds after the restart", WRITERS * WRITES_AFTER, sum(w.deletes for w in writers))
    checks.equal("writes after the restart that are lost or doubled", [], acks.check(_states(world.owner)))


def _check_resumed(world: World, watch: Watch, known: set[str], seen: set[int]) -> None:
    """Compare all deliveries with the log; `known` keys and `seen` seqs had arrived before the mend."""
    checks, log = world.checks, read_log(world.owner, "ledger")
    newest = {entry.key: entry for entry in log}
    watch.wait_for([e.seq for e in newest.values() if e.operation != "DELETE" or e.key in known])
    seqs = [change.seq for change in watch.changes]
    checks.equal("ledger, live: never ended", "", watch.failure)
    checks.equal("ledger, live: deliveries that came twice", len(seqs), len(set(seqs)))
    checks.equal(
        "ledger, live: deliveries of changes that the log doesn't have",
        set(),
        set(seqs) - {e.seq for e in log},
    )
    last = {change.row["id"]: change.seq for change in watch.changes}
    checks.equal("ledger, live: changes of a row out of order", [], _disorder(watch))
    known_now = {
        key: newest[key].seq for key in {*known, *(k for k, e in newest.items() if e.operation != "DELETE")}
    }
    checks.equal(
        "ledger, live: each row's last delivery is its newest change",
        known_now,
        {key: last.get(key) for key in known_now},
    )
    deleted = {key for key in known if newest[key].operation == "DELETE"}
    told = {c.row["id"] for c in watch.changes if c.kind == "delete" and c.row["id"] in known}
    checks.equal("ledger, live: deletes of rows that it had seen", deleted, told)
    late = [key for key in deleted if newest[key].seq not in seen]
    checks.equal("ledger, live: deletes were missed while it was cut off", True, len(late) >= DELETES_CUT_OFF)
    rows = [(row["id"], row["body"]) for row in watch.rows()]
    checks.equal("ledger, live: folds to the SELECT", _states(world.owner), rows)


def _disorder(watch: Watch) -> list[tuple[str, int, int]]:
    """Return (key, seq, earlier seq) of each change that came after a newer one of its row."""
    newest: dict[str, int] = {}
    wrong = []
    for change in watch.changes:
        key = change.row["id"]
        if change.seq <= newest.get(key, -1):
            wrong.append((key, change.seq, newest[key]))
        newest[key] = max(change.seq, newest.get(key, -1))
    return wrong
