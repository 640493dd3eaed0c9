"""docs/devices.md runs as it stands, but for the address: its commands, its Python, and what that prints."""

import codeop
import contextlib
import io
import os
import re
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.paper import ADDRESS, Block, read_blocks, run_shell

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/devices.md"
# What `print(…)  # …` says that it prints.
PROMISED = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAPER.read_text())


def printed(block: Block, session: dict[str, object]) -> list[str]:
    """Run a block in the session; return the lines that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, str(PAPER), "exec"), session)
    return out.getvalue().splitlines()


def test_the_tutorial_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__main__"}
    told: list[str] = []
    with ServerProcess(tmp_path / "data", args=["--dev"]) as server:
        environment = {
            **os.environ, "UPWELL_URL": server.url, "UPWELL_ROOT_PASSWORD": server.root_password,
        }  # fmt: skip
        for block in read_blocks(PAPER):
            if block.language == "sh":
                told.append(run_shell(block, tmp_path, environment))
            else:
                here = Block(block.language, block.text.replace(ADDRESS, server.url))
                assert printed(here, session) == PROMISED.findall(block.text), block.text
    account, registered, back_end = told
    assert "alice" in account
    assert registered == "created shop.lists (2 columns)\ncreated shop.items (5 columns)\n"
    assert re.search(r"groceries *\| oat milk *\| *4", back_end)
    assert "Updated 1 row(s)" in back_end
    devices, conflicts, letters = back_end.split("user_id")[1:]
    assert len(re.findall(r"^ *alice ", devices, re.MULTILINE)) == 3
    assert re.search(r"^ *alice .*\"amount\": ?3", conflicts, re.MULTILINE)
    assert "(0 rows)" in letters


def test_the_session_can_be_pasted_at_the_prompt() -> None:
    """There a definition ends with an empty line, and has none inside."""
    for block in read_blocks(PAPER):
        statement: list[str] = []
        for line in [*block.text.splitlines(), ""] if block.language == "python" else []:
            statement.append(line)
            if codeop.compile_command("\n".join(statement)) is not None:
                statement.clear()
        assert statement == [], block.text


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_defect_has_its_test(file: str, name: str) -> None:
    assert re.search(rf"^(?:async )?def {name}\b", (ROOT / file).read_text(), re.MULTILINE)


def test_every_defect_is_named() -> None:
    assert {int(number) for number in re.findall(r"\bD(\d+)\b", PAPER.read_text())} == set(range(1, 21))
