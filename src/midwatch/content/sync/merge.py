"""Three-way merge of trees. Pure.

What changed on one side only is taken; the same change on both sides is one change. Where both sides changed a
path differently, ours stays where it is and theirs is kept below `CONFLICTS`: nothing that was written on
either side is missing from the merged tree. A change beats a removal. A `.git` folder is one unit, since half
of one side's and half of the other's is no repository.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from midwatch.content.tree import (
    MAX_PATH,
    Delta,
    Entry,
    Tree,
    delta_between,
    version_of,
)

CONFLICTS = ".midwatch-conflicts"
"""Where the other side's version of a conflict is kept, with its path below the first digits of their version."""
FOLDER = Entry("folder", 0o755)
"""A folder that nobody named but that has something in it."""
_UNIT = re.compile(r"(?:.*?/)?\.git(?=/|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Merged:
    """`tree` is what both sides shall become; `conflicts` says where theirs was kept, by path."""

    tree: Mapping[str, Entry]
    to_apply_locally: Delta
    to_push: Delta
    conflicts: Mapping[str, str]


def merge(
    base: Tree,
    ours: Tree,
    theirs: Tree,
    owned: Callable[[str], bool] = lambda path: False,
) -> Merged:
    """`base` is what both sides had when they were equal last. What is `owned` stays as ours is, whatever they did."""
    changed = _changed(base, theirs)
    tree, aside = dict(ours), dict[str, Entry]()
    if not changed:
        return Merged(tree, Delta({}, frozenset()), delta_between(theirs, tree), {})
    aside.update(_refused(base, ours, theirs, filter(owned, changed)))
    changed = [path for path in changed if not owned(path)]
    _take_paths(tree, aside, base, ours, theirs, changed)
    _take_units(tree, aside, base, ours, theirs, changed)
    _shape(tree, aside, base, ours, theirs)
    conflicts = _keep(tree, aside, theirs) if aside else {}
    return Merged(
        tree, delta_between(ours, tree), delta_between(theirs, tree), conflicts
    )


def _changed(base: Tree, theirs: Tree) -> list[str]:
    if theirs is base:
        return []
    delta = delta_between(base, theirs)
    return [*delta.put, *delta.removed]


def _refused(
    base: Tree, ours: Tree, theirs: Tree, paths: Iterable[str]
) -> Iterator[tuple[str, Entry]]:
    """What they changed of what is owned."""
    for path in paths:
        their, our, was = theirs.get(path), ours.get(path), base.get(path)
        if their is None or their.kind == "folder":
            continue
        if not any(one and _is_same(one, their) for one in (our, was)):
            yield path, their


def unit_of(path: str) -> str | None:
    """The `.git` that this path is or is in, or None."""
    found = _UNIT.match(path) if ".git" in path else None
    return found.group() if found else None


def folders_above(path: str) -> Iterator[str]:
    """`a`, `a/b` for `a/b/c`."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def tree_order(path: str) -> str:
    """Sorts a folder before what is in it, and that before the folder's next neighbour."""
    return path.replace("/", "\0")


# ------------------------------------------------------------------ path by path


def _take_paths(
    tree: dict[str, Entry],
    aside: dict[str, Entry],
    base: Tree,
    ours: Tree,
    theirs: Tree,
    changed: Iterable[str],
) -> None:
    for path in changed:
        if unit_of(path) is None:
            was, our, their = base.get(path), ours.get(path), theirs.get(path)
            entry = their if our == was else _settled(was, our, their)
            _put(tree, path, entry)
            if _is_lost(their, entry, was):
                assert their is not None
                aside[path] = their


def _put(tree: dict[str, Entry], path: str, entry: Entry | None) -> None:
    if entry is None:
        tree.pop(path, None)
    else:
        tree[path] = entry


def _settled(was: Entry | None, our: Entry | None, their: Entry | None) -> Entry | None:
    """Both sides changed it, perhaps to the same."""
    if our is None or their is None:
        return our or their
    if our.kind != their.kind:
        return our
    before = was if was and was.kind == our.kind else None
    mode = their.mode if before and our.mode == before.mode else our.mode
    taken = their if before and _same_content(our, before) else our
    return Entry(taken.kind, mode, taken.size, taken.chunks, taken.target)


def _is_same(one: Entry, other: Entry) -> bool:
    return one.kind == other.kind and _same_content(one, other)


def _same_content(one: Entry, other: Entry) -> bool:
    return one.chunks == other.chunks and one.target == other.target


def _is_lost(their: Entry | None, entry: Entry | None, was: Entry | None) -> bool:
    """Whether theirs is a change that the merged entry does not show. The mode of a folder is no loss."""
    if their is None or their.kind == "folder" or entry is None:
        return False
    if _is_same(entry, their):
        return False
    return not (was and _is_same(was, their))


# ------------------------------------------------------------------ `.git` as a unit


def _take_units(
    tree: dict[str, Entry],
    aside: dict[str, Entry],
    base: Tree,
    ours: Tree,
    theirs: Tree,
    changed: Iterable[str],
) -> None:
    units = {unit for path in changed if (unit := unit_of(path)) is not None}
    if not units:
        return
    was, our, their = (_parts(side, units) for side in (base, ours, theirs))
    for unit in units:
        mine, other = our.get(unit, {}), their.get(unit, {})
        if mine == other or (not other and mine != was.get(unit, {})):
            continue
        if mine and mine != was.get(unit, {}):
            aside.update({p: e for p, e in other.items() if e.kind != "folder"})
            continue
        for path in mine:
            del tree[path]
        tree.update(other)


def _parts(tree: Tree, units: set[str]) -> dict[str, dict[str, Entry]]:
    found: dict[str, dict[str, Entry]] = {}
    for path, entry in tree.items():
        if (unit := unit_of(path)) in units and unit is not None:
            found.setdefault(unit, {})[path] = entry
    return found


# ------------------------------------------------------------------ a tree again


def _shape(
    tree: dict[str, Entry],
    aside: dict[str, Entry],
    base: Tree,
    ours: Tree,
    theirs: Tree,
) -> None:
    """Makes folders of all that has something in it.

    A file that has something below it comes from one side and what is below from the other; ours stays.
    """
    fine = {""}
    for path in sorted(tree, key=tree_order):
        if path.rpartition("/")[0] in fine:
            continue
        for above in folders_above(path):
            entry = tree.get(above)
            if entry is None:
                tree[above] = _folder_of(above, ours, theirs, base)
            elif entry.kind != "folder":
                if above in ours and ours[above].kind != "folder":
                    _move_aside(tree, aside, path)
                    break
                aside[above] = entry
                tree[above] = _folder_of(above, ours, base)
            fine.add(above)


def _move_aside(tree: dict[str, Entry], aside: dict[str, Entry], path: str) -> None:
    entry = tree.pop(path)
    if entry.kind != "folder":
        aside[path] = entry


def _folder_of(path: str, *trees: Tree) -> Entry:
    entries = (tree.get(path) for tree in trees)
    return next((e for e in entries if e and e.kind == "folder"), FOLDER)


# ------------------------------------------------------------------ conflicts


def _keep(
    tree: dict[str, Entry], aside: Mapping[str, Entry], theirs: Tree
) -> dict[str, str]:
    version = version_of(theirs)[:8]
    number, places = 1, _places(f"{CONFLICTS}/{version}", aside)
    while any(_taken(tree, places[path], aside[path]) for path in places):
        number += 1
        places = _places(f"{CONFLICTS}/{version}-{number}", aside)
    for path, place in places.items():
        tree[place] = aside[path]
        for above in folders_above(place):
            tree.setdefault(above, FOLDER)
    return places


def _places(folder: str, aside: Iterable[str]) -> dict[str, str]:
    return {path: _place(folder, path) for path in aside}


def _place(folder: str, path: str) -> str:
    place = f"{folder}/{path}"
    if len(os.fsencode(place)) <= MAX_PATH:
        return place
    return f"{folder}/{hashlib.sha256(os.fsencode(path)).hexdigest()}"


def _taken(tree: Tree, place: str, entry: Entry) -> bool:
    above = (tree.get(folder) for folder in folders_above(place))
    return tree.get(place, entry) != entry or any(
        e is not None and e.kind != "folder" for e in above
    )
