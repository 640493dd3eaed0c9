"""The catalogue of codes is whole, and its page is current."""

import re
from pathlib import Path

import upwell
from upwell.protocol.codes import CATALOGUE, page

SRC = Path(upwell.__file__).parent
# How the code of the server names what it sends.
_SENT = re.compile(
    r"""RequestRefused\(\s*"(\w+)"|\bFault\(\s*\d+,\s*"(\w+)"|AuthFault\(\s*"(\w+)"|AuthenticationFailed\(\s*"(\w+)"
    |\bError\([^()]*(?:\([^()]*\))?[^()]*?,\s*"([A-Z_]+)"|refuse\(\s*send,\s*\w+,\s*"(\w+)"
    |^\s+return\s"([A-Z]+_[A-Z_]+|UNAUTHORIZED|UNSUPPORTED)"|^(?:HISTORY_PRUNED)\s=\s"(\w+)"
    |_PATH:\s"(\w+_failed)",|"(account_locked)"\sif|else\s"(unauthorized)\"""",
    re.VERBOSE | re.MULTILINE,
)


def test_every_code_that_is_sent_stands_in_the_catalogue() -> None:
    sent: set[str] = set()
    for room in ("edge", "session", "feeds", "sql", "engine", "protocol"):
        for file in (SRC / room).rglob("*.py"):
            for found in _SENT.finditer(file.read_text(encoding="utf-8")):
                sent |= {each for each in found.groups() if each}
    sent.discard("ACCOUNT_LOCKED")  # which the sign-in shows as account_locked
    known = {code.name for code in CATALOGUE}
    assert len(sent) > 40, "the search finds what it is for"
    assert sent - known == set()
    assert known - sent <= {"download_failed"}, "nothing stands there that is never sent"


def test_a_code_stands_once_for_each_wire() -> None:
    places = [(code.wire, code.name) for code in CATALOGUE]
    assert len(places) == len(set(places))


def test_the_page_is_current() -> None:
    written = (SRC.parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == page(), "print it anew: python -m upwell.protocol.codes > docs/errors.md"
