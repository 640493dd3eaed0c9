"""Times and escapes in the engine's words, and nothing else."""

import pytest

from upwell.sql.query import Query
from upwell.sql.spelling import with_own_spellings


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("tm < TIME '12:00'", "tm < arrow_cast('12:00', 'Time64(µs)')"),
        ("v LIKE '10!%' ESCAPE '!'", "v LIKE '10\\%'"),
        ("v ILIKE 'a\\b!!''' ESCAPE '!' AND x", "v ILIKE 'a\\\\b!''' AND x"),
        ("v LIKE w ESCAPE '!'", "v LIKE w ESCAPE '!'"),
        ("v LIKE 'a!' ESCAPE '!'", "v LIKE 'a!' ESCAPE '!'"),
        ("v LIKE 'a\\%' ESCAPE '\\'", "v LIKE 'a\\%'"),
        ("SELECT time, 'TIME ''1''' AS time FROM escape", "SELECT time, 'TIME ''1''' AS time FROM escape"),
    ],
)
def test_spellings(text: str, own: str) -> None:
    assert with_own_spellings(Query(text)).text == own
