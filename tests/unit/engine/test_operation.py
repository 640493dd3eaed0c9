"""LIKE matches what its definition says, in bounded time; text can't be joined beyond what a row holds."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upwell.engine.operation import LIKE_CHARS_MAX, VALUE_BYTES_MAX, concat, like, size_bytes
from upwell.errors import QueryFailure

PATTERNS = st.text("abA%%_\\.\n", max_size=10)
TEXTS = st.text("abA%_\\.\n", max_size=12)


def symbols(pattern: str) -> list[tuple[str, bool]]:
    """The pattern's characters, each with whether it stands for itself."""
    found: list[tuple[str, bool]] = []
    index = 0
    while index < len(pattern):
        if pattern[index] == "\\" and index + 1 < len(pattern):
            index += 1
            found.append((pattern[index], True))
        else:
            found.append((pattern[index], pattern[index] not in "%_"))
        index += 1
    return found


def is_like(text: str, pattern: str) -> bool:
    """LIKE by dynamic programming: `reached[n]` if the pattern so far matches the first n characters."""
    reached = [True] + [False] * len(text)
    for character, is_literal in symbols(pattern):
        if character == "%" and not is_literal:
            reached = [any(reached[: n + 1]) for n in range(len(text) + 1)]
        else:
            meets = [not is_literal or each == character for each in text]
            reached = [False, *(reached[n] and meets[n] for n in range(len(text)))]
    return reached[-1]


@settings(max_examples=1000, deadline=None)
@given(TEXTS, PATTERNS)
@example("aba", "ab%ba")
@example("ab\nba", "ab%_ba")
@example("a%b", "a\\%b")
@example("a\\", "%\\")
@example("", "%%")
def test_like_means_what_its_definition_says(text: str, pattern: str) -> None:
    assert like(text, pattern) is is_like(text, pattern)
    assert like(text, pattern, fold=True) is is_like(text.lower(), pattern.lower())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=5), st.data())
def test_like_finds_what_was_put_together_from_its_pattern(parts: list[str], data: st.DataObject) -> None:
    text = parts[0] + "".join(data.draw(TEXTS) + part for part in parts[1:])
    assert like(text, "%".join(parts))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("part", ["a", "_", "aa"])
def test_a_pattern_of_many_parts_comes_to_an_end(part: str, fold: bool) -> None:
    text = "a" * 100_000
    assert not like(text, f"%{part}" * 50 + "%b", fold=fold)
    assert not like(text, f"%{part}" * 50 + "b%", fold=fold)
    assert like(text + "b", f"%{part}" * 50 + "%b", fold=fold)


def test_a_long_end_is_compared_once() -> None:
    assert not like("a" * 200_000, "%b" + "a" * 4_000)
    assert like("b" + "a" * 200_000, "b%" + "a" * 4_000)


def test_a_pattern_has_a_bound() -> None:
    assert like("a" * LIKE_CHARS_MAX, "_" * LIKE_CHARS_MAX)
    with pytest.raises(QueryFailure, match=f"at most {LIKE_CHARS_MAX} characters"):
        like("a", "%" * (LIKE_CHARS_MAX + 1))


def test_text_is_joined_up_to_what_a_row_holds() -> None:
    half = "x" * (VALUE_BYTES_MAX // 2)
    assert concat(half, half) == "x" * VALUE_BYTES_MAX
    for a, b in ((half, half + "x"), (half[2:] + "éé", half)):
        with pytest.raises(QueryFailure, match=rf"larger than {VALUE_BYTES_MAX} bytes"):
            concat(a, b)
    assert concat(1, "é") == "1é"


def test_size_counts_texts_as_utf8_and_bytes() -> None:
    assert size_bytes([None, 5, 1.5, True, "abc", "é€", "\ud800", b"\x00\xff"]) == 3 + 5 + 3 + 2
