"""What a scan has so far, or a part of one that may be thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from midwatch.content.sync.stats import Kept
from midwatch.content.tree import Entry, Tree


def carried(base: Tree, path: str) -> Iterator[tuple[str, Entry]]:
    """The entries of `base` at and below a path."""
    if entry := base.get(path):
        yield path, entry
        if entry.kind == "folder":
            below = path + "/"
            yield from ((p, e) for p, e in base.items() if p.startswith(below))


@dataclass(slots=True)
class Found:
    """`kept` are files and symlinks with their signatures, `racy` those of them that may change unseen,
    `unsure` the paths that are as the base had them, `unsent` the notes about those."""

    tree: dict[str, Entry] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    racy: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.tree.update(other.tree)
        self.kept.update(other.kept)
        self.racy |= other.racy
        self.unsure |= other.unsure
        self.notes += other.notes
        self.unsent += other.unsent

    def carry(self, path: str, base: Tree, why: str) -> None:
        self.unsure.add(path)
        self.tree.update(carried(base, path))
        note = f"{ascii(path[:200])} is left as it was: {why}"
        self.notes.append(note)
        self.unsent.append(note)
