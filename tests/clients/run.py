"""Runs clients that others have published, unmodified, against a real server of ours: `make clients`.

Law: a client's program says `done` at last, or the run fails; when it says `kill`, the server is killed and
started again.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from upwell.testing.process import ServerProcess

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "clients"


def main() -> int:
    """Run KalamDB's client for Rust through `rust/src/main.rs`; return the exit code."""
    manifest = str(HERE / "rust" / "Cargo.toml")
    cargo = ["cargo", "run", "--quiet", "--locked", "--manifest-path", manifest, "--"]
    with (
        tempfile.TemporaryDirectory() as directory,
        ServerProcess(Path(directory) / "data", root_password="") as server,
        subprocess.Popen(
            [*cargo, server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CARGO_TARGET_DIR": str(BUILD)},
        ) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        last = ""
        for line in client.stdout:
            last = line.strip()
            print(last, flush=True)
            if last == "kill":
                server.restart()
                print("back", file=client.stdin, flush=True)
    return 0 if client.returncode == 0 and last == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
