"""Reading: the cold files that one query reads, and what its failure means.

Law: a query doesn't begin on fewer files than its Views name, and one that fails because a file is lost says
which. The query engine lists directories as it begins, takes a file that isn't there for none, and names
none when one fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from upwell.engine.refusal import translated
from upwell.engine.view import View
from upwell.errors import ColdFileMissing, QueryFailure, UpwellError
from upwell.storage.cold import ColdPartition
from upwell.storage.files import Linked

Stream_co = TypeVar("Stream_co", covariant=True)


class Planned(Protocol[Stream_co]):
    """A query that the engine has planned."""

    def execute_stream(self) -> Stream_co: ...


class Reading:
    """A query on `view`, which it keeps: the files that it names stay as long. `cold` is what it reads.

    `is_strict`: nothing is calculated of rows that WHERE leaves out.
    """

    def __init__(self, view: View, *, is_strict: bool = False) -> None:
        self.view = view
        self.is_strict = is_strict
        self.cold: list[tuple[ColdPartition, Linked]] = []

    def begun(self, frame: Planned[Stream_co]) -> Stream_co:
        """Let the query begin; it has listed its files then."""
        stream = frame.execute_stream()
        for partition, linked in self.cold:
            if not linked.is_intact():
                partition.check()
                raise ColdFileMissing(f"cold files linked in {linked.directory} were changed; ask again")
        return stream

    def meaning(self, error: BaseException) -> BaseException:
        """Return the error of a file that is lost, if one is; else what the engine says."""
        if not isinstance(error, UpwellError) or isinstance(error, QueryFailure):
            try:
                for partition, _ in self.cold:
                    partition.check()
            except UpwellError as lost:
                return lost
        return translated(error)

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise what a failure inside means."""
        try:
            yield
        except BaseException as error:
            raise self.meaning(error) from error
