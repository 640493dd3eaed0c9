"""The page `/examples/live.html`, as a browser sees it: it shows the rows of a query, and keeps them live."""

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from upwell.client import Client, connect
from upwell.testing import ServerProcess
from upwell.testing.browser import Engine, Page, find_engine
from upwell.testing.cable import Cable
from upwell.testing.wait import WaitFailed, wait_until
from upwell.testing.wire import Wire

WAIT_S = 20.0
PATH = "/examples/live.html"
ENGINE = find_engine()
# Where neither Chromium nor Node is, there is nothing that could run the page's script.
ENGINES = [pytest.param(ENGINE, id=ENGINE.kind)] if ENGINE is not None else []
BROWSERS = [engine for engine in ENGINES if ENGINE is not None and ENGINE.kind == "chromium"]
SOURCE = Path(__file__).parents[2] / "examples" / "live.html"
ROWS = """[...document.getElementById("body").children].map(
    (line) => [...line.children].map((cell) => cell.textContent))"""
HEAD = """[...document.getElementById("head").children].map((cell) => cell.textContent)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("page") / "data", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        yield server


@pytest.fixture
def root(server: ServerProcess) -> Iterator[Client]:
    with connect(server.url, user="root", password=server.root_password) as client:
        client.execute("CREATE NAMESPACE IF NOT EXISTS app")
        client.execute("DROP TABLE IF EXISTS app.notes")
        client.execute("CREATE TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE='USER')")
        yield client


@pytest.fixture
def page_text(server: ServerProcess) -> str:
    with Wire(server.port) as wire:
        return wire.call("GET", PATH).body.decode()


def shows(page: Page, *rows: tuple[str, ...]) -> None:
    """Wait until the page shows exactly these rows, in this order."""
    wanted = [list(row) for row in rows]
    with contextlib.suppress(WaitFailed):
        wait_until(lambda: page.evaluate(ROWS) == wanted, timeout_s=WAIT_S, what="the rows")
    assert (page.text("state"), page.evaluate(ROWS)) == ("live", wanted)
    assert page.text("count") == f"{len(rows)} row(s)"


def follow(page: Page, server: ServerProcess, sql: str, password: str | None = None) -> None:
    page.fill(user="root", password=password or server.root_password, sql=sql)
    page.submit("ask")


def state(page: Page, text: str) -> None:
    page.wait_for(f"document.getElementById('state').textContent.includes('{text}')")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_rows_are_live_through_cuts_restarts_and_new_columns(
    server: ServerProcess, root: Client, engine: Engine
) -> None:
    root.execute("INSERT INTO app.notes VALUES (1, 'one'), (2, 'two'), (3, 'hidden')")
    with Cable(server.port) as cable, Page(engine, cable.url + PATH) as page:
        assert page.evaluate("document.getElementById('url').value") == cable.url
        follow(page, server, "SELECT * FROM app.notes WHERE body IS NULL OR body <> 'hidden'")
        shows(page, ("1", "one"), ("2", "two"))
        assert page.evaluate(HEAD) == ["id", "body"]

        root.execute("INSERT INTO app.notes VALUES (9007199254740993, '<b>&')")
        shows(page, ("1", "one"), ("2", "two"), ("9007199254740993", "<b>&"))
        assert page.evaluate("document.getElementById('body').children[2].className") == "new"
        root.execute("UPDATE app.notes SET body = NULL WHERE id = 1")
        root.execute("UPDATE app.notes SET body = 'hidden' WHERE id = 2")
        root.execute("UPDATE app.notes SET body = 'three' WHERE id = 3")
        shows(page, ("1", ""), ("9007199254740993", "<b>&"), ("3", "three"))

        page.evaluate("void (globalThis.untouched = document.getElementById('body').children[0])")
        cable.cut()
        state(page, "trying again")
        root.execute("DELETE FROM app.notes WHERE id = 3")
        root.execute("UPDATE app.notes SET body = 'cut' WHERE id = 9007199254740993")
        assert page.evaluate(f"{ROWS}.length") == 3, "what is known stays in sight"
        cable.mend()
        shows(page, ("1", ""), ("9007199254740993", "cut"))
        root.execute("INSERT INTO app.notes VALUES (4, 'four')")
        shows(page, ("1", ""), ("9007199254740993", "cut"), ("4", "four"))
        server.kill()
        state(page, "trying again")
        server.start()
        root.execute("DELETE FROM app.notes WHERE id = 4")
        shows(page, ("1", ""), ("9007199254740993", "cut"))
        assert page.evaluate("untouched === document.getElementById('body').children[0]"), "it resumed"

        root.execute("ALTER TABLE app.notes ADD COLUMN size INT NOT NULL DEFAULT 7")
        root.execute("INSERT INTO app.notes VALUES (5, 'five', 5)")
        shows(page, ("1", "", "7"), ("9007199254740993", "cut", "7"), ("5", "five", "5"))
        assert page.evaluate(HEAD) == ["id", "body", "size"]
        root.execute("DROP TABLE app.notes")
        state(page, "NOT_FOUND")


@pytest.mark.parametrize("engine", ENGINES)
def test_refusals_are_shown_batches_asked_for_and_stop_stops(
    server: ServerProcess, root: Client, engine: Engine
) -> None:
    with Page(engine, server.url + PATH) as page:
        follow(page, server, "SELECT * FROM app.notes", password="wrong")
        state(page, "Invalid credentials")
        follow(page, server, "SELECT body FROM app.notes")
        state(page, "primary key")
        follow(page, server, "SELECT * FROM app.notes ORDER BY id")
        state(page, "INVALID_SQL")
        root.execute("INSERT INTO app.notes VALUES " + ", ".join(f"({n}, 'n')" for n in range(1500)))
        follow(page, server, "SELECT * FROM app.notes")
        shows(page, *((str(n), "n") for n in range(1500)))
        page.click("stop")
        state(page, "stopped")


@pytest.mark.parametrize("engine", BROWSERS)
def test_the_page_works_from_a_file(server: ServerProcess, root: Client, engine: Engine) -> None:
    root.execute("INSERT INTO app.notes VALUES (1, 'one')")
    with Page(engine, SOURCE.as_uri()) as page:
        page.fill(url=server.url)
        follow(page, server, "SELECT * FROM app.notes")
        shows(page, ("1", "one"))


def test_the_page_is_served_whole_and_runs_nothing_else(server: ServerProcess, page_text: str) -> None:
    with Wire(server.port) as wire:
        answer = wire.call("GET", PATH)
        assert wire.call("POST", PATH).status == 405
        assert wire.call("GET", "/examples/other.html").status == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    for element in ("script", "style"):
        (source,) = re.findall(rf"<{element}>(.*?)</{element}>", page_text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[f"{element}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"\b(src|href)=|@import|import\(|innerHTML|eval\(", page_text)
    assert len(page_text.splitlines()) <= 200


def test_every_field_has_a_label_and_the_state_is_announced(page_text: str) -> None:
    labels, fields, roles = 0, 0, []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            nonlocal labels, fields
            labels += tag == "label"
            fields += tag in ("input", "textarea")
            roles.extend(value for name, value in attributes if name == "role")

    Reader().feed(page_text)
    assert labels == fields == 4
    assert roles == ["status"]
    assert '<html lang="en">' in page_text
