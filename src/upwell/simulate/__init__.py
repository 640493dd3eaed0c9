"""Scenarios of an app's life, `upwell simulate`: real devices, files and server, every value checked.

Law: the table below is all there is; each scenario has a namespace and users of its own, and its expected
states come from a model in plain Python.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from upwell.simulate.batch import complex_multi_batch
from upwell.simulate.conflict import conflicts
from upwell.simulate.file import files
from upwell.simulate.fleet import multi_device_complex, multi_device_sync, parallel
from upwell.simulate.life import device_replacement, fresh_install, normal_usage, reinstall, user_switch
from upwell.simulate.network import fk_batch_retry, offline_online
from upwell.simulate.run import Scenario, simulate

SCENARIOS: Mapping[str, Scenario] = {
    "complex-multi-batch": Scenario(
        "330 operations offline; batches of 200, 50, 7 and 1; two devices; lost answers", complex_multi_batch
    ),
    "fresh-install": Scenario("rows from before the first sign-in, then the first round", fresh_install),
    "normal-usage": Scenario("three days of an app: restarts, a back end, a save in flight", normal_usage),
    "reinstall": Scenario("deleted and installed again, same source and new source", reinstall),
    "device-replacement": Scenario(
        "a new phone, then the old one is found with unsent edits", device_replacement
    ),
    "offline-online": Scenario("the line is cut and mended, also in a hydration", offline_online),
    "fk-batch-retry": Scenario("250 children before their parent, batch limit 200", fk_batch_retry),
    "conflicts": Scenario("15 conflicts in a batch: server wins, keep local, merge; deletions", conflicts),
    "user-switch": Scenario("two users of one phone, none sees the other", user_switch),
    "multi-device-sync": Scenario("phone and laptop by turns, a back end, a late tablet", multi_device_sync),
    "multi-device-complex": Scenario("three devices with three rules, edits by chance", multi_device_complex),
    "files": Scenario("BLOB keys and columns, large integers, reviews that go with their file", files),
    "parallel": Scenario("20 users at once with the same row ids, conflicts and lost answers", parallel),
}


def run_simulation(
    names: Sequence[str],
    *,
    as_json: bool,
    keep: Path | None,
    out: TextIO,
    scenarios: Mapping[str, Scenario] = SCENARIOS,
) -> int:
    """Play scenarios by name, or `all`; `list` prints the names. Returns 0 if every check held, else 1."""
    return simulate(names, scenarios, as_json=as_json, keep=keep, out=out)


__all__ = ["SCENARIOS", "Scenario", "run_simulation"]
