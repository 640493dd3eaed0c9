"""What a fleet does to rows at random, and how its phones settle conflicts."""

from typing import TypeAlias

from hypothesis import strategies as st

from upwell.device import client_wins, server_wins
from upwell.device.conflict import Conflict
from upwell.device.schema import Row
from upwell.testing.fleet_tables import TABLES

Edit: TypeAlias = tuple[str, int, int, str]
"""Table, number of the row, number of the row that it refers to, what is done to it."""

TABLE = st.sampled_from(TABLES)
KEYS = st.integers(0, 1)
VERBS = st.sampled_from(["value", "note", "both", "replace", "delete"])
EDIT = st.tuples(TABLE, KEYS, KEYS, VERBS)
EDITS = st.lists(EDIT, min_size=1, max_size=5)
EDITS_BEFORE = st.lists(EDIT, max_size=2)


def merge(conflict: Conflict) -> Row | None:
    """An edit beats a deletion; of two edits each column is taken from who changed it, else from here."""
    base, local, server = conflict.base, conflict.local, conflict.server
    if local is None or server is None:
        return local or server
    return {c: server[c] if base is not None and local[c] == base[c] else local[c] for c in local}


RESOLVERS = (server_wins, client_wins, merge)
