"""The main job of the README runs as a program: exit code, every check, and the counts it promises."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from upwell.demo import run as run_module
from upwell.demo.check import Checks
from upwell.demo.run import Phase
from upwell.demo.world import Counts, World

RUN_S_MAX = 180


def run_demo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "upwell", "demo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run with `--json --keep`: the kept directory and the document."""
    directory = tmp_path_factory.mktemp("demo") / "kept"
    done = run_demo("--json", "--keep", str(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, json.loads(done.stdout)


def test_every_check_holds(run: tuple[Path, dict[str, Any]]) -> None:
    _, document = run
    assert document["ok"] is True
    assert document["failed"] == []
    assert [(phase["name"], phase["ok"]) for phase in document["phases"]] == [
        (name, True)
        for name in (
            "begin",
            "offline",
            "online",
            "answers",
            "saves",
            "sides",
            "tiers",
            "kill",
            "reinstall",
            "papers",
        )
    ]
    assert document["checks"] == sum(len(phase["checks"]) for phase in document["phases"])
    assert document["seconds"] < 60


def test_the_counts_are_those_of_the_scenario(run: tuple[Path, dict[str, Any]]) -> None:
    _, document = run
    counts = {phase["name"]: phase["counts"] for phase in document["phases"]}
    assert counts["offline"] == {"operations": 330, "pending": 180}
    assert counts["online"] == {"changes": 180, "statuses": 180}
    assert counts["answers"] == {"repeated": 180, "lost_answers": 1, "edits_in_flight": 1}
    assert counts["saves"] == {"uploads": 4, "states": 5}
    assert counts["sides"]["live_queries_cut"] == 2
    killed = counts["kill"]
    assert 200 <= killed["acknowledged"] <= killed["attempted"]
    # Writes are counted above, rows here: some writes update or delete, so it must not read as a loss.
    assert set(killed) == {"acknowledged", "attempted", "rows_live_afterwards"}


def test_keep_leaves_everything(run: tuple[Path, dict[str, Any]]) -> None:
    directory, document = run
    assert document["directory"] == str(directory)
    assert {path.name for path in directory.iterdir()} >= {
        "server",
        "server.log",
        "demo.log",
        "phone.sqlite",
        "laptop.sqlite",
        "phone-reinstalled.sqlite",
        "result.json",
    }
    assert json.loads((directory / "result.json").read_text()) == document


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = run_demo("--keep", str(tmp_path))
    assert done.returncode == 2
    assert (tmp_path / "mine").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_phase_that_fails_ends_the_run_with_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[World] = []

    def differ(world: World) -> Counts:
        started.append(world)
        world.checks.equal("one row", [("a", 1)], [("a", 2)])
        raise LookupError("and then it broke")

    phases = (run_module.PHASES[0], Phase("differ", "Differs", differ), Phase("never", "Never", differ))
    monkeypatch.setattr(run_module, "PHASES", phases)
    out = io.StringIO()
    assert run_module.run_demo(as_json=True, keep=tmp_path / "kept", out=out) == 1

    document = json.loads(out.getvalue())
    assert document["failed"] == [
        {
            "phase": "differ",
            "what": "one row",
            "difference": "1 expected, 1 found; at 0 expected ('a', 1), found ('a', 2)",
        },
        {
            "phase": "differ",
            "what": "the phase ran to its end",
            "difference": "LookupError: and then it broke",
        },
    ]
    assert [(phase["name"], phase["ok"]) for phase in document["phases"]] == [
        ("begin", True),
        ("differ", False),
        ("never", False),
    ]
    assert [world.server.is_alive for world in started] == [False]


def test_a_phase_without_checks_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PHASES", (Phase("idle", "Idle", lambda world: {}),))
    out = io.StringIO()
    assert run_module.run_demo(as_json=False, keep=tmp_path / "kept", out=out) == 1
    assert "FAILED Idle: " in out.getvalue()


@pytest.mark.parametrize(
    ("expected", "found", "says"),
    [
        (1, True, "expected 1, found True"),
        ([1], (1,), "1 expected, 1 found; of another type"),
        ({"a": 1}, {"b": 1}, "at 'a' expected 1, found nothing; at 'b' expected nothing, found 1"),
        ("x", None, "expected 'x', found None"),
    ],
)
def test_a_check_is_exact(expected: object, found: object, says: str) -> None:
    checks = Checks(lambda check: None)
    checks.equal("same", expected, expected)
    checks.equal("different", expected, found)
    assert [check.difference for check in checks.made] == ["", says]
