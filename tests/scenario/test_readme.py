"""The README's commands and programs run as they stand, but for address, port and directory."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from upwell.testing import ServerProcess, wait_until

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shell(block: str, directory: Path, environment: dict[str, str]) -> str:
    lines = [line for line in block.splitlines() if line.startswith(".venv/bin/upwell")]
    return "".join(
        run([sys.executable, "-m", "upwell", *shlex.split(line)[1:]], directory, environment)
        for line in lines
    )


def test_the_readme_tells_the_truth(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        environment = {
            **os.environ, "UPWELL_URL": server.url, "UPWELL_ROOT_PASSWORD": server.root_password,
        }  # fmt: skip
        tables, flush = blocks("sh")
        device, back_end = (block.replace("http://127.0.0.1:8080", server.url) for block in blocks("python"))

        assert shell(tables, tmp_path, environment).count("created") == 4
        run([sys.executable, "-c", device], tmp_path, environment)
        told = run([sys.executable, "-c", back_end], tmp_path, environment)
        assert "[{'name': 'groceries', 'body': 'milk'}]" in told
        assert "kind='snapshot'" in told
        assert re.search(r"kind='update'.*'body': 'oat milk'", told)

        assert "Job ID: FL-" in shell(flush, tmp_path, environment)
        partition = tmp_path / "data/storage/app/items/alice"
        wait_until(lambda: (partition / "manifest.json").exists(), timeout_s=10, what="the flush")
        assert list(partition.glob("batch-*.parquet")) != []
        history = shell(flush, tmp_path, environment)
        assert history.count("oat milk") == 1
        assert history.count("INSERT") == 2
