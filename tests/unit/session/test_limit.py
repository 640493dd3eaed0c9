"""Promise: nothing is cut unless the settings say so; then as the reference does, by LIMIT or its absence."""

import pyarrow as pa
import pytest

from upwell.session.limit import RowLimits
from upwell.session.outcome import Answer

ROWS = 120


@pytest.mark.parametrize(
    ("limits", "text", "rows"),
    [
        (RowLimits(), "SELECT * FROM t", ROWS),
        (RowLimits(), "SELECT * FROM t LIMIT 200", ROWS),
        (RowLimits(50, 100), "SELECT * FROM t", 50),
        (RowLimits(50, 100), "SELECT * FROM t LIMIT 200", 100),
        (RowLimits(50, 100), "SELECT * FROM (SELECT * FROM t LIMIT 200) x", 100),
        (RowLimits(50, 100), "SELECT 'LIMIT' FROM t", 50),
        (RowLimits(50, 0), "SELECT * FROM t FETCH FIRST 200 ROWS ONLY", ROWS),
        (RowLimits(0, 100), "SELECT * FROM t", ROWS),
    ],
)
def test_answers_are_cut_by_what_the_query_says(limits: RowLimits, text: str, rows: int) -> None:
    assert limits.cut(Answer(pa.table({"id": range(ROWS)})), text).table.num_rows == rows
