"""Phones, a back end and everything that can go wrong between them, on a server on RocksDB, whose
crashes are real recoveries.

The machine and what must hold after each of its steps are in `upwell.testing.fleet` and `.ledger`.
"""

from hypothesis import HealthCheck, settings

from upwell.testing.fleet import Fleet


class FleetOnRocks(Fleet):
    is_on_disk = True


TestFleetOnRocks = FleetOnRocks.TestCase
TestFleetOnRocks.settings = settings(
    # The same examples each time: what a new one finds belongs to a search, not to everybody's next commit.
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
