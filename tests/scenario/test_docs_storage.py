"""docs/storage.md runs as it stands, but for addresses and the place of the other disk."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.paper import ADDRESS, Block, read_blocks, run_shell
from upwell.testing.s3 import HOST, S3Server

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/storage.md"
ENDPOINT = "http://127.0.0.1:9000"
PROMISED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


def printed(block: Block, session: dict[str, object]) -> list[str]:
    """Run a block in the session; return the lines that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, str(PAPER), "exec"), session)
    return out.getvalue().splitlines()


def test_the_paper_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session: dict[str, object] = {"__name__": "__main__"}
    disk = tmp_path / "ssd"
    secrets = {"STORAGE_KEY": "who", "STORAGE_SECRET": "knows"}
    with S3Server() as s3, ServerProcess(tmp_path / "data", env=secrets) as server:
        s3.make_bucket("archive")
        monkeypatch.setenv("UPWELL_ROOT_PASSWORD", server.root_password)
        environment = {**os.environ, "UPWELL_URL": server.url}
        for block in read_blocks(PAPER):
            text = block.text.replace(ADDRESS, server.url).replace(ENDPOINT, f"http://{HOST}:{s3.port}")
            here = Block(block.language, text.replace("/mnt/ssd/upwell", str(disk)))
            if block.language == "sh":
                run_shell(here, tmp_path, environment)
            else:
                assert printed(here, session) == PROMISED.findall(block.text), block.text
            if "STORAGE CHECK" in block.text:
                # Where the template says: the shard of `root` is the beginning of its SHA-256.
                assert list(disk.glob("app/notes/48/root/batch-*.parquet"))
        keys = s3.keys("archive", "upwell/app/notes/root/")
        assert "upwell/app/notes/root/manifest.json" in keys
        assert any(key.endswith(".parquet") for key in keys)
        assert "knows" not in server.log_path.read_text()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAPER.read_text())
    assert [target for target in targets if not (PAPER.parent / target).exists()] == []
