"""What people and programs see of a run: live progress, a table at the end, or one JSON document.

Law: nothing is printed that was not measured or checked; with JSON nothing else goes to the output.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from upwell.demo.check import Check
from upwell.demo.world import Counts

REFRESHES_PER_S = 8


@dataclass
class Outcome:
    """How one phase went; `seconds` is None before it ended."""

    name: str
    title: str
    checks: list[Check] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)
    seconds: float | None = None

    @property
    def failed_count(self) -> int:
        return sum(not check.is_held for check in self.checks)

    @property
    def is_ok(self) -> bool:
        return self.seconds is not None and bool(self.checks) and not self.failed_count


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole run."""

    outcomes: Sequence[Outcome]
    timings_s: dict[str, float]
    seconds: float
    directory: Path | None

    @property
    def is_ok(self) -> bool:
        return all(outcome.is_ok for outcome in self.outcomes)

    @property
    def failed(self) -> list[Check]:
        return [check for outcome in self.outcomes for check in outcome.checks if not check.is_held]

    @property
    def check_count(self) -> int:
        return sum(len(outcome.checks) for outcome in self.outcomes)


class Screen:
    """Progress for a person: a table that lives on a terminal, plain lines elsewhere."""

    def __init__(self, outcomes: Sequence[Outcome], out: TextIO) -> None:
        self._outcomes = outcomes
        self._console = Console(file=out, highlight=False)
        self._live: Live | None = None

    def begin(self) -> None:
        """Start to show progress."""
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table,
                console=self._console,
                refresh_per_second=REFRESHES_PER_S,
                transient=True,
            )
            self._live.start()

    def phase_ended(self, outcome: Outcome) -> None:
        """Print a line about a phase, where no table lives."""
        if self._live is None:
            word = "ok" if outcome.is_ok else "FAILED"
            seconds = outcome.seconds or 0.0
            line = f"{word:6} {outcome.title}: {len(outcome.checks)} checks, {seconds:.2f} s"
            self._console.print(line, markup=False)

    def stop(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finish(self, summary: Summary) -> None:
        """Print the final table, what differed, and where the files are."""
        self.stop()
        self._console.print(self._table())
        self._console.print(_timings(summary.timings_s))
        if summary.failed:
            self._console.print(_failures(summary.failed))
        verdict = "every one held" if summary.is_ok else f"{len(summary.failed)} did NOT hold"
        self._console.print(
            f"{summary.check_count} checks, {verdict}; {summary.seconds:.1f} s.", markup=False
        )
        if summary.directory is not None:
            self._console.print(f"Everything is in {summary.directory}", markup=False, soft_wrap=True)
        elif not summary.is_ok:
            self._console.print("Run it again with --keep DIR to look at the files and logs.", markup=False)

    def _table(self) -> Table:
        table = Table(title="upwell demo", title_justify="left")
        for heading in ("", "part", "what it counted"):
            table.add_column(heading, overflow="fold")
        for heading in ("checks", "s"):
            table.add_column(heading, justify="right")
        for outcome in self._outcomes:
            counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in outcome.counts.items())
            held = f"{len(outcome.checks) - outcome.failed_count}/{len(outcome.checks)}"
            seconds = "" if outcome.seconds is None else f"{outcome.seconds:.2f}"
            table.add_row(_sign(outcome), escape(outcome.title), escape(counts), held, seconds)
        return table


def as_document(summary: Summary) -> str:
    """Return the run as JSON."""
    document = {
        "ok": summary.is_ok,
        "seconds": round(summary.seconds, 3),
        "checks": summary.check_count,
        "failed": [
            {"phase": check.phase, "what": check.what, "difference": check.difference}
            for check in summary.failed
        ],
        "phases": [
            {
                "name": outcome.name,
                "title": outcome.title,
                "ok": outcome.is_ok,
                "seconds": outcome.seconds,
                "counts": outcome.counts,
                "checks": [{"what": check.what, "ok": check.is_held} for check in outcome.checks],
            }
            for outcome in summary.outcomes
        ],
        "timings_s": summary.timings_s,
        "directory": None if summary.directory is None else str(summary.directory),
    }
    return json.dumps(document, ensure_ascii=False, indent=2)


def _sign(outcome: Outcome) -> str:
    if outcome.seconds is None:
        return "[yellow]…[/]" if outcome.checks else "[dim]·[/]"
    return "[green]ok[/]" if outcome.is_ok else "[red]FAILED[/]"


def _timings(timings_s: dict[str, float]) -> Table:
    table = Table(title="timings", title_justify="left")
    table.add_column("what")
    table.add_column("s", justify="right")
    for name, seconds in timings_s.items():
        table.add_row(name.removesuffix("_s").replace("_", " "), f"{seconds:.3f}")
    return table


def _failures(failed: Sequence[Check]) -> Table:
    table = Table(title="what differed", title_justify="left", show_lines=True)
    for heading in ("part", "check", "difference"):
        table.add_column(heading, overflow="fold")
    for check in failed:
        table.add_row(escape(check.phase), escape(check.what), escape(check.difference))
    return table
