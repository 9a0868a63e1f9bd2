"""Three-way merge of trees. Pure.

A change on one side is applied to the other; the same change on both sides is no conflict. Where both sides changed a path
differently, ours keeps the path and theirs is stored below `CONFLICTS`: nothing that was written on either side
is missing from the merged tree. A change wins over a removal. A `.git` folder is merged as a whole, since half
of one side's and half of the other's is not a repository.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from midwatch.content.tree import (
    MAX_PATH,
    NO_CHANGE,
    Delta,
    Entry,
    Tree,
    delta_between,
    version_of,
)

CONFLICTS = ".midwatch-conflicts"
"""The folder of the other side's entries in conflicts: `CONFLICTS/VERSION/PATH`, with 8 digits of its version."""
FOLDER = Entry("folder", 0o755)
"""The entry of a folder that has none of its own, but something in it."""
_GIT_FOLDER = re.compile(r"(?:.*?/)?\.git(?=/|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of a merge.

    Attributes:
        tree: What both sides become.
        to_apply_locally: The change from ours to `tree`.
        to_push: The change from theirs to `tree`.
        conflicts: For each path in conflict, where their entry is in `tree`.
    """

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
    """Merge two trees.

    Args:
        base: What both sides had when they were last equal.
        ours: The local tree.
        theirs: The other side's tree.
        owned: Returns whether a path stays as it is in `ours`, whatever they did.
    """
    changes = NO_CHANGE if theirs is base else delta_between(base, theirs)
    tree, lost = dict(ours), dict[str, Entry]()
    if not changes:
        return Merged(tree, NO_CHANGE, delta_between(theirs, tree), {})
    changed = [*changes.put, *changes.removed]
    lost.update(_rejected(base, ours, theirs, filter(owned, changed)))
    changed = [path for path in changed if not owned(path)]
    _merge_paths(tree, lost, base, ours, theirs, changed)
    _merge_git_folders(tree, lost, base, ours, theirs, changed)
    _add_parents(tree, lost, base, ours, theirs)
    conflicts = _store_conflicts(tree, lost, theirs) if lost else {}
    return Merged(
        tree, delta_between(ours, tree), delta_between(theirs, tree), conflicts
    )


def _rejected(
    base: Tree, ours: Tree, theirs: Tree, paths: Iterable[str]
) -> Iterator[tuple[str, Entry]]:
    """Yield their changes of owned paths."""
    for path in paths:
        their, our, was = theirs.get(path), ours.get(path), base.get(path)
        if their is None or their.kind == "folder":
            continue
        if not any(one and _is_same(one, their) for one in (our, was)):
            yield path, their


def git_folder_of(path: str) -> str | None:
    """Return the `.git` folder that this path is, or is in; None without one."""
    found = _GIT_FOLDER.match(path) if ".git" in path else None
    return found.group() if found else None


def folders_above(path: str) -> Iterator[str]:
    """Yield `a`, `a/b` for `a/b/c`."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def tree_order(path: str) -> str:
    """Return a sort key: a folder comes before its entries, and these before the folder's next sibling."""
    return path.replace("/", "\0")


def _merge_paths(
    tree: dict[str, Entry],
    lost: dict[str, Entry],
    base: Tree,
    ours: Tree,
    theirs: Tree,
    changed: Iterable[str],
) -> None:
    for path in changed:
        if git_folder_of(path) is None:
            was, our, their = base.get(path), ours.get(path), theirs.get(path)
            entry = their if our == was else _resolve(was, our, their)
            if entry is None:
                tree.pop(path, None)
            else:
                tree[path] = entry
                if their is not None and _is_lost(their, entry, was):
                    lost[path] = their


def _resolve(was: Entry | None, our: Entry | None, their: Entry | None) -> Entry | None:
    """Return the entry of a path that both sides changed, perhaps to the same."""
    if our is None or their is None:
        return our or their
    if our.kind != their.kind:
        return our
    before = was if was and was.kind == our.kind else None
    mode = their.mode if before and our.mode == before.mode else our.mode
    content = their if before and _same_content(our, before) else our
    return replace(content, mode=mode)


def _is_same(one: Entry, other: Entry) -> bool:
    return one.kind == other.kind and _same_content(one, other)


def _same_content(one: Entry, other: Entry) -> bool:
    return one.chunks == other.chunks and one.target == other.target


def _is_lost(their: Entry, entry: Entry, was: Entry | None) -> bool:
    """Return whether the merged entry lacks a change of theirs; the mode of a folder does not count."""
    if their.kind == "folder" or _is_same(entry, their):
        return False
    return not (was and _is_same(was, their))


def _merge_git_folders(
    tree: dict[str, Entry],
    lost: dict[str, Entry],
    base: Tree,
    ours: Tree,
    theirs: Tree,
    changed: Iterable[str],
) -> None:
    folders = {git for path in changed if (git := git_folder_of(path)) is not None}
    if not folders:
        return
    was, our, their = (_git_folders(side, folders) for side in (base, ours, theirs))
    for git in folders:
        mine, other = our.get(git, {}), their.get(git, {})
        if mine == other or (not other and mine != was.get(git, {})):
            continue
        if mine and mine != was.get(git, {}):
            lost.update({p: e for p, e in other.items() if e.kind != "folder"})
            continue
        for path in mine:
            del tree[path]
        tree.update(other)


def _git_folders(tree: Tree, wanted: set[str]) -> dict[str, dict[str, Entry]]:
    found: dict[str, dict[str, Entry]] = {}
    for path, entry in tree.items():
        if (git := git_folder_of(path)) in wanted and git is not None:
            found.setdefault(git, {})[path] = entry
    return found


def _add_parents(
    tree: dict[str, Entry],
    lost: dict[str, Entry],
    base: Tree,
    ours: Tree,
    theirs: Tree,
) -> None:
    """Make every path that has something below it a folder.

    If one side has a file and the other something below it, ours stays.
    """
    valid = {""}
    for path in sorted(tree, key=tree_order):
        if path.rpartition("/")[0] in valid:
            continue
        for above in folders_above(path):
            entry = tree.get(above)
            if entry is None:
                tree[above] = _folder_of(above, ours, theirs, base)
            elif entry.kind != "folder":
                if above in ours and ours[above].kind != "folder":
                    if (below := tree.pop(path)).kind != "folder":
                        lost[path] = below
                    break
                lost[above] = entry
                tree[above] = _folder_of(above, ours, base)
            valid.add(above)


def _folder_of(path: str, *trees: Tree) -> Entry:
    entries = (tree.get(path) for tree in trees)
    return next((e for e in entries if e and e.kind == "folder"), FOLDER)


def _store_conflicts(
    tree: dict[str, Entry], lost: Mapping[str, Entry], theirs: Tree
) -> dict[str, str]:
    """Add their entries below `CONFLICTS`. Return where each of them is."""
    version = version_of(theirs)[:8]
    number, paths = 1, _conflict_paths(f"{CONFLICTS}/{version}", lost)
    while any(_is_occupied(tree, paths[path], lost[path]) for path in paths):
        number += 1
        paths = _conflict_paths(f"{CONFLICTS}/{version}-{number}", lost)
    for path, target in paths.items():
        tree[target] = lost[path]
        for above in folders_above(target):
            tree.setdefault(above, FOLDER)
    return paths


def _conflict_paths(folder: str, lost: Iterable[str]) -> dict[str, str]:
    paths = {path: f"{folder}/{path}" for path in lost}
    for path, target in paths.items():
        if len(os.fsencode(target)) > MAX_PATH:
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()
            paths[path] = f"{folder}/{digest}"
    return paths


def _is_occupied(tree: Tree, path: str, entry: Entry) -> bool:
    above = (tree.get(folder) for folder in folders_above(path))
    return tree.get(path, entry) != entry or any(
        e is not None and e.kind != "folder" for e in above
    )
