"""A server process is ready when its start returns, gone when its context ends, and explains its failures."""

import json
import os
import random
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from upwell.testing import ReservedPort, ServerFailed, ServerProcess
from upwell.testing.process import PORT_FIRST, PORT_LAST, serve_command

STAND_IN = """
import json, os, pathlib, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

data_dir, port, *arguments = sys.argv[1:]
print("a line that isn't JSON")
print(json.dumps({"msg": "starting", "fail": os.environ.get("STAND_IN_FAIL")}))
if os.environ.get("STAND_IN_FAIL"):
    raise SystemExit("no luck: " + os.environ["STAND_IN_FAIL"])

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        is_ready = not os.environ.get("STAND_IN_UNREADY")
        self.send_response(200 if is_ready else 503)
        self.end_headers()
        names = ("UPWELL_ROOT_PASSWORD", "UPWELL_JWT_SECRET", "UPWELL_OTHER", "UPWELL_EXTRA")
        known = {name: os.environ.get(name) for name in names}
        self.wfile.write(json.dumps({"data_dir": data_dir, "arguments": arguments, **known}).encode())

    def log_message(self, *_):
        pass

def stop(*_):
    if not os.environ.get("STAND_IN_STUBBORN"):
        print(json.dumps({"msg": "stopped"}), flush=True)
        os._exit(3)

signal.signal(signal.SIGTERM, stop)
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def stand_in(data_dir: Path, **options: Any) -> ServerProcess:
    command = [sys.executable, "-c", STAND_IN, "{data_dir}", "{port}"]
    return ServerProcess(data_dir, command=command, **options)


@pytest.fixture
def server(data_dir: Path) -> Iterator[ServerProcess]:
    with stand_in(data_dir) as server:
        yield server


def ask(server: ServerProcess, path: str = "/health") -> dict[str, Any]:
    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_command_is_upwell_serve_in_this_python(tmp_path: Path) -> None:
    words = f"-m upwell serve --data-dir {tmp_path} --host 127.0.0.1 --port 20001"
    assert serve_command(tmp_path, 20001) == [sys.executable, *words.split()]


def test_a_started_server_answers(server: ServerProcess) -> None:
    assert ask(server)["data_dir"] == str(server.data_dir)
    assert server.is_alive
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert PORT_FIRST <= server.port <= PORT_LAST


def test_the_child_gets_its_secrets_and_nothing_of_our_own_settings(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPWELL_OTHER", "ours")
    options: dict[str, Any] = {"root_password": "pw", "jwt_secret": "s", "env": {"UPWELL_EXTRA": "x"}}
    with stand_in(data_dir, args=["--flag", "1"], **options) as server:
        assert ask(server) == {
            "data_dir": str(data_dir),
            "arguments": ["--flag", "1"],
            "UPWELL_ROOT_PASSWORD": "pw",
            "UPWELL_JWT_SECRET": "s",
            "UPWELL_OTHER": None,
            "UPWELL_EXTRA": "x",
        }


def test_leaving_the_context_leaves_no_process(data_dir: Path) -> None:
    with stand_in(data_dir) as server:
        pid = server.pid
        assert is_running(pid)
    assert not server.is_alive
    assert not is_running(pid)


def test_an_error_inside_the_context_leaves_no_process(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="inside"), stand_in(data_dir) as server:
        raise ValueError("inside")
    assert not server.is_alive


def test_a_killed_server_is_gone_at_once(server: ServerProcess) -> None:
    server.kill()
    assert (server.is_alive, server.wait_exit()) == (False, -9)
    server.kill()


def test_a_terminated_server_ends_by_itself(server: ServerProcess) -> None:
    assert server.terminate() == 3
    assert server.log_lines()[-1] == {"msg": "stopped"}


def test_a_server_that_does_not_stop_is_killed_and_reported(data_dir: Path) -> None:
    with stand_in(data_dir, env={"STAND_IN_STUBBORN": "1"}) as server:
        with pytest.raises(ServerFailed, match=r"still running after 0\.2 s"):
            server.terminate(timeout_s=0.2)
        assert not server.is_alive


def test_a_server_that_ends_before_it_is_ready_is_reported_with_its_log(data_dir: Path) -> None:
    server = stand_in(data_dir, env={"STAND_IN_FAIL": "the disk is gone"})
    with pytest.raises(ServerFailed, match=r"(?s)exit code 1 before it was ready.*no luck: the disk is gone"):
        server.__enter__()
    assert not server.is_alive


def test_a_server_that_never_gets_ready_is_killed_and_reported(data_dir: Path) -> None:
    server = stand_in(data_dir, env={"STAND_IN_UNREADY": "1"}, ready_s_max=0.5)
    with pytest.raises(ServerFailed, match="GET /health to answer 200"):
        server.__enter__()
    assert not server.is_alive


def test_a_server_restarts_on_the_same_port_with_settings_for_that_start_only(server: ServerProcess) -> None:
    pid, port = server.pid, server.port
    server.restart(env={"UPWELL_EXTRA": "once"})
    assert server.pid != pid
    assert server.port == port
    assert ask(server)["UPWELL_EXTRA"] == "once"
    server.restart()
    assert ask(server)["UPWELL_EXTRA"] is None
    assert [line["msg"] for line in server.log_lines()] == ["starting"] * 3


def test_a_server_restarts_on_a_new_port(server: ServerProcess) -> None:
    server.restart(new_port=True)
    assert ask(server)["data_dir"] == str(server.data_dir)


def test_a_crash_is_waited_for(server: ServerProcess) -> None:
    with pytest.raises(ConnectionError):
        ask(server, "/die")
    assert server.wait_exit() == -9


def test_the_log_holds_everything_and_its_json_lines_are_values(server: ServerProcess) -> None:
    assert server.log_path == server.data_dir.parent / "data.log"
    assert server.log_lines() == [{"msg": "starting", "fail": None}]
    assert server.log_text().startswith("a line that isn't JSON\n")


def test_reserved_ports_differ_even_if_chance_repeats_itself() -> None:
    ports = [ReservedPort(random.Random(7)) for _ in range(5)]
    try:
        assert len({port.number for port in ports}) == 5
    finally:
        for port in ports:
            port.close()
