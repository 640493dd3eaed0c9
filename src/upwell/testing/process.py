"""A real server in a child process: started, killed, restarted, and always reaped.

Law: `start` returns only when the server answers `GET /health` with 200, or fails with the end of its log;
leaving the context leaves no process behind.
"""

import fcntl
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from upwell.testing.wait import WaitFailed, wait_until

HOST = "127.0.0.1"
# Below the range from which Linux gives ports to outgoing connections, so that none of them can take ours.
PORT_FIRST, PORT_LAST = 20_000, 32_767
PORT_TRIES_MAX = 200
READY_S_MAX = 30.0
STOP_S_MAX = 30.0
HEALTH_S_MAX = 2.0
LOG_TAIL_LINES = 40
ROOT_PASSWORD = "root-password-of-a-test"
JWT_SECRET = "a-secret-of-a-test-with-more-than-32-bytes"


class ServerFailed(AssertionError):
    """The server ended, or did not do what it was asked in time; the message has the end of its log."""


class ReservedPort:
    """A free TCP port on loopback, kept from every other `ReservedPort` of this machine until closed."""

    def __init__(self, chance: random.Random | None = None) -> None:
        chance = chance or random.Random()
        for _ in range(PORT_TRIES_MAX):
            self.number = chance.randint(PORT_FIRST, PORT_LAST)
            lock = _try_lock(self.number)
            if lock is None:
                continue
            if _is_free(self.number):
                self._lock = lock
                return
            lock.close()
        raise OSError(f"found no free port in {PORT_TRIES_MAX} tries")

    def close(self) -> None:
        self._lock.close()


def serve_command(data_dir: Path, port: int) -> list[str]:
    """Return the command that starts Upwell in this Python."""
    serve = [sys.executable, "-m", "upwell", "serve"]
    return [*serve, "--data-dir", str(data_dir), "--host", HOST, "--port", str(port)]


class ServerProcess:
    """One server on one data directory. Its log (stdout and stderr, all starts) is `log_path`.

    `with ServerProcess(dir) as server:` starts it; without `with`, call `close` at the end. `command`
    replaces the program; its words `{data_dir}` and `{port}` are filled in. Variables `UPWELL_…` of our own
    environment don't reach the child, those of `env` do.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        root_password: str = ROOT_PASSWORD,
        jwt_secret: str = JWT_SECRET,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        log_dir: Path | None = None,
        command: Sequence[str] | None = None,
        ready_s_max: float = READY_S_MAX,
    ) -> None:
        self.data_dir = data_dir
        self.root_password = root_password
        self.jwt_secret = jwt_secret
        self.log_path = (log_dir or data_dir.parent) / f"{data_dir.name}.log"
        self._env = dict(env or {})
        self._args = tuple(args)
        self._command = command
        self._ready_s_max = ready_s_max
        self._port = ReservedPort()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._child().pid

    def memory_bytes(self) -> int:
        """Return the resident memory of the server."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(kilobytes) * 1024

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, env: Mapping[str, str] | None = None) -> Self:
        """Start the server and wait until it is ready; `env` is for this start only."""
        self.spawn(env=env)
        self.wait_ready()
        return self

    def spawn(self, *, env: Mapping[str, str] | None = None) -> None:
        """Start the process without waiting for it."""
        assert not self.is_alive, "the server is already running"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = self._popen(log, self._environment(env or {}))

    def wait_ready(self) -> None:
        """Wait until `GET /health` answers 200; raise `ServerFailed` if it ends or takes too long."""
        try:
            wait_until(self._is_ready, timeout_s=self._ready_s_max, what="GET /health to answer 200")
        except WaitFailed as error:
            self.kill()
            raise ServerFailed(f"{error}\n{self.log_tail()}") from error

    def kill(self) -> None:
        """SIGKILL, as a power cut would; nothing happens if it has ended already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self, *, timeout_s: float = STOP_S_MAX) -> int:
        """Ask the server to stop (SIGTERM); return its exit code."""
        self._child().send_signal(signal.SIGTERM)
        return self.wait_exit(timeout_s=timeout_s)

    def wait_exit(self, *, timeout_s: float = STOP_S_MAX) -> int:
        """Wait until it ends by itself (a crash point, a refusal); return its exit code, -9 for SIGKILL."""
        try:
            return self._child().wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise ServerFailed(f"still running after {timeout_s:g} s\n{self.log_tail()}") from error

    def restart(self, *, env: Mapping[str, str] | None = None, new_port: bool = False) -> Self:
        """Kill the server if it runs, start it again on the same data; `env` is for this start only."""
        self.kill()
        if new_port:
            self._port.close()
            self._port = ReservedPort()
        return self.start(env=env)

    def close(self) -> None:
        """Kill the server if it runs, and give the port back."""
        self.kill()
        self._port.close()

    def log_text(self) -> str:
        """Return the whole log, of all starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log lines that are JSON objects, of all starts."""
        return [fields for line in self.log_text().splitlines() if (fields := _parse_line(line)) is not None]

    def log_tail(self) -> str:
        """Return the last lines of the latest start."""
        if not self.log_path.exists():
            return "(no log)"
        text = self.log_path.read_bytes()[self._log_start :].decode(errors="replace")
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:]) or "(the log is empty)"

    def _child(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was never started"
        return self._process

    def _popen(self, log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        words = [*self._words(), *self._args]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def _words(self) -> list[str]:
        if self._command is None:
            return serve_command(self.data_dir, self.port)
        values = {"{data_dir}": str(self.data_dir), "{port}": str(self.port)}
        return [values.get(word, word) for word in self._command]

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("UPWELL_")}
        secrets = {"UPWELL_ROOT_PASSWORD": self.root_password, "UPWELL_JWT_SECRET": self.jwt_secret}
        return {**inherited, "PYTHONUNBUFFERED": "1", **secrets, **self._env, **env}

    def _is_ready(self) -> bool:
        code = self._child().poll()
        if code is not None:
            raise ServerFailed(f"ended with exit code {code} before it was ready\n{self.log_tail()}")
        return _health_status(self.port) == 200


def _health_status(port: int) -> int | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=HEALTH_S_MAX)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _try_lock(port: int) -> IO[bytes] | None:
    # A lock, because a port that is only looked at can be taken before the child binds it.
    directory = Path(tempfile.gettempdir()) / f"upwell-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    file = (directory / str(port)).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
