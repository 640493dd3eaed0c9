"""docs/tutorial.md runs as it stands, but for addresses: files, commands, Python, and what that prints."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from upwell.testing import ReservedPort, ServerProcess
from upwell.testing.paper import ADDRESS, PROGRAM, Block, read_blocks, run_shell
from upwell.testing.wait import wait_until

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/tutorial.md"
APP_ADDRESS = "http://127.0.0.1:8000"
# What `print(…)  # …` says that it prints; a block that begins with `# name` is a file.
PROMISED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)
FILE = re.compile(r"# ([\w.]+)\n")


@contextlib.contextmanager
def app_server(directory: Path, port: int) -> Iterator[None]:
    """Run the tutorial's back end."""
    command = [sys.executable, "-W", "error", "-m", "uvicorn", "notes_app:app", "--port", str(port)]
    with (directory / "app.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port, process), timeout_s=30, what="the back end to answer")
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the back end has ended"
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json").status_code == 200
    except httpx.TransportError:
        return False


def test_the_paper_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m upwell "$@"\n')
    program.chmod(0o755)
    blocks = read_blocks(PAPER)
    for block in blocks:
        if block.language == "toml":
            (tmp_path / FILE.match(block.text)[1]).write_text(block.text)  # type: ignore[index]
    session: dict[str, object] = {"__name__": "__main__"}
    app_port, count = ReservedPort(), 0
    with (
        contextlib.closing(app_port),
        contextlib.ExitStack() as stack,
        ServerProcess(tmp_path / "data", args=("--config", str(tmp_path / "upwell.toml"))) as server,
    ):
        environment = {
            **os.environ, "UPWELL_URL": server.url, "UPWELL_ROOT_PASSWORD": server.root_password,
        }  # fmt: skip
        monkeypatch.setenv("UPWELL_ROOT_PASSWORD", server.root_password)
        for block in blocks:
            text = block.text.replace(ADDRESS, server.url)
            text = text.replace(APP_ADDRESS, f"http://127.0.0.1:{app_port.number}")
            if block.language == "sh":
                run_shell(Block(block.language, text), tmp_path, environment)
            elif block.language == "python" and (named := FILE.match(text)):
                (tmp_path / named[1]).write_text(text)
                stack.enter_context(app_server(tmp_path, app_port.number))
            elif block.language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(text, str(PAPER), "exec"), session)
                assert out.getvalue().splitlines() == PROMISED.findall(block.text)
                count += 1
        for client in ("screen", "root"):
            session[client].close()  # type: ignore[attr-defined]
        stack.close()
    assert count == 5
    assert "Traceback" not in (tmp_path / "app.log").read_text()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAPER.read_text())
    assert [target for target in targets if not (PAPER.parent / target).exists()] == []
