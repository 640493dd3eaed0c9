"""The run: the named scenarios, one after the other, against one server process.

Law: a scenario that fails doesn't stop the others; the server is reaped and every file closed however the run
ends; the exit code is 0 only if every scenario made checks and all of them held.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from upwell.client import Client, connect
from upwell.demo.run import end_on_sigterm, log_to
from upwell.errors import StartRefused
from upwell.simulate.report import Play, Run, Screen, as_document
from upwell.simulate.stage import REQUEST_S_MAX, SEED, Stage
from upwell.testing import ServerFailed, ServerProcess

OK, FAILED = 0, 1
ALL, LIST = "all", "list"

log = logging.getLogger("upwell.simulate")


@dataclass(frozen=True, slots=True)
class Scenario:
    """What it plays, in a line, and how."""

    description: str
    play: Callable[[Stage], None]


def simulate(
    names: Sequence[str],
    scenarios: Mapping[str, Scenario],
    *,
    as_json: bool,
    keep: Path | None,
    out: TextIO,
) -> int:
    """Play the named scenarios and print a report to `out`; return the exit code.

    `all` names every one, `list` only prints them. `keep` is a directory, new or empty, that everything is
    left in. Raises `StartRefused` for an unknown name or a directory in use.
    """
    if LIST in names:
        _print_list(scenarios, out)
        return OK
    chosen = _choose(names, scenarios)
    screen = None if as_json else Screen(out)
    began = time.perf_counter()
    with ExitStack() as stack:
        end_on_sigterm(stack)
        directory = _directory(keep, stack)
        stack.enter_context(log_to(directory / "simulate.log"))
        plays = _play_all(chosen, directory, screen, stack)
        kept = None if keep is None else directory
        run = Run(plays, SEED, time.perf_counter() - began, kept)
        (directory / "result.json").write_text(as_document(run) + "\n")
    if screen is None:
        print(as_document(run), file=out)
    else:
        screen.finish(run)
    return OK if run.is_ok else FAILED


def _choose(names: Sequence[str], scenarios: Mapping[str, Scenario]) -> dict[str, Scenario]:
    unknown = [name for name in names if name not in scenarios and name != ALL]
    if unknown:
        raise StartRefused(f"no scenario {', '.join(unknown)}: choose {ALL}, or of {', '.join(scenarios)}")
    return {name: scenario for name, scenario in scenarios.items() if ALL in names or name in names}


def _print_list(scenarios: Mapping[str, Scenario], out: TextIO) -> None:
    width = max(map(len, scenarios))
    for name, scenario in scenarios.items():
        print(f"{name:{width}}  {scenario.description}", file=out)


def _play_all(
    chosen: Mapping[str, Scenario], directory: Path, screen: Screen | None, stack: ExitStack
) -> list[Play]:
    # The cheapest password hash: the scenarios create many accounts.
    server = ServerProcess(directory / "server", env={"UPWELL_BCRYPT_COST": "4"})
    stack.callback(server.close)
    try:
        server.start()
    except ServerFailed as error:
        raise StartRefused(f"the server of the scenarios doesn't start: {error}") from error
    root = connect(server.url, user="root", password=server.root_password, request_s=REQUEST_S_MAX)
    stack.enter_context(root)
    if screen is not None:
        screen.begin(SEED)
    return [
        _play(name, scenario, directory / name, server, root, screen) for name, scenario in chosen.items()
    ]


def _play(
    name: str, scenario: Scenario, directory: Path, server: ServerProcess, root: Client, screen: Screen | None
) -> Play:
    began = time.perf_counter()
    tell = (lambda _: None) if screen is None else screen.group_ended
    stage = Stage(name, directory, server, root, tell)
    play = Play(name, scenario.description, stage.groups)
    try:
        stage.open()
        scenario.play(stage)
    except Exception as error:
        log.exception("A scenario failed")
        if not play.failed:
            stage.fail(error)
    finally:
        stage.close()
    play.seconds = round(time.perf_counter() - began, 3)
    return play


def _directory(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upwell-simulate-")))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise StartRefused(f"{keep} is not an empty directory: name a new one to keep the files in")
    keep.mkdir(parents=True, exist_ok=True)
    return keep.resolve()
