"""The flush policy of a table: after how many changes of a partition, or after how long, they become cold.

Law: every table that isn't told otherwise has the server's policy, so that no hot tier grows for ever. What
is written as `rows:N`, `interval:SECONDS` or both with a comma means: whichever comes first.
"""

import re
from dataclasses import dataclass

_RULES = re.compile(r"(rows|interval):([0-9]+)")
_DIGITS_MAX = 18
_UNREACHED = 10**_DIGITS_MAX

POLICY_OPTION = "flush_policy"


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """`rows_max` changes of a partition, or the oldest `age_s_max` seconds old; None: no such rule."""

    rows_max: int | None = None
    age_s_max: int | None = None

    def __str__(self) -> str:
        rows = [] if self.rows_max is None else [f"rows:{self.rows_max}"]
        return ",".join(rows + ([] if self.age_s_max is None else [f"interval:{self.age_s_max}"]))


NEVER = FlushPolicy()


def parse_policy(text: str) -> FlushPolicy:
    """Return the policy that `text` stands for; raise `ValueError` with what it has to look like."""
    rules = [_RULES.fullmatch(rule) for rule in text.replace(" ", "").lower().split(",")]
    found = {rule[1]: _number(rule[2]) for rule in rules if rule is not None}
    if len(found) != len(rules) or not all(found.values()):
        raise ValueError("a flush policy is 'rows:N', 'interval:SECONDS' or both with a comma, above 0")
    return FlushPolicy(found.get("rows"), found.get("interval"))


def _number(written: str) -> int:
    """Return the number, or one that nothing reaches either: Python reads no text of thousands of digits."""
    digits = written.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS_MAX else _UNREACHED


@dataclass(frozen=True, slots=True)
class FlushPace:
    """What keeps many small partitions from becoming as many files each time their interval is over.

    Of one table `small_count_max` partitions with fewer than `small_rows` changes are flushed when they are
    due; if more are, all of these wait until they have as many changes or are `small_age_s` old.
    """

    default: FlushPolicy = FlushPolicy(100_000, 86_400)
    small_rows: int = 100
    small_age_s: float = 3_600.0
    small_count_max: int = 100
