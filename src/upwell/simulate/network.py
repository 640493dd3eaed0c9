"""The network comes and goes, and rows come in the wrong order: offline-online, fk-batch-retry.

Law: while there is no way to the server the app works on and nothing that waits changes; a child that is sent
before its parent arrives after it, without stopping anything else.
"""

from upwell.device import Request, Unreachable
from upwell.protocol import sync
from upwell.simulate.app import App
from upwell.simulate.stage import Person, Stage
from upwell.simulate.wire import said
from upwell.testing.cable import Cable

CYCLES = 3
CHILDREN = 250
PAGE_ROWS = 10
PAGES_BEFORE_CUT = 2
LOSS_SHARE = 0.4


def offline_online(stage: Stage) -> None:
    """A real cut of the TCP line, again and again, also in the middle of a hydration."""
    person = stage.person("train-ada")
    cable = stage.stack.enter_context(Cable(stage.server.port))
    phone = stage.install(person, "phone")
    stage.sign_in(phone, person, cable.url)
    authors: list[str] = []
    for cycle in range(1, CYCLES + 1):
        with stage.group(f"offline {cycle}: the app works on, everything waits"):
            cable.cut()
            _work_in_a_tunnel(stage, phone, authors, cycle)
        with stage.group(f"online {cycle}: everything arrives, though answers get lost"):
            cable.mend()
            phone.wire.loses_answer = lambda: stage.chance.random() < LOSS_SHARE
            phone.upload_through()
            phone.wire.loses_answer = lambda: False
            phone.sync()
            stage.check_all(person, phone)
    with stage.group("a hydration is cut off, and goes on"):
        _cut_hydration(stage, person, cable)


def _work_in_a_tunnel(stage: Stage, phone: App, authors: list[str], cycle: int) -> None:
    for number in range(1, 11):
        user = stage.rows.user(f"Written offline {cycle} {number}")
        phone.insert("users", user)
        phone.insert("posts", stage.rows.post(f"Offline {cycle} {number}", user["id"]))
        authors.append(user["id"])
    for key in stage.chance.sample(authors, 5):
        phone.update("users", key, name=f"Edited offline {cycle}", updated_at=stage.rows.tick())
    for exchange in (phone.device.upload, phone.device.download, phone.device.sync):
        try:
            exchange()
            stage.checks.fail("no way to the server is noticed", "nothing was raised")
        except Unreachable:
            stage.checks.equal("pending", len(phone.book.pending), phone.pending_count())
    status = phone.device.status()
    stage.checks.equal("the app can tell why", True, status.last_error is not None)


def _cut_hydration(stage: Stage, person: Person, cable: Cable) -> None:
    fresh = stage.install(person, "fresh")
    stage.sign_in(fresh, person, cable.url)
    pages = 0

    def cut_later(request: Request) -> None:
        nonlocal pages
        pages += request.path == sync.HYDRATE_PATH
        if pages > PAGES_BEFORE_CUT:
            cable.cut()

    fresh.wire.before = cut_later
    try:
        fresh.device.hydrate(page_rows=PAGE_ROWS)
        stage.checks.fail("the cut is noticed", "nothing was raised")
    except Unreachable:
        stage.checks.equal("is hydrated", False, fresh.device.status().is_hydrated)
    fresh.wire.before = lambda _: None
    cable.mend()
    fresh.hydrate(PAGE_ROWS)
    stage.check_all(person, fresh)
    fresh.insert("users", stage.rows.user("After the cut"))
    fresh.sync()
    stage.check_all(person, fresh)


def fk_batch_retry(stage: Stage) -> None:
    """250 children before their parent, batch limit 200: in two tables, children first, and in one table."""
    with stage.group("250 posts, then their author"):
        person, phone = _with_children_first(stage, "author", "posts")
        report = phone.sync().upload
        stage.checks.equal("changes of each upload", [200, 51], phone.wire.sizes())
        stage.checks.equal("statuses", {"applied as version 1": 251}, said(phone.wire.statuses()))
        stage.checks.equal("requests, pending", (2, 0), (report.requests, report.pending))
        stage.check_all(person, phone)
    with stage.group("the same, the author last on the wire"):
        person, phone = _with_children_first(stage, "last-author", "posts")
        phone.wire.is_children_first = True
        phone.sync()
        stage.checks.equal("changes of each upload", [200, 51], phone.wire.sizes())
        stage.checks.equal("statuses", {"applied as version 1": 251}, said(phone.wire.statuses()))
        stage.check_all(person, phone)
    with stage.group("250 rows below a root of the same table that was written last"):
        person, phone = _with_children_first(stage, "root", "nodes")
        report = phone.sync().upload
        stage.checks.equal("changes of each upload", [200, 51, 200], phone.wire.sizes())
        stage.checks.equal(
            "statuses of each upload",
            [{"fk_missing": 200}, {"applied as version 1": 51}, {"applied as version 1": 200}],
            [said(upload.statuses) for upload in phone.wire.uploads],
        )
        stage.checks.equal("requests, pending", (3, 0), (report.requests, report.pending))
        stage.check_all(person, phone)


def _with_children_first(stage: Stage, name: str, table: str) -> tuple[Person, App]:
    """An app that wrote 250 children and then their parent, in one transaction."""
    person = stage.person(f"retry-{name}")
    phone = stage.signed_in(person, "phone")
    parent = stage.rows.node("root", None) if table == "nodes" else stage.rows.user("Written last")
    phone.run("BEGIN")
    for number in range(1, CHILDREN + 1):
        if table == "nodes":
            phone.insert("nodes", stage.rows.node(f"Leaf {number}", parent["id"]))
        else:
            phone.insert("posts", stage.rows.post(f"Post {number}", parent["id"]))
    phone.insert("nodes" if table == "nodes" else "users", parent)
    phone.run("COMMIT")
    stage.checks.equal("pending", CHILDREN + 1, phone.pending_count())
    return person, phone
