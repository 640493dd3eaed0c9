"""Tables are ordered parents first, also with self-references and cycles."""

from upwell.device.schema import Column, Reference, Tables, TableShape

KEY = Column(name="id", wire="id", is_blob=False, is_text=True)


def table(name: str, *parents: str) -> TableShape:
    references = tuple(Reference(("x",), parent, ("id",)) for parent in parents)
    return TableShape(name, name, (KEY,), KEY, references, has_other_unique=False)


def order(*shapes: TableShape) -> list[str]:
    rank = Tables(shapes).rank
    return sorted(rank, key=rank.__getitem__)


def test_parents_come_first() -> None:
    assert order(table("a", "b"), table("b", "c", "b"), table("c"), table("d", "elsewhere")) == [
        "c",
        "d",
        "b",
        "a",
    ]


def test_a_cycle_is_broken_at_its_first_name() -> None:
    assert order(table("a", "b"), table("b", "a"), table("c", "a")) == ["a", "b", "c"]
