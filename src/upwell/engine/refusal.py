"""Refusals: what the query engine says about itself, in words that are of use to who asked.

Law: whatever the engine raises becomes one domain error; text that isn't SQL is told apart from a query
that fails.
"""

import re

from upwell.engine.checked import OVERFLOW
from upwell.errors import InvalidSql, QueryFailure, UpwellError

CATALOG = "upwell"
QUERY_BYTES_MAX = 1024 * 1024 * 1024
_SYNTAX = re.compile(
    r"(?:Parser|Tokenizer)Error\(|RecursionLimitExceeded|\b(?:DDL|DML|Statement) not supported"
)
# What the engine says about itself is of no use to who asked.
_CLEARER = [
    (re.compile(r"^.*\ncaused by\n", re.DOTALL), ""),
    (
        re.compile(
            r"Cannot infer common argument type for comparison operation (?=.*Timestamp)(?=.*Int64).*"
        ),
        "a TIMESTAMP compares with a text or a TIMESTAMP; of microseconds makes one to_timestamp_micros(…)",
    ),
    (re.compile(r"\n*This issue was likely caused by a bug .*", re.DOTALL), ""),
    (
        re.compile(
            r"\b(?:DataFusion|Arrow|Execution|External|SQL|Schema|Internal|Compute|Parquet) error: "
            r"|Error during planning: "
        ),
        "",
    ),
    (re.compile(r"\b(?:Parser|Tokenizer)Error\(\"(.*)\"\)", re.DOTALL), r"\1"),
    (re.compile(rf"\btable '{CATALOG}\.([^']*)' not found"), r"table '\1' not found"),
    (re.compile(r".*RecursionLimitExceeded.*", re.DOTALL), "the statement nests deeper than 50 levels"),
    (
        re.compile(r"\b(?:DDL|DML|Statement) not supported: .*"),
        "a query can only read; SELECT … INTO can't run",
    ),
    (
        re.compile(r".*Resources exhausted: .*", re.DOTALL),
        f"the query needs more than {QUERY_BYTES_MAX >> 20} MiB of memory; narrow it with WHERE",
    ),
    (re.compile(r".*OverflowError.*", re.DOTALL), OVERFLOW),
    (re.compile(r".*ValueError\(.(cannot cast '.*' to \w+).\), traceback.*", re.DOTALL), r"\1"),
    (
        re.compile(r".*Can't cast value (-?\d+) to type Int(16|32|64)\b.*", re.DOTALL),
        r"integer overflow: \1 doesn't fit into \2 bits; cast to BIGINT, or to DECIMAL, where that can be",
    ),
    (
        re.compile(r".*value of (-?\d+) is out of range Int64.*", re.DOTALL),
        r"integer overflow: \1 doesn't fit into 64 bits; cast to DECIMAL where that can be",
    ),
    (
        re.compile(r".*Null byte .* not allowed in name"),
        "a column's name has a NUL character; name it with AS",
    ),
]


def translated(error: BaseException) -> BaseException:
    """Return the domain error for a failure of the engine, and what isn't one as it is."""
    if type(error).__name__ in ("PanicException", "RustPanic"):  # importable from nowhere
        return QueryFailure("the query engine could not handle this query; write it another way")
    if not isinstance(error, Exception) or isinstance(error, UpwellError):
        return error
    text = str(error)
    is_syntax = _SYNTAX.search(text) is not None
    for pattern, replacement in _CLEARER:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    return InvalidSql(text) if is_syntax else QueryFailure(text)
