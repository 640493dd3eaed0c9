"""Promise: the statements of the reference's public benchmark work, with their setups, as it sends them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Without those for which thousands of rows are seeded first.
NAMES = (
    "create_table,drop_table,single_insert,bulk_insert,transaction_multi_insert,select_all,select_by_filter,"
    "select_count,select_order_by_limit,single_update,single_delete,concurrent_insert,concurrent_select,"
    "multi_table_join,large_payload_insert,wide_column_insert,sequential_crud,alter_table,concurrent_update,"
    "concurrent_mixed_dml,namespace_isolation,subscribe_initial_load,subscribe_change_latency,"
    "reconnect_subscribe,concurrent_subscribers,create_user,drop_user,connection_storm,mixed_read_write"
)


def test_each_workload_runs_once() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/suite.py", "--iterations", "1", "--only", NAMES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["ms"]) == sorted(NAMES.split(","))
