"""docs/sql.md runs as it stands: each statement answers what stands behind it."""

import re
from pathlib import Path

import pytest

from upwell.client import Client, ServerError, connect
from upwell.testing import ServerProcess
from upwell.testing.paper import read_blocks

PAPER = Path(__file__).parents[2] / "docs/sql.md"
# A statement up to its semicolon at a line's end, and the comment lines behind it.
STATEMENT = re.compile(r"([^;]*;)\n((?:-- [^\n]*\n)*)")


def shown(cell: object) -> str:
    match cell:
        case None:
            return "NULL"
        case bool():
            return str(cell).lower()
        case _:
            return str(cell)


def answer(client: Client, sql: str) -> list[str]:
    """Return what a statement answers, as the paper writes it."""
    try:
        (result,) = client.execute(sql, raw=True).results
    except ServerError as error:
        return [f"error: {error}"]
    if result.schema:
        return [" | ".join(map(shown, row)) for row in result.rows]
    return [result.message or ""]


def test_the_paper_tells_the_truth(tmp_path: Path) -> None:
    checked = 0
    with (
        ServerProcess(tmp_path / "data", env={"UPWELL_BCRYPT_COST": "4"}) as server,
        connect(server.url, user="root", password=server.root_password) as client,
    ):
        for block in read_blocks(PAPER):
            assert block.language == "sql"
            for sql, comments in STATEMENT.findall(block.text):
                promised = [line.removeprefix("-- ") for line in comments.splitlines()]
                found = answer(client, sql)
                if promised[0].startswith("error: "):
                    assert found[0].startswith("error: "), (sql, found)
                    assert promised[0].removeprefix("error: ") in found[0], (sql, found)
                else:
                    assert found == promised, sql
                checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", re.findall(r"\]\(([\w-]+\.md)\)", PAPER.read_text()))
def test_links_lead_somewhere(name: str) -> None:
    assert (PAPER.parent / name).exists()
