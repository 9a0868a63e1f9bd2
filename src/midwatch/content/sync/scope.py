"""Which paths of a folder the local side has a say in, and how the trees look from there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from midwatch.content.sync.merge import Merged, folders_above, merge, unit_of
from midwatch.content.sync.roots import Roots
from midwatch.content.sync.scan import Ignored, Scan
from midwatch.content.tree import Entry, Tree


@dataclass(frozen=True, slots=True)
class Scope:
    """The roots, without what is `ignored` there.

    Of `remote_owned` files the proxy alone decides, of all else in the top folders `local_owned` our side.
    """

    roots: Roots
    remote_owned: frozenset[str]
    ignored: Ignored | None = None
    local_owned: frozenset[str] = frozenset()

    def _is_owned(self, path: str) -> bool:
        top, slash, _ = path.partition("/")
        return bool(slash) and top in self.local_owned and self.has(path)

    def has(self, path: str) -> bool:
        if not self.roots.has(path):
            return False
        if path.endswith(".lock") and unit_of(path):
            return False
        ignored = self.ignored
        return ignored is None or not (
            ignored(path) or any(map(ignored, folders_above(path)))
        )

    def foreign(self, tree: Tree) -> dict[str, Entry]:
        """The entries that are not ours."""
        return {path: entry for path, entry in tree.items() if not self.has(path)}

    def merge(
        self,
        base: Tree,
        scan: Scan,
        remote: Tree,
        foreign: Mapping[str, Entry],
        *,
        own: bool = True,
    ) -> Merged:
        """`foreign` are those of the proxy's tree: in what is not ours, it is right. `own`: nothing is taken
        of what is ours alone."""
        ours = {**scan.tree, **foreign}
        was = base if remote is base else self._common(base, remote, foreign)
        for path in self.remote_owned:
            if entry := remote.get(path):
                ours[path] = entry
        if own and self.local_owned:
            return merge(was, ours, remote, self._is_owned)
        return merge(was, ours, remote)

    def _common(
        self, base: Tree, remote: Tree, foreign: Mapping[str, Entry]
    ) -> dict[str, Entry]:
        """The base of what is ours; of everything else, what the proxy has."""
        # A folder that lost everything is not one in which somebody removed everything.
        was = {p: e for p, e in base.items() if self.has(p)} if remote else {}
        was.update(foreign)
        for path in self.remote_owned:
            was.pop(path, None)
            if entry := remote.get(path):
                was[path] = entry
        return was


def next_base(
    base: Tree, remote: Tree, merged: Tree, skipped: frozenset[str] | set[str]
) -> Mapping[str, Entry]:
    """What both sides have in common when the merged tree is in place here but for what was skipped,
    and the proxy has `remote`."""
    if not skipped and (remote is merged or remote == merged):
        return merged
    found = {}
    for path in remote.keys() | base.keys():
        settled = path not in skipped and merged.get(path) == remote.get(path)
        if entry := (remote if settled else base).get(path):
            found[path] = entry
    return found
