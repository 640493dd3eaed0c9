"""Components are the sets that reach each other, and those that are needed come first."""

import random

import pytest

from upwell.engine.components import components


def reachable(begin: int, needs: dict[int, list[int]]) -> set[int]:
    found, todo = {begin}, [begin]
    while todo:
        for needed in needs.get(todo.pop(), ()):
            if needed not in found:
                found.add(needed)
                todo.append(needed)
    return found


@pytest.mark.parametrize("seed", range(50))
def test_they_are_what_reaches_each_other_in_the_order_of_need(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randint(1, 9)
    nodes = chance.sample(range(size), size)
    needs = {node: chance.choices(nodes, k=chance.randint(0, 2)) for node in nodes}
    reach = {node: reachable(node, needs) for node in nodes}
    found = components(nodes, needs)
    assert sorted(node for component in found for node in component) == sorted(nodes)
    for component in found:
        for node in component:
            assert set(component) == {other for other in reach[node] if node in reach[other]}
    at = {node: index for index, component in enumerate(found) for node in component}
    assert all(at[needed] <= at[node] for node in nodes for needed in needs[node])


def test_without_needs_the_order_is_as_given() -> None:
    assert components("dbca", {"b": "c"}) == [["d"], ["c"], ["b"], ["a"]]


def test_a_chain_of_any_length() -> None:
    length = 50_000
    needs = {node: [node + 1] for node in range(length)}
    assert components(range(length + 1), needs)[0] == [length]
    assert len(components(range(length + 1), needs | {length: [0]})) == 1
