"""The REPL prints results plainly, one line per error, and goes on."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from upwell.cli.repl import is_complete, repl, run_sql, wrap_as_user
from upwell.client import Client, connect


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with connect(server.url, user="alice", password="wonderland") as client:
        yield client


def test_rows_are_aligned_and_counted(client: Client) -> None:
    out = io.StringIO()
    assert run_sql(client, "SELECT 1", as_json=False, out=out) == 0
    assert out.getvalue() == "id | body\n---+-----\n 1 | hi\n(1 row)\n"


def test_json_is_the_servers_answer_also_when_it_refuses(server: Any, client: Client) -> None:
    out = io.StringIO()
    assert run_sql(client, "SELECT 1", as_json=True, out=out) == 0
    assert json.loads(out.getvalue())["results"][0]["rows"] == [["1", "hi"]]
    server.refuse_sql = {"code": "INVALID_SQL", "message": "no"}
    out = io.StringIO()
    assert run_sql(client, "SELECT 1", as_json=True, out=out) == 1
    assert json.loads(out.getvalue())["error"] == server.refuse_sql


def test_a_failed_statement_is_one_line_and_the_loop_goes_on(server: Any, client: Client) -> None:
    server.refuse_sql = {"code": "INVALID_SQL", "message": "no"}
    out = io.StringIO()
    source = io.StringIO("SELECT\n 1;\n\nSELECT ';\n';\n\\?\n\\q\nSELECT 3;\n")
    assert repl(client, out=out, source=source) == 1
    assert [body["sql"] for path, body in server.requests if path.endswith("sql")] == [
        "SELECT\n 1;",
        "SELECT ';\n';",
    ]
    assert out.getvalue().splitlines()[:2] == ["ERROR INVALID_SQL: no"] * 2


@pytest.mark.parametrize("word", ["exit", "quit", "QUIT;", r"\q"])
def test_words_that_leave(server: Any, client: Client, word: str) -> None:
    assert repl(client, out=io.StringIO(), source=io.StringIO(f"{word}\nSELECT 1;\n")) == 0
    assert not [path for path, _ in server.requests if path.endswith("sql")]


@pytest.mark.parametrize("word", ["help", "help;", r"\?"])
def test_words_that_ask_for_help(server: Any, client: Client, word: str) -> None:
    out = io.StringIO()
    assert repl(client, out=out, source=io.StringIO(f"{word}\n")) == 0
    assert "Ctrl-C drops an unfinished statement" in out.getvalue()
    assert not [path for path, _ in server.requests if path.endswith("sql")]


@pytest.mark.parametrize("word", [r"\d", r"\dt users", "\\"])
def test_an_unknown_command_is_refused_at_once(server: Any, client: Client, word: str) -> None:
    out = io.StringIO()
    assert repl(client, out=out, source=io.StringIO(f"{word}\nSELECT 1;\n")) == 1
    assert out.getvalue().splitlines()[0] == rf"upwell: unknown command {word} (\? for help)"
    assert [body["sql"] for path, body in server.requests if path.endswith("sql")] == ["SELECT 1;"]


def test_inside_a_statement_a_word_is_no_command(server: Any, client: Client) -> None:
    assert repl(client, out=io.StringIO(), source=io.StringIO("SELECT 1 AS\nexit\n;\n")) == 0
    assert server.requests[-1][1]["sql"] == "SELECT 1 AS\nexit\n;"


def test_the_end_of_the_source_ends_the_last_statement(server: Any, client: Client) -> None:
    assert repl(client, out=io.StringIO(), source=io.StringIO("SELECT 1"), as_user="o'neil") == 0
    assert server.requests[-1][1]["sql"] == "EXECUTE AS USER 'o''neil' (SELECT 1\n)"


def test_a_lost_server_is_an_error_line(server: Any, client: Client) -> None:
    server.close()
    out = io.StringIO()
    assert run_sql(client, "SELECT 1", as_json=False, out=out) == 1
    assert out.getvalue().startswith("ERROR CONNECTION_LOST: ")


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1; -- done", True),
        ("SELECT 1", False),
        ("SELECT ';", False),
        ("SELECT 'it''s;", False),
        ("SELECT 'it''s';", True),
        ('SELECT ";', False),
        ("/* ; ", False),
        ("SELECT 1 -- it's;", False),
        ("SELECT 1 -- it's\n;", True),
        ("SELECT '--';", True),
        ("SELECT /* ' */ 1;", True),
    ],
)
def test_a_statement_ends_with_a_semicolon_outside_quotes(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


def test_as_user_takes_the_statement_without_its_end() -> None:
    assert wrap_as_user("bob", " SELECT 1 ; ") == "EXECUTE AS USER 'bob' (SELECT 1\n)"
