"""Every scenario of `upwell simulate` holds; a wrong expectation, a broken or an idle scenario fails."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from upwell.errors import StartRefused
from upwell.simulate import SCENARIOS, Scenario, run_simulation
from upwell.simulate.stage import Stage

NAMES = (
    "complex-multi-batch",
    "fresh-install",
    "normal-usage",
    "reinstall",
    "device-replacement",
    "offline-online",
    "fk-batch-retry",
    "conflicts",
    "user-switch",
    "multi-device-sync",
    "multi-device-complex",
    "files",
    "parallel",
)
RUN_S_MAX = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run of all scenarios on one server: the kept directory and the document."""
    directory = tmp_path_factory.mktemp("simulate") / "kept"
    out = io.StringIO()
    run_simulation(["all"], as_json=True, keep=directory, out=out)
    return directory, json.loads(out.getvalue())


def test_the_table_has_every_scenario() -> None:
    assert tuple(SCENARIOS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_check_of_a_scenario_holds(run: tuple[Path, dict[str, Any]], name: str) -> None:
    found = run[1]["scenarios"][name]
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert found["checks"]
    assert found["ok"] is True


def test_the_literal_scenario_runs_with_each_batch_limit(run: tuple[Path, dict[str, Any]]) -> None:
    checks = run[1]["scenarios"]["complex-multi-batch"]["checks"]
    limited = {check["group"].partition(":")[0] for check in checks if check["group"].startswith("limit ")}
    assert limited == {"limit 200", "limit 50", "limit 7", "limit 1"}


def test_keep_leaves_everything(run: tuple[Path, dict[str, Any]]) -> None:
    directory, document = run
    assert document["ok"] is True
    assert document["directory"] == str(directory)
    names = {path.name for path in directory.iterdir()}
    assert names == {*NAMES, "server", "server.log", "simulate.log", "result.json"}
    assert all(list((directory / name).glob("*.sqlite")) for name in NAMES)
    assert json.loads((directory / "result.json").read_text()) == document


def expects_too_much(stage: Stage) -> None:
    """The model says another name than the app wrote, and a row that nobody wrote."""
    person = stage.person("broken-ada")
    phone = stage.signed_in(person, "phone")
    with stage.group("a wrong model"):
        user = stage.rows.user("Ada")
        phone.insert("users", user)
        phone.book.rows["users", user["id"]]["name"] = "Eve"
        phone.book.put(("users", "ffffffff-ffff-4fff-bfff-ffffffffffff"), stage.rows.user("Nobody"))
        phone.sync()
        stage.check_all(person, phone)


def breaks(stage: Stage) -> None:
    """The scenario itself fails."""
    with stage.group("breaks"):
        stage.checks.equal("one", 1, 1)
        raise LookupError("and then it broke")


def stumbles(stage: Stage) -> None:
    """The scenario fails between its groups."""
    holds(stage)
    raise LookupError("and then it broke")


def idles(stage: Stage) -> None:
    """Nothing is checked."""


def holds(stage: Stage) -> None:
    """The one that is right."""
    with stage.group("right"):
        stage.checks.equal("one", 1, 1)


def test_what_does_not_hold_is_told_and_stops_nothing_else() -> None:
    scenarios = {
        play.__name__: Scenario("", play) for play in (expects_too_much, breaks, stumbles, idles, holds)
    }
    out = io.StringIO()
    assert run_simulation(["all"], as_json=True, keep=None, out=out, scenarios=scenarios) == 1

    document = json.loads(out.getvalue())
    assert document["ok"] is False
    found = document["scenarios"]
    assert {name: play["ok"] for name, play in found.items()} == {
        "expects_too_much": False,
        "breaks": False,
        "stumbles": False,
        "idles": False,
        "holds": True,
    }
    failed = [check["what"] for check in found["expects_too_much"]["checks"] if not check["ok"]]
    assert failed == [
        "users of broken-ada",
        "log of broken-ada: each change once",
        "broken-ada-phone: users",
        "broken-ada-phone: versions in _sync_row_meta",
        "broken-ada-phone: users as in the account",
    ]
    for name in ("breaks", "stumbles"):
        differences = [check["difference"] for check in found[name]["checks"]]
        assert differences == ["", "LookupError: and then it broke"]
    assert found["idles"]["checks"] == []


def test_lines_for_people() -> None:
    out = io.StringIO()
    scenarios = {"right": Scenario("what is right", holds), "broken": Scenario("what breaks", breaks)}
    assert run_simulation(["right"], as_json=False, keep=None, out=out, scenarios=scenarios) == 0
    said = out.getvalue()
    assert said.startswith("seed 20251009\nok     right · right: 1 checks, ")
    assert "1 checks, every one held; " in said
    assert "broken" not in said


@pytest.mark.parametrize("names", [["reboot"], ["all", "reboot"]])
def test_an_unknown_name_is_refused_with_the_names(names: list[str]) -> None:
    with pytest.raises(StartRefused, match=r"no scenario reboot: .*fresh-install, normal-usage"):
        run_simulation(names, as_json=False, keep=None, out=io.StringIO())


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(StartRefused, match="is not an empty directory"):
        run_simulation(["fresh-install"], as_json=False, keep=tmp_path, out=io.StringIO())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_command_lists_the_scenarios_and_refuses_others() -> None:
    done = simulate("list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(NAMES)
    assert [line.partition("  ")[2].strip() for line in done.stdout.splitlines()] == [
        scenario.description for scenario in SCENARIOS.values()
    ]
    done = simulate("reboot")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("upwell: no scenario reboot: ")


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "upwell", "simulate", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
