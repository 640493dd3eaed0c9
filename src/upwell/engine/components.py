"""Components: what needs each other in a circle, taken together.

Law: a component holds all that needs each other, be it by way of others (a strongly connected set, found by
Tarjan's algorithm); it comes after the components that it needs, else in the order in which nodes were given.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

Node = TypeVar("Node", bound=Hashable)


def components(nodes: Iterable[Node], needs: Mapping[Node, Sequence[Node]]) -> list[list[Node]]:
    """Return the components of `nodes`, what others need first; whatever is needed has to be a node."""
    search = _Search(needs)
    for node in nodes:
        search.go_from(node)
    return search.found


class _Search(Generic[Node]):
    """A walk along the needs; without recursion, for a chain may be as long as a table."""

    def __init__(self, needs: Mapping[Node, Sequence[Node]]) -> None:
        self.found: list[list[Node]] = []
        self._needs = needs
        self._number: dict[Node, int] = {}
        # The lowest number that can be reached from a node, among those of no component yet.
        self._lowest: dict[Node, int] = {}
        self._open: dict[Node, None] = {}

    def go_from(self, begin: Node) -> None:
        """Find the components of what `begin` needs, and its own."""
        if begin in self._number:
            return
        path = [(begin, self._enter(begin))]
        while path:
            node, rest = path[-1]
            needed = next((other for other in rest if self._is_new(node, other)), None)
            if needed is not None:
                path.append((needed, self._enter(needed)))
                continue
            path.pop()
            if path:
                self._reach(path[-1][0], self._lowest[node])
            if self._lowest[node] == self._number[node]:
                self.found.append(self._close(node))

    def _enter(self, node: Node) -> Iterator[Node]:
        self._number[node] = self._lowest[node] = len(self._number)
        self._open[node] = None
        return iter(self._needs.get(node, ()))

    def _is_new(self, node: Node, needed: Node) -> bool:
        if needed in self._open:
            self._reach(node, self._number[needed])
        return needed not in self._number

    def _reach(self, node: Node, number: int) -> None:
        self._lowest[node] = min(self._lowest[node], number)

    def _close(self, root: Node) -> list[Node]:
        """Take the component of `root`, which was entered first of it, from what is open."""
        members: list[Node] = []
        while root in self._open:
            members.append(self._open.popitem()[0])
        return members[::-1]
