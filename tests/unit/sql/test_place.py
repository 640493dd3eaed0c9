"""Places: an unknown name is found where it stands, and a text of any length costs little."""

import pytest

from upwell.sql.lex import tokenize
from upwell.sql.place import CHARS_MAX, pointed

MESSAGE = "Table not found: app.nope; SHOW TABLES lists what there is"


@pytest.mark.parametrize(
    "rest", ["", " WHERE n IN (" + "1, " * CHARS_MAX + "1)", " WHERE s = '" + "x" * CHARS_MAX]
)
def test_a_name_is_found_before_whatever_follows(rest: str) -> None:
    found = pointed(MESSAGE, f"SELECT *\nFROM app.nope{rest}")
    # A string that has no end within what is looked at hides what is before it, too.
    told = MESSAGE if "'" in rest else MESSAGE.replace("nope", "nope at Line: 2, Column: 10")
    assert found == told


def test_what_is_behind_much_else_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def noted(sql: str) -> list[object]:
        looked_at.append(len(sql))
        return list(tokenize(sql))

    monkeypatch.setattr("upwell.sql.place.tokenize", noted)
    sql = "SELECT " + "a, " * CHARS_MAX + "a FROM app.nope"
    assert pointed(MESSAGE, sql) == MESSAGE
    assert looked_at == [CHARS_MAX]
