"""Papers that are run: the code blocks of a Markdown file, as commands and programs.

Law: a block runs as it stands in the paper, but for the address of the server and the path of the program.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "http://127.0.0.1:8080"
PROGRAM = ".venv/bin/upwell"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `language` is what its fence says."""

    language: str
    text: str


def read_blocks(paper: Path) -> list[Block]:
    """Return the blocks that name a language, in their order."""
    return [Block(*found) for found in _BLOCK.findall(paper.read_text())]


def run(command: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    """Run a program that has to succeed; return its output."""
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_shell(block: Block, directory: Path, environment: Mapping[str, str]) -> str:
    """Run the block's calls of `upwell` by this Python; return what they print."""
    lines = [line for line in block.text.splitlines() if line.startswith(PROGRAM)]
    return "".join(
        run([sys.executable, "-m", "upwell", *shlex.split(line)[1:]], directory, environment)
        for line in lines
    )
