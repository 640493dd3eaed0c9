"""docs/live.md runs as it stands, but for the address: its commands, its Python, and what that prints."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.paper import ADDRESS, Block, read_blocks, run_shell
from upwell.testing.wire import Wire

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/live.md"
# What `print(…)  # …` says that it prints.
PROMISED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


def printed(block: Block, session: dict[str, object]) -> list[str]:
    """Run a block in the session; return the lines that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, str(PAPER), "exec"), session)
    return out.getvalue().splitlines()


def test_the_paper_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__main__"}
    told: list[str] = []
    with ServerProcess(tmp_path / "data") as server:
        environment = {
            **os.environ, "UPWELL_URL": server.url, "UPWELL_ROOT_PASSWORD": server.root_password,
        }  # fmt: skip
        monkeypatch.setenv("UPWELL_ROOT_PASSWORD", server.root_password)
        for block in read_blocks(PAPER):
            here = Block(block.language, block.text.replace(ADDRESS, server.url))
            if block.language == "sh":
                run_shell(here, tmp_path, environment)
            elif promised := PROMISED.findall(block.text):
                assert printed(here, session) == promised, block.text
            else:
                told += printed(here, session)
        with Wire(server.port) as wire:
            (path,) = set(re.findall(rf"<{ADDRESS}(/\S+)>", PAPER.read_text()))
            assert wire.call("GET", path).status == 200
    # The asynchronous session: a row that is gone, and the snapshot in the order of the changes.
    assert told == ["None", "5", "4"]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAPER.read_text())
    assert targets
    assert [target for target in targets if not (PAPER.parent / target).exists()] == []
