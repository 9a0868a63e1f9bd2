"""How monitors share the subjects: who watches what, as fairly as their settings allow, with as few moves as that takes.

A monitor is a member for as long as its lease lasts. All of this is pure; `midwatch.store.shares` keeps it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Member:
    """A monitor that takes its share.

    Attributes:
        id: Unlike that of any other process, also of one with the same name.
        name: Its name in heartbeats, which is shown.
        process: Which process of which machine it is (`midwatch.process_identity`); "" if unknown.
        knows: The names of the subjects in its settings.
        lease: Seconds from a renewal until its subjects may be given to others.
    """

    id: str
    name: str
    process: str
    knows: frozenset[str]
    lease: float

    @cached_property
    def digest(self) -> str:
        """What is equal for members that know the same subjects."""
        text = "\0".join(sorted(self.knows))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Share:
    """What a member watches.

    Attributes:
        subjects: Their names.
        members: The number of members.
        next_end: Seconds until the lease of another member ends if that is not renewed; None without others.
        version: Changes with the members. Empty if their shares have to be computed again.
        given: How often this member was given subjects by others.
    """

    subjects: frozenset[str]
    members: int = 1
    next_end: float | None = None
    version: str = ""
    given: int = 0


def fair_shares(
    knows: Mapping[str, frozenset[str]], held: Mapping[str, str | None]
) -> dict[str, str]:
    """Return who is to watch each subject that a member knows.

    Who holds a subject keeps it, as long as no other member that knows it has two subjects less. A subject that only one
    member knows is always its own. The result is the same for every member that computes it from the same rows.

    Args:
        knows: The subjects that each member knows, by its id.
        held: Who holds each subject now; anything but a member that knows it counts as no one.
    """
    able = _able(knows)
    load: Counter[str] = Counter(dict.fromkeys(knows, 0))
    result: dict[str, str] = {}
    for subject in sorted(able, key=lambda one: (len(able[one]), one)):
        holder = held.get(subject)
        if holder in able[subject]:
            result[subject] = str(holder)
            load[str(holder)] += 1
    for subject in sorted(able.keys() - result, key=lambda one: (len(able[one]), one)):
        chosen = min(able[subject], key=lambda one: (load[one], one))
        result[subject] = chosen
        load[chosen] += 1
    _balance(able, load, result)
    return result


def _able(knows: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """Return which members know each subject."""
    alike: dict[frozenset[str], list[str]] = {}
    for member in sorted(knows):
        alike.setdefault(knows[member], []).append(member)
    able: dict[str, tuple[str, ...]] = {}
    for subjects, members in alike.items():
        for subject in subjects:
            able[subject] = (*able.get(subject, ()), *members)
    return able


def _balance(
    able: Mapping[str, tuple[str, ...]], load: Counter[str], result: dict[str, str]
) -> None:
    """Move subjects from members with many to members with at least two less, until there are none."""
    movable: dict[str, dict[tuple[str, ...], list[str]]] = {one: {} for one in load}
    for subject in sorted(result, reverse=True):
        alike = movable[result[subject]].setdefault(able[subject], [])
        alike.append(subject)
    while (move := _next_move(load, movable)) is not None:
        giver, members, taker = move
        subject = movable[giver][members].pop()
        movable[taker].setdefault(members, []).append(subject)
        result[subject] = taker
        load[giver] -= 1
        load[taker] += 1


def _next_move(
    load: Counter[str],
    movable: Mapping[str, Mapping[tuple[str, ...], Sequence[str]]],
) -> tuple[str, tuple[str, ...], str] | None:
    by_load = sorted(load, key=lambda one: (load[one], one))
    for giver in reversed(by_load):
        for taker in by_load:
            if load[giver] - load[taker] < 2:
                break
            for members, subjects in movable[giver].items():
                if subjects and taker in members:
                    return giver, members, taker
    return None


def version_of(members: Collection[tuple[str, str]]) -> str:
    """Return the version of the members, from their ids and digests."""
    text = "\n".join(f"{id_} {digest}" for id_, digest in sorted(members))
    return hashlib.sha256(text.encode()).hexdigest()
