"""What depends on what, as a graph: what is reached, in which order, and what belongs to one incident. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator

_NOTHING: frozenset[str] = frozenset()


class LinkGraph:
    """Subjects, each with those that it depends on. Answers are kept until a link is added, but for names without links: these may be any.

    Args:
        links: Pairs of a subject and one that it depends on.
        below: A graph whose links count as well; none may be added to it any more.
    """

    def __init__(
        self, links: Iterable[tuple[str, str]] = (), below: LinkGraph | None = None
    ) -> None:
        self._below = below
        self._needs: defaultdict[str, set[str]] = defaultdict(set)
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        # Greater than those of all that a subject depends on outside of its cycle.
        self._heights: dict[str, int] = {}
        self._leaders: dict[str, str] = {}
        self._reached: dict[str, frozenset[str]] = {}
        self._related: dict[str, frozenset[str]] = {}
        for name, other in links:
            self._put(name, other)

    def add(self, name: str, other: str) -> None:
        """Add a link."""
        known = other in self._all_reached(name)
        self._put(name, other)
        if known:  # then it changes no answer
            return
        for kept in (self._heights, self._leaders, self._reached, self._related):
            kept.clear()

    def _put(self, name: str, other: str) -> None:
        self._needs[name].add(other)
        self._users[other].add(name)

    def needs(self, name: str) -> Collection[str]:
        """Return what a subject depends on directly."""
        own = self._needs.get(name, _NOTHING)
        below = self._below.needs(name) if self._below is not None else _NOTHING
        return {*own, *below} if own and below else own or below

    def _used_by(self, name: str) -> Collection[str]:
        own = self._users.get(name, _NOTHING)
        below = self._below._used_by(name) if self._below is not None else _NOTHING
        return {*own, *below} if own and below else own or below

    def reached(self, name: str) -> frozenset[str]:
        """Return what a subject depends on, directly or through others, without itself."""
        return self._all_reached(name) - {name} if self.needs(name) else _NOTHING

    def deepest_first(self, names: Iterable[str]) -> list[str]:
        """Return names without repetition: what others depend on comes first, else the order stays."""
        wanted = dict.fromkeys(names)
        for name in wanted:
            if name not in self._heights and self.needs(name):
                self._search(name)
        heights = {name: self._heights.get(name, 0) for name in wanted}
        return sorted(wanted, key=heights.__getitem__)

    def related(self, name: str, is_machine: Callable[[str], bool]) -> frozenset[str]:
        """Return what may be of one incident with a subject: what it needs, and who needs it or the same.

        Of machines that it needs only the machines themselves: on a machine alone everything depends.
        """
        if not self.needs(name) and not self._used_by(name):
            return _NOTHING
        key = name if is_machine(name) else self._leader(name)
        if key not in self._related:
            needs = self._all_reached(key)
            near = {one for one in needs if one == name or not is_machine(one)}
            self._related[key] = frozenset(needs | _closure(near, self._used_by))
        return self._related[key] - {name}

    def _all_reached(self, name: str) -> frozenset[str]:
        """Return what is reached, with the subject; all of a cycle reach the same, which is kept once."""
        leader = self._leader(name)
        if leader not in self._reached:
            self._reached[leader] = frozenset(_closure([leader], self.needs))
        return self._reached[leader]

    def _leader(self, name: str) -> str:
        """Return the one that stands for all that depend on each other with a subject."""
        self._search(name)
        return self._leaders[name]

    def _search(self, start: str) -> None:
        """Find the cycles of a subject and of all that it reaches, and their heights.

        The algorithm of Tarjan, "Depth-first search and linear graph algorithms" (1972), without recursion.
        """
        if start in self._leaders:
            return
        order: dict[str, int] = {}
        lowest: dict[str, int] = {}
        waiting: list[str] = []
        path: list[tuple[str, Iterator[str]]] = []

        def enter(name: str) -> None:
            order[name] = lowest[name] = len(order)
            waiting.append(name)
            path.append((name, iter(self.needs(name))))

        enter(start)
        while path:
            name, others = path[-1]
            for other in others:
                if other not in order and other not in self._leaders:
                    enter(other)
                    break
                if other not in self._leaders:
                    lowest[name] = min(lowest[name], order[other])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    lowest[above] = min(lowest[above], lowest[name])
                if lowest[name] == order[name]:
                    cycle = [waiting.pop()]
                    while cycle[-1] != name:
                        cycle.append(waiting.pop())
                    self._keep(cycle)

    def _keep(self, cycle: Collection[str]) -> None:
        """Keep a cycle: what it depends on besides is known already."""
        leader = min(cycle)
        self._leaders.update(dict.fromkeys(cycle, leader))
        below = (
            self._heights[other]
            for name in cycle
            for other in self.needs(name)
            if self._leaders[other] != leader
        )
        height = 1 + max(below, default=-1)
        self._heights.update(dict.fromkeys(cycle, height))


def _closure(
    names: Iterable[str], others: Callable[[str], Collection[str]]
) -> set[str]:
    """Return names and all that is reached from them."""
    found = set(names)
    left = list(found)
    while left:
        new = set(others(left.pop())) - found
        found |= new
        left += new
    return found
