"""Salvage: an upload of which a payload can't be read, taken apart, so that this one change is refused alone.

Law: what can be read says the same as in the request; a payload is the bytes that came in, read or not.
"""

import re
from collections.abc import Iterator

import msgspec

from upwell.protocol import sync

# A text without an end is one to the end of all, so that a body costs one pass, whatever is in it.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}:,]', re.DOTALL)
_CHANGE_DEPTH = 3
"""Of the keys of a change: request, list of changes, change."""


def decode_upload_request(body: bytes) -> sync.UploadRequest:
    """Return a request; raise what `msgspec` raises if it can't be read even without its payloads."""
    try:
        return sync.decode_upload_request(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        spans = list(_payloads(body))
        if not spans:
            raise
    pieces, at = [], 0
    for _, start, end in spans:
        pieces += [body[at:start], b"null"]
        at = end
    request = sync.decode_upload_request(b"".join([*pieces, body[at:]]))
    changes = request.changes or []
    for index, start, end in spans:
        if index < len(changes):
            changes[index].payload = msgspec.Raw(body[start:end].strip())
    return request


def _payloads(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where the payloads of changes are: index of the change, begin and end of the value."""
    depth, index, key, start = 0, -1, b"", None
    last, is_in_changes = b"", False
    for token in _TOKEN.finditer(body):
        text = token.group()
        if depth == _CHANGE_DEPTH and is_in_changes and start is not None and text in b",}":
            yield index, start, token.start()
            start = None
        if text in b"{[":
            depth += 1
            is_in_changes = is_in_changes or (depth == _CHANGE_DEPTH - 1 and key == b'"changes"')
            index += depth == _CHANGE_DEPTH and is_in_changes
        elif text in b"}]":
            is_in_changes = is_in_changes and depth >= _CHANGE_DEPTH
            depth -= 1
        elif text == b":":
            key = last if depth == 1 else key
            if depth == _CHANGE_DEPTH and is_in_changes and last == b'"payload"':
                start = token.end()
        last = text
