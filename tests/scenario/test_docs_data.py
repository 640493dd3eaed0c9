"""docs/data-on-disk.md runs as it stands, but for the address: its commands, its Python, what it prints."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.paper import ADDRESS, PROGRAM, Block, read_blocks, run_shell

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/data-on-disk.md"
# What `print(…)  # …` says that it prints.
PROMISED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


def test_the_paper_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m upwell "$@"\n')
    program.chmod(0o755)
    session: dict[str, object] = {"__name__": "__main__"}
    count = 0
    with ServerProcess(tmp_path / "data") as server:
        environment = {
            **os.environ, "UPWELL_URL": server.url, "UPWELL_ROOT_PASSWORD": server.root_password,
        }  # fmt: skip
        monkeypatch.setenv("UPWELL_ROOT_PASSWORD", server.root_password)
        for block in read_blocks(PAPER):
            here = block.text.replace(ADDRESS, server.url)
            if block.language == "sh":
                run_shell(Block(block.language, here), tmp_path, environment)
            else:
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(here, str(PAPER), "exec"), session)
                assert out.getvalue().splitlines() == PROMISED.findall(block.text)
                count += 1
    assert count == 4


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAPER.read_text())
    assert [target for target in targets if not (PAPER.parent / target).exists()] == []
