"""A page in a browser, driven by the DevTools protocol: Chromium without a window, else Node.

Law: both are asked the same by the same protocol. Node has no document of its own; `document.js` gives it one
that is just large enough, so there the page's script is tested, and not its looks or its security policy.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from websockets.sync.client import ClientConnection, connect

from upwell.testing.wait import wait_until

START_S_MAX = 30.0
ANSWER_S_MAX = 20.0
FRAME_BYTES_MAX = 16 << 20
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_LISTENING = re.compile(r"listening on ws://([\d.]+:\d+)/")


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that runs pages."""

    kind: Literal["chromium", "node"]
    program: str


class ScriptFailed(AssertionError):
    """An expression raised in the page; the message has what."""


def find_engine() -> Engine | None:
    """Return Chromium if it is installed, else Node, else None. `UPWELL_CHROMIUM` names another program."""
    for name in (os.environ.get("UPWELL_CHROMIUM"), *_CHROMIUMS):
        program = shutil.which(name) if name else None
        if program is not None:
            return Engine("chromium", program)
    node = shutil.which("node")
    return Engine("node", node) if node is not None else None


class Page:
    """One page at `url`, in a process of its own that ends with the context."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine = engine
        self._url = url
        self._ids = itertools.count(1)
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with self._resources:
            directory = Path(
                self._resources.enter_context(tempfile.TemporaryDirectory(prefix="upwell-page-"))
            )
            address = self._start(directory)
            self._socket: ClientConnection = self._resources.enter_context(
                connect(_target(address), compression=None, max_size=FRAME_BYTES_MAX, ping_interval=None)
            )
            # A browser begins with an empty document, which is complete as well.
            is_here = f"(globalThis.location?.href ?? {json.dumps(self._url)}) === {json.dumps(self._url)}"
            self.wait_for(f"{is_here} && globalThis.document?.readyState === 'complete'")
            self._resources = self._resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression, awaited if it is a promise."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self._call("Runtime.evaluate", asked)
        if "exceptionDetails" in answer:
            raise ScriptFailed(f"{expression}\n{json.dumps(answer['exceptionDetails'], indent=1)}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, *, timeout_s: float = ANSWER_S_MAX) -> Any:
        """Wait until the expression is true, and return its value."""
        return wait_until(lambda: self.evaluate(expression), timeout_s=timeout_s, what=expression)

    def fill(self, **values: str) -> None:
        """Set the fields with these ids."""
        for field, value in values.items():
            self.evaluate(f"document.getElementById({json.dumps(field)}).value = {json.dumps(value)}")

    def submit(self, form: str) -> None:
        """Submit the form with this id, as its button does."""
        self.evaluate(f"void document.getElementById({json.dumps(form)}).requestSubmit()")

    def click(self, button: str) -> None:
        """Click the element with this id."""
        self.evaluate(f"void document.getElementById({json.dumps(button)}).click()")

    def text(self, element: str) -> str:
        """Return the text of the element with this id."""
        text: str = self.evaluate(f"document.getElementById({json.dumps(element)}).textContent")
        return text

    def _start(self, directory: Path) -> str:
        log = directory / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._command(directory),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._resources.callback(_end, process)
        found = wait_until(
            lambda: _LISTENING.search(log.read_text(errors="replace")),
            timeout_s=START_S_MAX,
            what=f"{self._engine.program} to listen for DevTools",
        )
        assert found is not None, "waited for"
        return found[1]

    def _command(self, directory: Path) -> list[str]:
        program = self._engine.program
        if self._engine.kind == "node":
            script = self._resources.enter_context(as_file(files("upwell.testing") / "document.js"))
            return [program, "--experimental-websocket", "--inspect=127.0.0.1:0", str(script), self._url]
        # The browser's own sandbox needs rights that containers and root don't have; the page is our own.
        quiet = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        profile = f"--user-data-dir={directory / 'profile'}"
        return [program, *quiet, profile, "--remote-debugging-port=0", self._url]

    def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(ANSWER_S_MAX))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result


def _target(address: str) -> str:
    """Return the DevTools address of the page that runs at `address`."""

    def find() -> str | None:
        with urllib.request.urlopen(f"http://{address}/json/list", timeout=ANSWER_S_MAX) as answer:
            targets: list[dict[str, str]] = json.load(answer)
        found = (each for each in targets if each["type"] in ("page", "node"))
        return next((each["webSocketDebuggerUrl"] for each in found), None)

    target = wait_until(find, timeout_s=START_S_MAX, what="a page to appear")
    assert target is not None, "waited for"
    return target


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and all that it started: they share its process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
