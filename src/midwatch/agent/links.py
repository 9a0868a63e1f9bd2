"""Links between subjects: who depends on whom, by the settings and by what the systems themselves show.

A link comes from `depends_on`, from addresses (two subjects at one address, a subject at an address of a machine
that is watched too), or from text in which a subject names the address or the name of another one: a command
line, a message, a label, a line of evidence. What was read from text is forgotten after a while.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from midwatch.agent.addresses import (
    LONGEST_TEXT,
    addresses_in,
    host_names_in,
    joined,
)
from midwatch.agent.link_graph import LinkGraph
from midwatch.agent.places import Places, Resolve
from midwatch.subjects.base import Address, Subject

_LEARNED_SECONDS = 3600.0
"""Seconds for which a link counts that was read from text."""
_MOST_LEARNED = 1000
"""Links read from text that are kept at least; four for each subject, if these are more."""


@dataclass(frozen=True, slots=True)
class Link:
    """`subject` depends on the subject `on`. `why` says where that was seen."""

    subject: str
    on: str
    why: str


class Links:
    """The links between subjects.

    Args:
        subjects: The watched systems.
        depends_on: Names of the subjects that each depends on, from the settings.
        resolve: Returns the IP addresses of a host name; it may block, and may raise OSError.
        monotonic: The source of time, in seconds.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        depends_on: Mapping[str, Sequence[str]] | None = None,
        *,
        resolve: Resolve | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._written = dict(depends_on or {})
        self._uses = {one.name: str(getattr(one, "uses", "")) for one in subjects}
        self._places = Places(subjects, resolve, monotonic)
        self._monotonic = monotonic
        self._shown: tuple[int, dict[str, dict[str, str]], LinkGraph] | None = None
        self._learned: defaultdict[str, dict[str, tuple[str, float]]]
        self._learned = defaultdict(dict)
        self._count = 0  # of what was learned
        self._most = max(_MOST_LEARNED, 4 * len(subjects))
        self._whole: LinkGraph | None = None
        self._until = math.inf  # until when it holds

    def refresh(self) -> None:
        """Start to resolve host names if that is due; never waits."""
        self._places.refresh()

    def wait(self, seconds: float) -> None:
        """Wait for the host names for `seconds` at most. For commands; it blocks."""
        self._places.wait(seconds)

    # ------------------------------------------------------------------ the links

    def links(self) -> tuple[Link, ...]:
        """Return all links that are known now, each pair once."""
        return tuple(self.among(self._places.addresses))

    def among(self, names: Iterable[str]) -> Iterator[Link]:
        """Yield the links between subjects, those of the first one first."""
        shown, _ = self._show()
        now, wanted = self._monotonic(), dict.fromkeys(names)
        for name in wanted:
            found = dict(shown.get(name, ()))
            for other, (why, until) in self._learned.get(name, {}).items():
                if now < until:
                    found.setdefault(other, why)
            for other, why in found.items():
                if other in wanted:
                    yield Link(name, other, why)

    def reach(self, name: str) -> list[str]:
        """Return the subjects that `name` depends on, directly or through others, the deepest first."""
        return self._graph().deepest_first(sorted(self.reached(name)))

    def reached(self, name: str) -> frozenset[str]:
        """Return the same in no order."""
        return self._graph().reached(name)

    def related(self, name: str) -> frozenset[str]:
        """Return the subjects whose tickets may be of one incident with those of `name`.

        They are those that it depends on, those that depend on it, and those that depend on a system on which it
        depends too; on a machine alone everything depends.
        """
        return self._graph().related(name, self._places.is_machine)

    def deepest_first(self, names: Iterable[str]) -> list[str]:
        """Return names without repetition: what others depend on comes first, else the order stays."""
        return self._graph().deepest_first(names)

    def _graph(self) -> LinkGraph:
        """Return all links as a graph: what was learned above what settings and addresses show."""
        _, shown = self._show()
        now = self._monotonic()
        if self._whole is None or now >= self._until:
            alive = [
                (name, other, until)
                for name, others in list(self._learned.items())
                for other, (_, until) in list(others.items())
                if now < until
            ]
            self._whole = LinkGraph(((name, on) for name, on, _ in alive), shown)
            self._until = min((until for _, _, until in alive), default=math.inf)
        return self._whole

    def _show(self) -> tuple[dict[str, dict[str, str]], LinkGraph]:
        """Return what settings and addresses show: why each subject depends on which, and the graph of that."""
        changes = self._places.changes
        if self._shown is None or self._shown[0] != changes:
            found: dict[str, dict[str, str]] = {}
            for name in self._places.addresses:
                reasons = found[name] = {}
                for other, why in self._of(name):
                    if other != name and other in self._places.addresses:
                        reasons.setdefault(other, why)
            pairs = ((name, other) for name, some in found.items() for other in some)
            self._shown, self._whole = (changes, found, LinkGraph(pairs)), None
        return self._shown[1:]

    def _of(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield what a subject depends on by settings and addresses, with the reasons."""
        for other in self._written.get(name, ()):
            yield other, "depends_on in the settings"
        for address in self._places.addresses[name]:
            if address.port is None:
                continue
            for other in self._places.machines(address.host):
                yield other, f"it is on that machine ({address.host})"
            for other in self._places.at(address, name):
                yield other, f"both are at {address}"
        if text := self._uses[name]:
            for other, said in self.named(name, text).items():
                yield other, f"{said} in its settings"
            for other in self._places.machines("localhost"):
                yield other, "it runs on that machine"

    # ------------------------------------------------------------------ text

    def learn(self, name: str, text: str, where: str) -> None:
        """Remember which subjects a text of subject `name` has addresses of. `where` is shown as the reason."""
        if self._can_learn(name):
            self._remember(name, self.named(name, text), where)

    def _can_learn(self, name: str) -> bool:
        """Return whether what `name` shows can be a link of it.

        A machine shows the addresses of what runs on it, and does not depend on it; and a link needs two subjects.
        """
        known = self._places.addresses
        return len(known) > 1 and name in known and not self._places.is_machine(name)

    def learn_opening(
        self, name: str, message: str, facts: Mapping[str, object]
    ) -> None:
        """Remember which subjects a violation of subject `name` names.

        In the message the full name of a host suffices. The value of a label may be the name of a subject, or a
        host: without a subject at the port all that are there.
        """
        self.learn_openings(name, [(message, facts)])

    def learn_openings(
        self, name: str, openings: Iterable[tuple[str, Mapping[str, object]]]
    ) -> None:
        """Do the same for many violations: a message and facts each."""
        if not self._can_learn(name):
            return
        of_fact: dict[str, dict[str, None]] = defaultdict(dict)
        messages: dict[str, None] = {}
        for message, facts in openings:
            messages[message] = None
            for fact, value in facts.items():
                if isinstance(value, str):
                    of_fact[fact][value] = None
        where = "the message of a ticket"
        for text in joined(messages):
            self.learn(name, text, where)
            hosts = self._places.named(host_names_in(text), name)
            self._remember(name, hosts, where)
        for fact, values in of_fact.items():
            where = f"the fact {fact} of a ticket"
            for text in joined(values):
                self.learn(name, text, where)
            if fact.startswith("label_"):
                for value in values:
                    self._remember(name, self._labelled(name, value.strip()), where)

    def _remember(self, name: str, found: Mapping[str, str], where: str) -> None:
        now, graph = self._monotonic(), self._graph()
        for other, said in found.items():
            if other == name:
                continue
            if self._count >= self._most:
                self._learned.clear()
                self._count = 0
                self._whole = None
            known = self._learned[name]
            self._count += other not in known
            known[other] = (f"{said} in {where}", now + _LEARNED_SECONDS)
            self._until = min(self._until, now + _LEARNED_SECONDS)
            if other not in graph.needs(name):
                graph.add(name, other)

    def named(self, name: str, text: str) -> dict[str, str]:
        """Return the subjects whose addresses a text of subject `name` has, each with the address.

        A loopback address in it means the machine of that subject, not this one.
        """
        return {
            other: str(said)
            for said in addresses_in(text[:LONGEST_TEXT])
            for host in self._from_there(name, said.host)
            for other in self._at(host, said.port, name)
        }

    def _at(self, host: str, port: int | None, name: str) -> list[str]:
        if port is None:
            return self._places.on(host, name)
        return self._places.at(Address(host, port), name)

    def _labelled(self, name: str, value: str) -> dict[str, str]:
        """Return the subjects that the value of a label stands for."""
        if value in self._places.addresses:
            return {value: value}
        if self.named(name, value):
            return {}
        hosts = [one.host for one in addresses_in(value)] or [value.lower()]
        return {
            other: value
            for said in hosts
            for host in self._from_there(name, said)
            for other in self._places.on(host, name)
        }

    def _from_there(self, name: str, host: str) -> list[str]:
        if not self._places.is_here(host) or self._places.is_local(name):
            return [host]
        return [one.host for one in self._places.addresses.get(name, ())]
