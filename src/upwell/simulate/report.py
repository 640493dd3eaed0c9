"""What people and programs see of a simulation: a line per group of checks, a table, or one JSON document.

Law: nothing is printed that was not checked; with JSON nothing else goes to the output.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from upwell.demo.check import Check
from upwell.demo.report import Outcome


@dataclass
class Play:
    """How one scenario went; `seconds` is None before it ended."""

    name: str
    description: str
    groups: list[Outcome] = field(default_factory=list)
    seconds: float | None = None

    @property
    def checks(self) -> list[Check]:
        return [check for group in self.groups for check in group.checks]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.is_held]

    @property
    def is_ok(self) -> bool:
        return self.seconds is not None and bool(self.groups) and all(group.is_ok for group in self.groups)


@dataclass(frozen=True, slots=True)
class Run:
    """The whole run."""

    plays: Sequence[Play]
    seed: int
    seconds: float
    directory: Path | None

    @property
    def is_ok(self) -> bool:
        return all(play.is_ok for play in self.plays)


class Screen:
    """Lines for a person, and a table at the end."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False, soft_wrap=True)

    def begin(self, seed: int) -> None:
        """Say from which seed all chance comes."""
        self._console.print(f"seed {seed}", markup=False)

    def group_ended(self, group: Outcome) -> None:
        """Print a line about a group of checks, and one for each that failed."""
        word = "ok" if group.is_ok else "FAILED"
        seconds = group.seconds or 0.0
        line = f"{word:6} {group.name} · {group.title}: {len(group.checks)} checks, {seconds:.2f} s"
        self._console.print(line, markup=False)
        for check in group.checks:
            if not check.is_held:
                self._console.print(f"       {check.what}: {check.difference}", markup=False)

    def finish(self, run: Run) -> None:
        """Print the final table, and where the files are."""
        self._console.print(_table(run.plays))
        failed = sum(len(play.failed) for play in run.plays)
        count = sum(len(play.checks) for play in run.plays)
        verdict = "every one held" if run.is_ok else f"{failed} did NOT hold"
        self._console.print(f"{count} checks, {verdict}; {run.seconds:.1f} s.", markup=False)
        if run.directory is not None:
            self._console.print(f"Everything is in {run.directory}", markup=False)
        elif not run.is_ok:
            self._console.print("Run it again with --keep DIR to look at the files and logs.", markup=False)


def as_document(run: Run) -> str:
    """Return the run as JSON."""
    document = {
        "ok": run.is_ok,
        "seconds": round(run.seconds, 3),
        "seed": run.seed,
        "scenarios": {play.name: _play(play) for play in run.plays},
        "directory": None if run.directory is None else str(run.directory),
    }
    return json.dumps(document, ensure_ascii=False, indent=2)


def _play(play: Play) -> dict[str, Any]:
    return {
        "ok": play.is_ok,
        "description": play.description,
        "seconds": play.seconds,
        "checks": [
            {"group": group.title, "what": check.what, "ok": check.is_held, "difference": check.difference}
            for group in play.groups
            for check in group.checks
        ],
    }


def _table(plays: Sequence[Play]) -> Table:
    table = Table(title="upwell simulate", title_justify="left")
    for heading in ("", "scenario", "what it plays"):
        table.add_column(heading, overflow="fold")
    for heading in ("checks", "s"):
        table.add_column(heading, justify="right")
    for play in plays:
        sign = "[green]ok[/]" if play.is_ok else "[red]FAILED[/]"
        held = f"{len(play.checks) - len(play.failed)}/{len(play.checks)}"
        table.add_row(sign, play.name, escape(play.description), held, f"{play.seconds or 0.0:.2f}")
    return table
