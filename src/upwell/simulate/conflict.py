"""conflicts: two devices edited the same rows offline, and one of them decides, in batches of many.

Law: what the rule chose stands everywhere, each decision is on record with its side, and a change that lost
is nowhere in the log.
"""

from collections import Counter
from dataclasses import dataclass

from upwell.simulate.app import CLIENT_WINS, SERVER_WINS, App, Rule, merging
from upwell.simulate.model import Place
from upwell.simulate.stage import Person, Stage
from upwell.simulate.table import Row
from upwell.simulate.wire import said

EACH = 3
FIRST, SECOND = "Edited on the first", "Edited on the second"


def _merge(local: Row | None, server: Row | None) -> Row | None:
    """The local name with everything else of the server; an edit beats a deletion."""
    if local is None or server is None:
        return local or server
    return server | {"name": local["name"]}


@dataclass(frozen=True, slots=True)
class Case:
    """A rule, what each upload answers, and what the rule decided."""

    name: str
    rule: Rule
    statuses: list[dict[str, int]]
    decisions: dict[str, int]


# Three of each kind: edited on both, edited here and deleted there, deleted here and edited there, deleted on
# both, created on both with one id, edited here only.
CASES = (
    Case("server wins", SERVER_WINS, [{"conflict": 15, "applied as version 2": 3}], {"server": 15}),
    Case(
        "keep local",
        CLIENT_WINS,
        [{"conflict": 15, "applied as version 2": 3}, {"applied as version 3": 9, "applied as version 2": 3}],
        {"local": 12, "server": 3},
    ),
    Case(
        "merge",
        merging(_merge),
        [{"conflict": 15, "applied as version 2": 3}, {"applied as version 3": 6, "applied as version 2": 3}],
        {"merged": 6, "local": 3, "server": 6},
    ),
)


def conflicts(stage: Stage) -> None:
    """All kinds of conflicts in one batch, for each rule; then a rule against itself."""
    for case in CASES:
        _play(stage, case)
    _both_insist(stage)


def _play(stage: Stage, case: Case) -> None:
    person = stage.person("conflict-" + case.name.replace(" ", "-"))
    first, second = stage.signed_in(person, "first"), stage.signed_in(person, "second", rule=case.rule)
    with stage.group(f"{case.name}: both have the same rows"):
        users = [stage.rows.user(f"User {number}") for number in range(5 * EACH)]
        for user in users:
            first.insert("users", user)
        first.sync()
        second.sync()
        stage.check_all(person, first, second)
    with stage.group(f"{case.name}: {5 * EACH} conflicts in one batch"):
        _edit_both(stage, [("users", user["id"]) for user in users], first, second)
        first.sync()
        report = second.sync().upload
        first.sync()
        stage.checks.equal(
            "statuses of each upload",
            case.statuses,
            [said(upload.statuses) for upload in second.wire.uploads],
        )
        stage.checks.equal("conflicts, as the book counts them", second.book.conflict_count, report.conflicts)
        stage.checks.equal("pending", 0, report.pending)
        _check_decisions(stage, second, case.decisions)
        stage.check_all(person, first, second)


def _edit_both(stage: Stage, places: list[Place], first: App, second: App) -> None:
    kinds = [places[start : start + EACH] for start in range(0, len(places), EACH)]
    both_edited, deleted_there, deleted_here, both_deleted, only_here = kinds
    for place in both_edited + deleted_here:
        first.update(*place, name=FIRST, email="first@example.com")
    for place in deleted_there + both_deleted:
        first.delete(*place)
    for place in both_edited + deleted_there + only_here:
        second.update(*place, name=SECOND)
    for place in deleted_here + both_deleted:
        second.delete(*place)
    for number in range(EACH):
        created = stage.rows.user(f"Created on both {number}")
        first.insert("users", created | {"name": FIRST, "email": "first@example.com"})
        second.insert("users", created | {"name": SECOND})


def _check_decisions(stage: Stage, app: App, expected: dict[str, int]) -> None:
    found = app.run("SELECT decision FROM _sync_conflicts")
    stage.checks.equal("decisions on record", expected, dict(Counter(row[0] for row in found)))


def _both_insist(stage: Stage) -> None:
    """Two devices that both keep their own row: whoever speaks last is heard, and both end equal."""
    person = stage.person("conflict-both-insist")
    first, second = (stage.signed_in(person, name, rule=CLIENT_WINS) for name in ("first", "second"))
    with stage.group("both keep their own: the last word stands"):
        user = stage.rows.user("Contested")
        first.insert("users", user)
        first.sync()
        second.sync()
        for number in range(1, 4):
            for app in (first, second):
                app.update("users", user["id"], name=f"{app.path.stem} says {number}")
            first.sync()
            second.sync()
        first.sync()
        _check_insistence(stage, person, user["id"], first, second)


def _check_insistence(stage: Stage, person: Person, key: str, first: App, second: App) -> None:
    stage.checks.equal("the name", [(f"{second.path.stem} says 3",)], first.run("SELECT name FROM users"))
    stage.checks.equal("each save is a version", 7, person.account.version(("users", key)))
    stage.check_all(person, first, second)
