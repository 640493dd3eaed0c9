"""The run: the phases in order, each on what the one before left; the first that fails ends it.

Law: the server is reaped and every file closed however the run ends; the exit code is 0 only if every phase
ran, made checks, and all of them held.
"""

import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from upwell.demo.backend import work_from_all_sides
from upwell.demo.check import Checks
from upwell.demo.kill import kill_and_restart
from upwell.demo.offline import work_offline
from upwell.demo.online import go_online, lose_answers, save_four_times
from upwell.demo.papers import check_papers
from upwell.demo.reinstall import reinstall
from upwell.demo.report import Outcome, Screen, Summary, as_document
from upwell.demo.tiers import go_cold
from upwell.demo.world import Counts, World
from upwell.logs import JsonLines
from upwell.testing import ServerProcess

OK, FAILED, USAGE = 0, 1, 2

log = logging.getLogger("upwell.demo")


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the main job."""

    name: str
    title: str
    run: Callable[[World], Counts]


PHASES = (
    Phase("begin", "A server in a fresh directory", World.begin),
    Phase("offline", "1. A phone works offline", work_offline),
    Phase("online", "2. It finds the network: one upload", go_online),
    Phase("answers", "2. Answers get lost, edits are made in flight", lose_answers),
    Phase("saves", "3. Four uploads of one row", save_four_times),
    Phase("sides", "4. Back end, laptop, live queries cut off", work_from_all_sides),
    Phase("tiers", "5. Flush to Parquet", go_cold),
    Phase("kill", "6. SIGKILL among writes, restart", kill_and_restart),
    Phase("reinstall", "7. The app is deleted and installed again", reinstall),
    Phase("papers", "The log lines of all this", check_papers),
)


def run_demo(*, as_json: bool, keep: Path | None, out: TextIO) -> int:
    """Run the main job and print its report to `out`; return the exit code.

    `keep` is a directory, new or empty, that everything is left in; without it nothing is left.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        print(f"{keep} is not an empty directory: name a new one to keep the files in", file=sys.stderr)
        return USAGE
    outcomes = [Outcome(phase.name, phase.title) for phase in PHASES]
    screen = None if as_json else Screen(outcomes, out)
    with ExitStack() as stack:
        end_on_sigterm(stack)
        if keep is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upwell-demo-")))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            directory = keep.resolve()
        if screen is not None:
            screen.begin()
            stack.callback(screen.stop)
        summary = _run(directory, outcomes, screen, kept=None if keep is None else directory)
        document = as_document(summary)
        (directory / "result.json").write_text(document + "\n")
    if screen is None:
        print(document, file=out)
    else:
        screen.finish(summary)
    return OK if summary.is_ok else FAILED


def _run(
    directory: Path, outcomes: Sequence[Outcome], screen: Screen | None, *, kept: Path | None
) -> Summary:
    by_name = {outcome.name: outcome for outcome in outcomes}
    checks = Checks(lambda check: by_name[check.phase].checks.append(check))
    with ExitStack() as stack:
        stack.enter_context(log_to(directory / "demo.log"))
        server = ServerProcess(directory / "server")
        stack.callback(server.close)
        world = World(directory, checks, server, stack)
        for phase, outcome in zip(PHASES, outcomes, strict=True):
            _run_phase(phase, outcome, world)
            if screen is not None:
                screen.phase_ended(outcome)
            if not outcome.is_ok:
                break
    return Summary(outcomes, world.timings_s, world.elapsed_s(), kept)


def _run_phase(phase: Phase, outcome: Outcome, world: World) -> None:
    began = time.perf_counter()
    world.checks.phase = phase.name
    try:
        outcome.counts = phase.run(world)
    except Exception as error:
        log.exception("A phase of the demo failed")
        world.checks.fail("the phase ran to its end", f"{type(error).__name__}: {error}")
    outcome.seconds = round(time.perf_counter() - began, 3)


def end_on_sigterm(stack: ExitStack) -> None:
    """Let SIGTERM unwind the stack, so that no server stays behind; Ctrl-C does already."""
    if threading.current_thread() is threading.main_thread():
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Send the log of this process to a file, as JSON lines."""
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("upwell")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        logger.propagate = propagate
