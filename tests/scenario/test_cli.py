"""`upwell sql` as people and scripts use it: a child process, its output and its exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from upwell.testing import ReservedPort
from upwell.testing.wire import PASSWORD, Site

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sql(site: Site) -> Run:
    """Run `upwell sql` as root against the shared server."""

    def run(
        *args: str, text: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("UPWELL_")}
        return subprocess.run(
            [sys.executable, "-m", "upwell", "sql", *args],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **inherited,
                "UPWELL_URL": site.server.url,
                "UPWELL_ROOT_PASSWORD": site.server.root_password,
                **(env or {}),
            },
        )

    return run


def test_one_statement(sql: Run) -> None:
    done = sql("-c", "SELECT 1 AS one, 'x' AS text, NULL AS nothing, TRUE AS yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "one | text | nothing | yes",
        "----+------+---------+-----",
        "  1 | x    | NULL    | true",
        "(1 row)",
    ]


def test_several_statements_and_messages(sql: Run, namespace: str) -> None:
    done = sql(
        "-c",
        f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY); INSERT INTO {namespace}.t VALUES (1), (2);"
        f"SELECT id FROM {namespace}.t",
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"CREATE TABLE via Raft consensus: shared table {namespace}.t created successfully",
        "id", "--", " 1", " 2", "(2 rows)", "Inserted 2 row(s)",
    ]  # fmt: skip


def test_json_is_the_answer_of_the_server(sql: Run) -> None:
    done = sql("--json", "-c", "SELECT CAST(9007199254740993 AS BIGINT) AS big")
    assert done.returncode == 0
    body = json.loads(done.stdout)
    assert body["status"] == "success"
    assert body["results"][0]["rows"] == [["9007199254740993"]]


def test_as_another_user(sql: Run, site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY, v TEXT)")
    for user in ("ada", "bo'b"):
        assert (
            sql("--as", user, "-c", f"INSERT INTO {namespace}.t VALUES (1, '{len(user)}') -- mine").returncode
            == 0
        )
    done = sql("--json", "--as", "bo'b", "-c", f"SELECT v, CURRENT_USER() AS who FROM {namespace}.t; -- :)")
    assert json.loads(done.stdout)["results"][0]["rows"] == [["4", "bo'b"]]
    assert sql("-c", f"SELECT COUNT(*) AS n FROM {namespace}.t").stdout.splitlines()[2].strip() == "0"


def test_a_refused_statement(sql: Run) -> None:
    done = sql("-c", "SELECT * FROM nowhere.nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ERROR SQL_EXECUTION_ERROR: Statement 1 failed: Table not found: nowhere.nothing")
    shown = sql("--json", "-c", "SELEC")
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["error"]["code"] == "INVALID_SQL"


def test_another_account(sql: Run, site: Site) -> None:
    name, _ = site.account()
    done = sql("--user", name, "--password", PASSWORD, "-c", "SELECT CURRENT_USER() AS who")
    assert done.stdout.splitlines()[2] == name
    by_environment = {"UPWELL_USER": name, "UPWELL_PASSWORD": PASSWORD}
    assert sql("-c", "SELECT CURRENT_USER() AS who", env=by_environment).stdout.splitlines()[2] == name


def test_a_wrong_password(sql: Run) -> None:
    done = sql("--password", "wrong", "-c", "SELECT 1")
    assert done.returncode == 1
    assert done.stderr == "ERROR unauthorized: Invalid credentials\n"
    assert done.stdout == ""


def test_no_password_and_nobody_to_ask(site: Site) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UPWELL_")}
    done = subprocess.run(
        [sys.executable, "-m", "upwell", "sql", "--url", site.server.url, "-c", "SELECT 1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=inherited,
        start_new_session=True,  # no terminal to ask on, wherever the tests run
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("upwell: no password for 'root'")


def test_no_server(sql: Run) -> None:
    port = ReservedPort()
    try:
        done = sql("--url", f"http://127.0.0.1:{port.number}", "-c", "SELECT 1")
    finally:
        port.close()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ERROR CONNECTION_LOST: ")
    assert f"http://127.0.0.1:{port.number}/" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "url", ["", "nonsense://x", "http://", "http://127.0.0.1:notaport", "ftp://127.0.0.1"]
)
def test_an_address_that_is_none(sql: Run, url: str) -> None:
    done = sql("--url", url, "-c", "SELECT 1")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("upwell: ")


def test_statements_through_a_pipe(sql: Run) -> None:
    done = sql(text="SELECT 1 AS a;\n\nSELECT 'x;\ny' AS b\n, 2 AS c;\n-- done\n\\q\nSELECT 3;\n")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:4] == ["a", "-", "1", "(1 row)"]
    assert lines[6] == "x;\\ny | 2"
    assert len(lines) == 8


def test_use_holds_for_the_statements_after_it(sql: Run, namespace: str) -> None:
    made = f"CREATE TABLE {namespace}.here (id INT PRIMARY KEY);"
    done = sql(
        text=f"{made}\nUSE {namespace};\nSELECT COUNT(*) AS n\nFROM here;\nUSE default;\nSELECT * FROM here;"
    )
    lines = done.stdout.splitlines()
    assert lines[1:6] == [f"Namespace switched to '{namespace}'", "n", "-", "0", "(1 row)"]
    assert lines[6] == "Namespace switched to 'default'"
    assert lines[7].startswith("ERROR SQL_EXECUTION_ERROR: ")
    assert "default.here" in lines[7]


def test_use_holds_for_another_user_too(sql: Run, namespace: str) -> None:
    assert sql("-c", f"CREATE USER TABLE {namespace}.own (id INT PRIMARY KEY)").returncode == 0
    done = sql("--as", "ann", text=f"use {namespace};\nINSERT INTO own VALUES (1);\nSELECT id FROM own;\n")
    assert done.stdout.splitlines()[1:] == ["Inserted 1 row(s)", "id", "--", " 1", "(1 row)"]


def test_a_pipe_goes_on_after_an_error_and_tells_it_at_the_end(sql: Run) -> None:
    done = sql(text="SELEC;\nSELECT 1 AS a;\nSELECT 2 AS b")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ERROR INVALID_SQL: ")
    assert lines[1:] == ["a", "-", "1", "(1 row)", "b", "-", "2", "(1 row)"]


def test_nothing_to_do(sql: Run) -> None:
    assert sql(text="").returncode == 0
    assert sql(text="\n\n").stdout == ""
    assert sql("-c", "").returncode == 1


def test_text_that_a_terminal_could_mistake(sql: Run) -> None:
    done = sql("-c", "SELECT chr(27) || '[31mred' AS x")
    assert "\x1b" not in done.stdout


def test_help_and_version(sql: Run) -> None:
    for words in (["--help"], ["sql", "--help"], ["serve", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "upwell", *words], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "upwell" in done.stdout
    for words in ([], ["nothing"], ["serve", "--port", "x"]):
        done = subprocess.run(
            [sys.executable, "-m", "upwell", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert "usage:" in done.stderr
