"""`upwell serve`: settings, refusals, readiness and a clean end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from upwell.testing import ReservedPort, ServerProcess, wait_until
from upwell.testing.wire import Site, Wire

SECRET = "a-secret-of-a-test-with-more-than-32-bytes"
CHEAP = {"UPWELL_BCRYPT_COST": "4"}
Start = Callable[..., ServerProcess]


def _refused(args: Sequence[str], env: dict[str, str] | None = None, *, timeout_s: float = 60) -> str:
    """Run `upwell serve` that must refuse to start; return the sentence that it says why in."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UPWELL_")}
    done = subprocess.run(
        [sys.executable, "-m", "upwell", "serve", *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**inherited, **(env or {})},
    )
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("upwell: ")
    return line.removeprefix("upwell: ")


def _logged_in(port: int, password: str) -> bool:
    with Wire(port) as wire:
        body = {"user": "root", "password": password}
        return wire.call("POST", "/v1/api/auth/login", body).status == 200


def test_the_file_gives_way_to_the_environment_and_that_to_the_command_line(tmp_path: Path) -> None:
    port = ReservedPort()
    config = tmp_path / "upwell.toml"
    config.write_text(
        f'data_dir = "{tmp_path}/from-file"\nport = 1\nhost = "127.0.0.1"\nroot_password = "from-file"\n'
        'bcrypt_cost = 4\nlog_level = "error"\njwt_secret = "secret-from-the-file-of-32-bytes"\n'
    )
    command = [
        sys.executable,
        "-m",
        "upwell",
        "serve",
        "--config",
        str(config),
        "--port",
        "{port}",
        "--data-dir",
        str(tmp_path / "from-command-line"),
    ]
    env = {"UPWELL_PORT": "2", "UPWELL_DATA_DIR": str(tmp_path / "from-environment")}
    port.close()
    with ServerProcess(
        tmp_path / "log", command=command, env=env, root_password="from-environment"
    ) as server:
        assert _logged_in(server.port, "from-environment")
        assert not _logged_in(server.port, "from-file")
        assert (tmp_path / "from-command-line").is_dir()
        assert not (tmp_path / "from-environment").exists()
        assert not (tmp_path / "from-file").exists()
        assert server.log_text() == ""  # log_level of the file


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("prot = 1", "prot"),
        ("port = ", "can't be read"),
        ('port = "many"', "port"),
        ("bcrypt_cost = 99", "bcrypt_cost"),
        ('durability = "maybe"', "durability"),
        ('jwt_secret = "short"', "jwt_secret"),
        (f'root_password = "{"x" * 73}"', "root_password"),
        ("port = 70000", "port"),
    ],
)
def test_settings_that_make_no_sense_stop_the_start(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text(text)
    assert part in _refused(["--config", str(file), "--data-dir", str(tmp_path / "data")])


def test_a_missing_file_and_an_unknown_variable_stop_the_start(tmp_path: Path) -> None:
    assert "nowhere.toml" in _refused(["--config", str(tmp_path / "nowhere.toml")])
    assert "UPWELL_PROT" in _refused(["--data-dir", str(tmp_path / "data")], {"UPWELL_PROT": "1"})


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text("port = 70000")
    data = ["--data-dir", str(tmp_path / "data"), "--host", "0.0.0.0"]  # refused at once without the file
    assert "port is 0..65535" in _refused(data, {"UPWELL_CONFIG": str(file)})
    assert "nowhere.toml" in _refused(data, {"UPWELL_CONFIG": str(tmp_path / "nowhere.toml")})
    assert "other.toml" in _refused(
        [*data, "--config", str(tmp_path / "other.toml")], {"UPWELL_CONFIG": str(file)}
    )


def test_what_sql_reads_does_not_stop_the_start(tmp_path: Path) -> None:
    env = {"UPWELL_URL": "http://x", "UPWELL_USER": "ada", "UPWELL_PASSWORD": "x", "UPWELL_PORT": "70000"}
    assert "port" in _refused(["--data-dir", str(tmp_path / "data")], env)


def test_strangers_are_not_let_in_by_default(tmp_path: Path) -> None:
    data = ["--data-dir", str(tmp_path / "data"), "--host", "0.0.0.0", "--port", "1"]
    message = _refused(data, {"UPWELL_ROOT_PASSWORD": "a password"})
    assert "default secret" in message
    assert "UPWELL_JWT_SECRET" in message
    assert "root password" in _refused(data, {"UPWELL_JWT_SECRET": SECRET})
    assert not (tmp_path / "data").exists()


def test_with_secrets_it_listens_for_everybody(data_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "upwell",
        "serve",
        "--data-dir",
        "{data_dir}",
        "--host",
        "0.0.0.0",
        "--port",
        "{port}",
    ]
    with (
        ServerProcess(data_dir, command=command, env=CHEAP) as server,
        socket.create_connection(
            (socket.gethostbyname(socket.gethostname()), server.port), timeout=5
        ) as peer,
    ):
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert peer.recv(4_096).startswith(b"HTTP/1.1 200")


def test_a_second_server_on_the_directory_is_refused(server: ServerProcess) -> None:
    port = ReservedPort()
    try:
        message = _refused(["--data-dir", str(server.data_dir), "--port", str(port.number)])
    finally:
        port.close()
    assert message.startswith("another server uses this directory")
    assert _logged_in(server.port, server.root_password)


def test_a_taken_port_is_refused(server: ServerProcess, tmp_path: Path) -> None:
    message = _refused(["--data-dir", str(tmp_path / "other"), "--port", str(server.port)])
    assert f"127.0.0.1:{server.port}" in message
    assert _logged_in(server.port, server.root_password)
    # The directory was let go: it can be served now.
    with ServerProcess(tmp_path / "other", env=CHEAP) as other:
        assert _logged_in(other.port, other.root_password)


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("I am no directory")
    assert str(file) in _refused(["--data-dir", str(file), "--port", "1"])
    assert file.read_text() == "I am no directory"


def test_a_directory_of_a_newer_format_is_refused(start_server: Start, data_dir: Path) -> None:
    server = start_server(env=CHEAP)
    server.terminate()
    newer = (
        "from pathlib import Path\n"
        "from upwell.clock import SystemClock\n"
        "from upwell.storage import rocks\n"
        "rocks.FORMAT_VERSION += 1\n"
        f"rocks.RocksStore(Path({str(data_dir / 'hot')!r}), clock=SystemClock()).close()\n"
    )
    subprocess.run([sys.executable, "-c", newer], check=True, timeout=60)
    message = _refused(["--data-dir", str(data_dir), "--port", str(server.port)])
    assert message.startswith("a newer Upwell wrote this directory")


def test_data_and_accounts_survive_a_clean_end_and_a_kill(start_server: Start) -> None:
    server = start_server(env=CHEAP)
    site = Site(server)
    site.root.run("CREATE NAMESPACE app; CREATE USER TABLE app.t (id INT PRIMARY KEY, v TEXT)")
    _, ada = site.account("user", "ada")
    ada.run("INSERT INTO app.t VALUES (1, 'before')")
    assert server.terminate() == 0
    server.start()
    ada.run("INSERT INTO app.t VALUES (2, 'after')")  # the token is still good: the secret is the same
    assert ada.run("SELECT id, v FROM app.t").rows == [[1, "before"], [2, "after"]]
    server.kill()
    server.start()
    assert ada.run("SELECT id, v FROM app.t").rows == [[1, "before"], [2, "after"]]
    server.terminate()
    server.start(env={"UPWELL_JWT_SECRET": SECRET + "-another"})
    ada.sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
    assert site.login("ada")["user"]["id"] == "ada"
    site.close()


def test_another_root_password_replaces_the_stored_one(start_server: Start) -> None:
    server = start_server(env=CHEAP)
    assert _logged_in(server.port, server.root_password)
    server.terminate()
    server.start(env={"UPWELL_ROOT_PASSWORD": "another"})
    assert _logged_in(server.port, "another")
    assert not _logged_in(server.port, server.root_password)


def test_without_a_root_password_nobody_gets_in(start_server: Start) -> None:
    server = start_server(env={**CHEAP, "UPWELL_ROOT_PASSWORD": ""})
    with Wire(server.port) as wire:
        empty = wire.call("POST", "/v1/api/auth/login", {"user": "root", "password": ""})
        assert (empty.status, empty.json["error"]) == (428, "setup_required")
        guess = wire.call("POST", "/v1/api/auth/login", {"user": "root", "password": "x"})
        assert guess.status == 401
    assert any("UPWELL_ROOT_PASSWORD" in line["msg"] for line in server.log_lines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(start_server: Start, number: signal.Signals) -> None:
    server = start_server(env=CHEAP)
    with Wire(server.port) as idle:
        assert idle.call("GET", "/health").status == 200
        os.kill(server.pid, number)
        assert server.wait_exit() == 0
    assert [line["msg"] for line in server.log_lines()][-1] == "Upwell stopped"
    assert "Traceback" not in server.log_text()


def test_a_request_under_way_finishes_before_the_end(start_server: Start) -> None:
    server = start_server(env=CHEAP)
    site = Site(server)
    site.root.run("CREATE NAMESPACE app; CREATE TABLE app.t (id INT PRIMARY KEY)")
    body = json.dumps({"sql": "INSERT INTO app.t VALUES (1); SELECT COUNT(*) AS n FROM app.t"}).encode()
    head = (
        f"POST /v1/api/sql HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.root.token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode() + body[:20])
        site.root.run("SELECT 1")  # the server has seen the head by now, or sees it before the signal's turn
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "Stopping" in server.log_text(), timeout_s=10, what="the server to stop")
        connection.sendall(body[20:])
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b'"rows":[["1"]]' in answer
    assert server.wait_exit() == 0
    site.close()
    server.start()
    again = Site(server)
    assert again.root.run("SELECT id FROM app.t").rows == [[1]]
    again.close()


def test_a_stop_does_not_wait_for_ever(start_server: Start) -> None:
    server = start_server(env={**CHEAP, "UPWELL_DRAIN_S": "1"})
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/api/sql HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait_exit(timeout_s=15) == 0


def test_writes_that_were_acknowledged_before_the_signal_are_there(start_server: Start) -> None:
    server = start_server(env=CHEAP)
    site = Site(server)
    site.root.run("CREATE NAMESPACE app; CREATE TABLE app.t (id INT PRIMARY KEY)")
    acknowledged: list[int] = []
    enough = threading.Event()

    def write(client: int) -> None:
        with Wire(server.port, site.root.token) as wire:
            for n in range(10_000):
                try:
                    if wire.sql(f"INSERT INTO app.t VALUES ({client * 10_000 + n})").status != 200:
                        return
                except OSError:
                    return
                except Exception:  # noqa: BLE001  (http.client's many ways to say that the connection is gone)
                    return
                acknowledged.append(client * 10_000 + n)
                if len(acknowledged) > 100:
                    enough.set()

    threads = [threading.Thread(target=write, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    assert server.terminate() == 0
    for thread in threads:
        thread.join()
    site.close()
    server.start()
    again = Site(server)
    kept = {row[0] for row in again.root.run("SELECT id FROM app.t").rows}
    again.close()
    assert set(acknowledged) <= kept
    assert len(kept) <= len(acknowledged) + 4


def test_the_directory_holds_what_it_should(start_server: Start, data_dir: Path) -> None:
    server = start_server(env=CHEAP)
    server.terminate()
    assert (data_dir / "hot").is_dir()
    assert not any(
        server.root_password in path.read_text(errors="replace")
        for path in data_dir.rglob("*")
        if path.is_file()
    )
    assert server.jwt_secret not in server.log_text()
    assert server.root_password not in server.log_text()
    shutil.rmtree(data_dir)
