"""The main job of the README runs as a program: exit code, every check, and the counts it promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
