"""The README's commands and programs run as they stand, but for address, port and directory."""

import os
import re
import sys
from pathlib import Path

from upwell.testing import ServerProcess, wait_until
from upwell.testing.paper import ADDRESS, read_blocks, run, run_shell

README = read_blocks(Path(__file__).parents[2] / "README.md")


def test_the_readme_tells_the_truth(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        environment = {
            **os.environ, "UPWELL_URL": server.url, "UPWELL_ROOT_PASSWORD": server.root_password,
        }  # fmt: skip
        tables, flush = (block for block in README if block.language == "sh")
        device, back_end = (
            block.text.replace(ADDRESS, server.url) for block in README if block.language == "python"
        )

        assert run_shell(tables, tmp_path, environment).count("created") == 4
        run([sys.executable, "-c", device], tmp_path, environment)
        told = run([sys.executable, "-c", back_end], tmp_path, environment)
        assert "[{'name': 'groceries', 'body': 'milk'}]" in told
        assert "kind='snapshot'" in told
        assert re.search(r"kind='update'.*'body': 'oat milk'", told)

        assert "Job ID: FL-" in run_shell(flush, tmp_path, environment)
        partition = tmp_path / "data/storage/app/items/alice"
        wait_until(lambda: (partition / "manifest.json").exists(), timeout_s=10, what="the flush")
        assert list(partition.glob("batch-*.parquet")) != []
        history = run_shell(flush, tmp_path, environment)
        assert history.count("oat milk") == 1
        assert history.count("INSERT") == 2
