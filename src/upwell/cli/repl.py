"""`upwell sql`: run statements and print what they gave, once or line by line.

Law: a refused statement is one line, `ERROR <code>: <message>`, and never ends the session.
"""

import contextlib
import re
import sys
from typing import Any, TextIO

import msgspec

from upwell.client import Client, ClientError, ConnectionLost, Result, ServerError
from upwell.client.values import read_results

_HELP = r"""A statement ends with ; at the end of a line. USE namespace; holds for those after it.
  \?  this help (also: help)
  \q  leave (also: exit, quit, Ctrl-D)
Ctrl-C drops an unfinished statement."""

_CLOSED_PARTS = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*(?:\n|$)|/\*.*?\*/", re.DOTALL)
_OPEN_PART = re.compile(r"'|\"|/\*")
# What a terminal would obey instead of show.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_ESCAPES = _CONTROLS | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_USE = re.compile(r"\s*(USE|SET\s+NAMESPACE)\b", re.IGNORECASE)
_SWITCHED = re.compile(r"Namespace switched to '(\w+)'")
_LEAVE = (r"\q", "exit", "quit")
_ASK = (r"\?", "help")
_INTERRUPTED = "\x03"
_PROMPTS = ("upwell> ", "   ...> ")


def run_sql(
    client: Client,
    text: str,
    *,
    as_json: bool,
    out: TextIO,
    errors: TextIO | None = None,
    as_user: str | None = None,
) -> int:
    """Run `text`, print its results to `out` and an error to `errors` (default: `out`).

    Returns 0, or 1 if it failed.
    """
    sql = text if as_user is None or _USE.match(text) else wrap_as_user(as_user, text)
    errors = errors or out
    try:
        response = client.request(sql)
        for done in response.results:
            switched = _SWITCHED.fullmatch(done.message or "")
            if switched is not None:  # for the server it ends with the request
                client.use(switched[1])
        if as_json:
            _print_json(msgspec.json.encode(response), out)
        else:
            for result in read_results(response).results:
                _print_result(result, out)
    except ServerError as error:
        if as_json and error.body:
            _print_json(error.body, out)
        else:
            _print_error(error.code, error.message, errors)
        return 1
    except ConnectionLost as error:
        _print_error("CONNECTION_LOST", str(error), errors)
        return 1
    except ClientError as error:
        _print_error("CLIENT_ERROR", str(error), errors)
        return 1
    return 0


def repl(
    client: Client,
    *,
    out: TextIO | None = None,
    source: TextIO | None = None,
    as_json: bool = False,
    as_user: str | None = None,
) -> int:
    r"""Read statements from `source` (default: stdin) until its end or `\q` and run each.

    Returns 0 if somebody typed them; for other sources 1 if one failed.
    """
    out, source = out or sys.stdout, source or sys.stdin
    interactive = source.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` history and editing)
        print(r"upwell: \? for help, \q to leave", file=out)
    failed = 0
    buffer = ""
    while (line := _read_line(source, _PROMPTS[bool(buffer)] if interactive else None)) is not None:
        if line == _INTERRUPTED:
            buffer = ""
            continue
        word = line.strip().removesuffix(";").rstrip().lower() if _is_blank(buffer) else ""
        if word in _LEAVE:
            break
        if word in _ASK:
            print(_HELP, file=out)
            continue
        if word.startswith("\\"):
            print(rf"upwell: unknown command {_shown(line.strip())} (\? for help)", file=out)
            failed = 1
            continue
        buffer = f"{buffer}\n{line}" if buffer else line
        if not buffer.strip():
            buffer = ""
        elif is_complete(buffer):
            failed |= run_sql(client, buffer, as_json=as_json, out=out, as_user=as_user)
            buffer = ""
    if not _is_blank(buffer) and not interactive:
        failed |= run_sql(client, buffer, as_json=as_json, out=out, as_user=as_user)
    return 0 if interactive else failed


def wrap_as_user(user: str, text: str) -> str:
    """Return the one statement in `text` as run by `user`."""
    statement = text.strip().rstrip(";").rstrip()
    name = user.replace("'", "''")
    # The line break ends a comment that the statement may end with.
    return f"EXECUTE AS USER '{name}' ({statement}\n)"


def is_complete(text: str) -> bool:
    """Whether `text` ends with a `;` that is neither quoted nor in a comment."""
    bare = _without_comments(text)
    # Every closed text is `''` by now; what else opens is still open.
    return not _OPEN_PART.search(bare.replace("''", "")) and bare.rstrip().endswith(";")


def _is_blank(text: str) -> bool:
    return not _without_comments(text).strip()


def _without_comments(text: str) -> str:
    """Return `text` without comments, and with `''` for each quoted text."""
    return _CLOSED_PARTS.sub(lambda part: "''" if part[0][0] in "'\"" else " ", text)


def _read_line(source: TextIO, prompt: str | None) -> str | None:
    if prompt is None:
        line = source.readline()
        return line.rstrip("\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return _INTERRUPTED


def _print_result(result: Result, out: TextIO) -> None:
    if result.message is not None:
        print(result.message, file=out)
    if not result.schema:
        return
    cells = [[_shown(cell) for cell in row] for row in result.rows]
    widths = [max(map(len, column)) for column in zip(result.columns, *cells, strict=True)]
    to_right = [any(_is_number(row[index]) for row in result.rows) for index in range(len(widths))]
    print(_line(list(result.columns), widths, to_right), file=out)
    print("-+-".join("-" * width for width in widths), file=out)
    for row in cells:
        print(_line(row, widths, to_right), file=out)
    print(f"({result.row_count} row{'' if result.row_count == 1 else 's'})", file=out)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _line(cells: list[str], widths: list[int], to_right: list[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, to_right, strict=True)
    ]
    return " | ".join(padded).rstrip()


def _shown(cell: Any) -> str:
    if cell is None:
        return "NULL"
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, bytes):
        return "\\x" + cell.hex()
    return str(cell).translate(_ESCAPES)


def _print_json(body: bytes, out: TextIO) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        body = msgspec.json.format(body, indent=2)
    print(body.decode(errors="replace"), file=out)


def _print_error(code: str, message: str, out: TextIO) -> None:
    print(f"ERROR {code}: {message}", file=out)
