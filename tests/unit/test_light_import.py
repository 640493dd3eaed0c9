"""Promise: the client and the device SDK are light: they load none of the server's libraries."""

import subprocess
import sys

import pytest

HEAVY = ("rocksdict", "datafusion", "pyarrow", "uvicorn", "starlette", "sqlglot", "bcrypt", "jwt")


@pytest.mark.parametrize(
    "module", ["upwell", "upwell.device", "upwell.client", "upwell.cli", "upwell.testing"]
)
def test_light_modules_load_no_server_library(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
