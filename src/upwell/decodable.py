"""Types that are decoded, made ready for it when they are defined.

Law: no thread is the first to work out what a type is like. msgspec fills what it knows of one while it is
in use already: a second thread that decodes it for the first time then reads a null pointer, and the process
is gone.
"""

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decodable(kind: type[T]) -> type[T]:
    """Make a struct or dataclass ready to be decoded; what it holds as well."""
    msgspec.json.Decoder(kind)
    return kind
