"""The lexer: what is inside quotes and comments is never a token, and statements are cut where they end."""

import pytest

from upwell.errors import InvalidSql
from upwell.sql.lex import split, string_value, tokenize


def test_tokens_cut_their_own_text_out() -> None:
    sql = "SELECT a.\"B c\", 'it''s; $1' , $2 -- $3 ;\n /* /* 'x */ $4 */ FROM t$1 WHERE x->>'k' <= 1.5e-3"
    tokens = tokenize(sql)
    assert [token.text for token in tokens] == [
        "SELECT", "a", ".", '"B c"', ",", "'it''s; $1'", ",", "$2", "FROM", "t$1", "WHERE", "x", "->>", "'k'",
        "<=", "1.5e-3",
    ]  # fmt: skip
    assert all(sql[token.start : token.end] == token.text for token in tokens)
    assert [token.text for token in tokens if token.kind == "parameter"] == ["$2"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a''b'", "a'b"),
        ("''", ""),
        ("''''", "'"),
        (r"'a\n'", r"a\n"),
        (r"E'a\n\'b''c\\'", "a\n'b'c\\"),
        (r"e'\u00e9\x41\101'", "éAA"),
        ("$$it's $1$$", "it's $1"),
        ("$q$ $$ $q$", " $$ "),
    ],
)
def test_string_values(text: str, value: str) -> None:
    (token,) = tokenize(text)
    assert string_value(token) == value


@pytest.mark.parametrize("text", ["'a", "'a''", '"a', "/* a", "/* /* */", "$$a", "E'a\\'"])
def test_what_has_no_end_is_refused(text: str) -> None:
    with pytest.raises(InvalidSql, match="unterminated"):
        tokenize("SELECT " + text)


@pytest.mark.parametrize(
    ("sql", "statements"),
    [
        ("", []),
        (" ; -- nothing\n ;/* ; */", []),
        ("SELECT 1", ["SELECT 1"]),
        ("-- first\nSELECT 1; -- second\nSELECT ';' ;", ["SELECT 1", "SELECT ';'"]),
        ("EXECUTE AS USER a (SELECT 1; USE x); USE b", ["EXECUTE AS USER a (SELECT 1; USE x)", "USE b"]),
        ('SELECT ";", E\'\\\';\', $$;$$; x', ['SELECT ";", E\'\\\';\', $$;$$', "x"]),
    ],
)  # fmt: skip
def test_split(sql: str, statements: list[str]) -> None:
    assert split(sql) == statements
