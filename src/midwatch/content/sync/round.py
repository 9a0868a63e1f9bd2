"""One round: look at both sides, merge, send ours, bring theirs, and note what both have now.

The order makes it safe to be killed anywhere. The proxy's commit comes first, the local folders next, by a plan that is on
disk before it is begun, and the base last: while it is the old one, what was done already is found to be the same change on
both sides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.content.errors import (
    ChunksMissing,
    ContentDamaged,
    ContentUnavailable,
    VersionConflict,
)
from midwatch.content.sync import apply as stage
from midwatch.content.sync.apply import (
    Plan,
    Staging,
    carry_out,
    delta_from_json,
    delta_to_json,
    plan,
    raise_for_disk_error,
    read_plan,
    write_plan,
)
from midwatch.content.sync.client import ContentClient, Remote
from midwatch.content.sync.merge import Merged, folders_above, merge, unit_of
from midwatch.content.sync.roots import Roots
from midwatch.content.sync.scan import Ignored, Scan, Scanner
from midwatch.content.sync.transfer import download, finish, in_thread, upload
from midwatch.content.tree import (
    CHUNK,
    Delta,
    Entry,
    Tree,
    compact,
    delta_between,
    tree_from_json,
    tree_to_json,
)
from midwatch.files import replace_file

# ------------------------------------------------------------ base
# What both sides had when they were equal last: the base of the merge, on disk.
#
# The first line is a whole tree, each further one a change of it: a sync of ten files among ten thousand writes ten. A last
# line that was not finished does not count.

_LEAST_BYTES = 1 << 20
"""Of changes, before the tree is written anew."""


class BaseFile:
    """`tree`, and `version`: which one that is at the proxy; empty where it is none of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tree: Mapping[str, Entry] = {}
        self.version = ""
        self._whole = 0
        self._size = 0

    def load(self) -> None:
        """Raises OSError, and ContentDamaged for what is no base."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        try:
            first = json.loads(lines[0])
            tree, self.version = tree_from_json(first["tree"]), str(first["version"])
            self._whole = self._size = len(lines[0])
            for line in lines[1:]:
                if line.endswith(b"\n"):
                    tree = self._changed(tree, json.loads(line))
                    self._size += len(line)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ContentDamaged(
                f"{self._path} cannot be read",
                hint="remove it: then the folders are merged as if for the first time",
            ) from error
        self.tree = tree

    def _changed(self, tree: dict[str, Entry], data: Any) -> dict[str, Entry]:
        self.version = str(data["version"])
        return delta_from_json(data).apply(tree)

    def advance(self, delta: Delta, version: str) -> None:
        """From now on it is that. Raises OSError; then it is still what it was."""
        if not delta and version == self.version:
            return
        tree = delta.apply(self.tree)
        data = delta_to_json(delta) | {"version": version}
        line = compact(data) + b"\n"
        changes = self._size - self._whole + len(line)
        if not self._whole or changes > max(self._whole, _LEAST_BYTES):
            self._rewrite(tree, version)
        else:
            self._append(line)
        self.tree, self.version = tree, version

    def _append(self, line: bytes) -> None:
        with self._path.open("r+b") as file:
            # Whatever is behind the last whole line was never told to anybody.
            file.truncate(self._size)
            file.seek(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)

    def _rewrite(self, tree: Mapping[str, Entry], version: str) -> None:
        data = {"version": version, "tree": tree_to_json(tree)}
        line = compact(data) + b"\n"
        replace_file(self._path, line)
        self._whole = self._size = len(line)


# ------------------------------------------------------------ owned
# Files that the proxy's side alone writes, line by line: here only its new lines are appended.
#
# The session's mailbox is one. Its reader knows it by byte offset, so that it is never replaced; and what the session has
# read already is never read again, whatever became of the connection.

_CHUNKS = 16
"""Taken at a time; the rest in the next round."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


async def merge_appended_lines(
    client: ContentClient, roots: Roots, path: str, theirs: Entry, ours: Entry | None
) -> None:
    """Append the whole lines that are new. Raises OSError for a local file that cannot be appended to."""
    same = _shared(ours.chunks if ours else (), theirs.chunks)
    wanted = theirs.chunks[same : same + _CHUNKS]
    pieces = {name: data async for name, data in client.read_chunks(wanted)}
    data = b"".join(pieces.get(name, b"") for name in wanted)
    await in_thread(_append, roots, path, same * CHUNK, data[: data.rfind(b"\n") + 1])


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many chunks they begin with alike."""
    same = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        same += 1
    return same


def _append(roots: Roots, path: str, start: int, theirs: bytes) -> None:
    """`theirs` are the lines that they have from `start` on."""
    with roots.walker() as walker:
        folder, name = walker.parent(path)
        file = os.open(name, _FLAGS, 0o600, dir_fd=folder)
    try:
        ours = os.pread(file, len(theirs) + CHUNK, start)
        new = _new_lines(ours, theirs)
        while new:
            new = new[os.write(file, new) :]
        os.fsync(file)
    finally:
        os.close(file)


def _new_lines(ours: bytes, theirs: bytes) -> bytes:
    """The rest of a file that was left behind; of one that took another way, the lines that it does not have."""
    if theirs.startswith(ours):
        return theirs[len(ours) :]
    if ours.startswith(theirs):
        return b""
    known = set(ours.splitlines())
    lines = [line for line in theirs.splitlines() if line not in known]
    begun = b"" if ours.endswith(b"\n") or not lines else b"\n"
    return begun + b"".join(line + b"\n" for line in lines)


# ------------------------------------------------------------ scope
# Which paths of a folder the local side has a say in, and how the trees look from there. Pure.


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


TRIES = 8
"""Commits of one round, when others are faster or files change under it."""
Step = Callable[[str], None]
"""Told the name of each step that is about to be taken; a test raises there, as if the process had died."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round did: entries sent and brought, where theirs was kept, what there is to say, and which of that
    is about what was not sent."""

    version: str
    sent: int = 0
    brought: int = 0
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()


class Rounds:
    """Rounds of one local folder and one client, one at a time; everything it remembers is in `state`."""

    def __init__(
        self,
        client: ContentClient,
        scope: Scope,
        scanner: Scanner,
        state: Path,
        step: Step,
    ) -> None:
        self._client = client
        self._scope = scope
        self._scanner = scanner
        self._journal = state / "journal.json"
        self._step = step
        self._loaded = False
        self._foreign: tuple[Tree | None, dict[str, Entry]] = (None, {})
        self._never: dict[str, Entry] = {}
        self._unanswered: dict[str, set[Entry | None]] = {}
        self._taken: dict[str, tuple[Entry | None, Entry]] = {}
        self.base = BaseFile(state / "base.jsonl")

    def load(self) -> None:
        """What was noted last, and the rest of what was begun then. Raises ContentDamaged, ContentUnavailable."""
        try:
            if not self._loaded:
                self.base.load()
                self._loaded = True
            if made := read_plan(self._journal):
                self._carry_out(made)
        except ValueError as error:
            raise ContentDamaged(str(error), hint="remove that file") from error
        except OSError as error:
            raise _local(error) from error

    async def run(
        self, *, push: bool, last: bool = False, unchanged: bool = False
    ) -> Outcome:
        """`unchanged`: somebody watches the proxy, which still has the base's version."""
        await in_thread(self.load)
        scan = await self._scan(last)
        remote, merged = await self._compared(scan, push, unchanged)
        sent = 0
        if push:
            scan, remote, merged, sent = await self._push(scan, remote, merged)
        brought = await self._bring(scan, remote, merged)
        await self._take_lines(scan, remote)
        conflicts = tuple(sorted(merged.conflicts.values())) if push else ()
        return Outcome(
            self.base.version, sent, brought, conflicts, scan.notes, scan.unsent
        )

    async def adopt(self, folder: str) -> Outcome:
        """Everything of another folder becomes ours, where we have nothing else."""
        await in_thread(self.load)
        scan = await self._scan(False)
        other = await self._client.manifest(folder=folder)
        tree = {p: e for p, e in other.tree.items() if self._scope.has(p)}
        merged = merge({}, scan.tree, tree)
        delta = self._for_us(merged.to_apply_locally, scan)[0]
        await self._apply(
            delta, scan, merged.tree, Delta({}, frozenset()), self.base.version, folder
        )
        return Outcome(self.base.version, 0, len(delta.put), (), scan.notes)

    # ------------------------------------------------------------------ looking

    async def _scan(self, last: bool) -> Scan:
        self._step("scan")
        try:
            return await in_thread(self._scanner.scan, self.base.tree, last=last)
        except OSError as error:
            raise _local(error) from error

    async def _compared(
        self, scan: Scan, push: bool, unchanged: bool
    ) -> tuple[Remote, Merged]:
        """What the proxy has, and what that means.

        Whether it still is the base need not be asked where a commit is about to tell.
        """
        base = Remote(self.base.version, self.base.tree)
        if self.base.version:
            merged = await self._merge(scan, base, push)
            if unchanged or (push and merged.to_push):
                return base, merged
        self._step("manifest")
        if not self.base.version:
            found = await self._client.manifest()
        elif (found := await self._client.changed(base)) is base:
            return base, merged
        return found, await self._merge(scan, found, push)

    async def _merge(self, scan: Scan, remote: Remote, own: bool = True) -> Merged:
        return await in_thread(self._merged, scan, remote.tree, own)

    def _merged(self, scan: Scan, remote: Tree, own: bool) -> Merged:
        tree, foreign = self._foreign
        if tree is not remote:
            foreign = self._scope.foreign(remote)
            self._foreign = remote, foreign
        return self._scope.merge(self._base_of(remote), scan, remote, foreign, own=own)

    def _base_of(self, remote: Tree) -> Tree:
        """The base, with what we sent and have not noted, where the proxy has it: it is no change of somebody
        else's."""
        if not self._unanswered or remote is self.base.tree:
            return self.base.tree
        base = dict(self.base.tree)
        for path, sent in self._unanswered.items():
            entry = remote.get(path)
            if entry not in sent:
                continue
            if entry is None:
                base.pop(path, None)
            else:
                base[path] = entry
        return base

    # ------------------------------------------------------------------ sending

    async def _push(
        self, scan: Scan, remote: Remote, merged: Merged
    ) -> tuple[Scan, Remote, Merged, int]:
        known: set[str] | None = None
        for _ in range(TRIES):
            delta = merged.to_push
            if not delta:
                return scan, remote, merged, 0
            if known is None:
                known = {c for e in remote.tree.values() for c in e.chunks}
            if changed := await self._upload(delta, known, scan):
                scan = await in_thread(scan.without, changed, self.base.tree)
                merged = await self._merge(scan, remote)
                continue
            self._step("commit")
            try:
                version = await self._commit(remote, delta, scan)
                return scan, Remote(version, merged.tree), merged, _size(delta)
            except VersionConflict:
                self._step("manifest")
                remote, known = await self._client.changed(remote), None
                merged = await self._merge(scan, remote)
            except ChunksMissing as error:
                known -= set(error.hashes)
        raise ContentUnavailable("the folders change faster than they are sent")

    async def _commit(self, remote: Remote, delta: Delta, scan: Scan) -> str:
        # From here on it may be in place, until the base has it: an answer is lost, or nobody waits for it.
        for path, entry in _ours(delta, scan).items():
            self._unanswered.setdefault(path, set()).add(entry)
        return await self._client.commit(remote.version, delta)

    async def _upload(self, delta: Delta, known: set[str], scan: Scan) -> set[str]:
        wanted = list(dict.fromkeys(c for e in delta.put.values() for c in e.chunks))
        wanted = [chunk for chunk in wanted if chunk not in known]
        if not wanted:
            return set()
        self._step("upload")
        entries = {p: e for p, e in delta.put.items() if p in scan.tree}
        changed = await upload(
            self._client, self._scanner.roots, entries, wanted, scan.captured
        )
        known.update(wanted)
        return changed

    # ------------------------------------------------------------------ bringing

    async def _bring(self, scan: Scan, remote: Remote, merged: Merged) -> int:
        delta, change, version = await in_thread(self._settled, scan, remote, merged)
        await self._apply(delta, scan, merged.tree, change, version)
        self._unanswered.clear()
        return _size(delta)

    def _settled(
        self, scan: Scan, remote: Remote, merged: Merged
    ) -> tuple[Delta, Delta, str]:
        """What to change here, and what the base becomes by it."""
        delta, skipped = self._for_us(merged.to_apply_locally, scan)
        base = next_base(self.base.tree, remote.tree, merged.tree, skipped)
        change = delta_between(self.base.tree, base)
        return delta, change, remote.version if base == remote.tree else ""

    def _for_us(self, delta: Delta, scan: Scan) -> tuple[Delta, set[str]]:
        """What to change here, and what has to stay as it is for now."""
        put, removed, skipped = {}, set(), set()
        for path in [*delta.put, *delta.removed]:
            if "/" not in path or not self._scope.has(path):
                continue
            entry = delta.put.get(path)
            if not scan.is_sure(path) or (entry and self._never.get(path) == entry):
                skipped.add(path)
            elif entry is None:
                removed.add(path)
            else:
                put[path] = entry
        return Delta(put, frozenset(removed)), skipped

    async def _apply(
        self,
        delta: Delta,
        scan: Scan,
        tree: Tree,
        change: Delta,
        version: str,
        folder: str | None = None,
    ) -> None:
        if not delta:
            self._step("base")
            return await self._noted(Plan(delta, {}, base=change, version=version))
        self._step("download")
        roots = self._scanner.roots
        files = {p: e for p, e in delta.put.items() if e.kind != "folder"}
        staged: Mapping[str, str] = {}
        if files:
            ready = Staging(roots, files)
            try:
                await in_thread(ready.open)
                await download(self._client, roots, ready, _files(scan), folder=folder)
                self._step("sync files")
                await in_thread(finish, ready)
                staged = ready.names
            finally:
                ready.close()
        self._step("plan")
        made = plan(delta, scan, tree, staged, change, version)
        await self._noted(made)

    async def _noted(self, made: Plan) -> None:
        try:
            await in_thread(self._finish, made)
        except OSError as error:
            raise _local(error) from error

    def _finish(self, made: Plan) -> None:
        if not made.delta:
            return self.base.advance(made.base, made.version)
        write_plan(self._journal, made)
        self._carry_out(made)

    def _carry_out(self, made: Plan) -> None:
        self._step("apply")
        outcome = carry_out(self._scanner.roots, made, self._step)
        put = made.delta.put
        self._never.update((p, put[p]) for p in outcome.never if p in put)
        skipped = outcome.skipped
        base = Delta(
            {p: e for p, e in made.base.put.items() if p not in skipped},
            made.base.removed - skipped,
        )
        self._step("base")
        self.base.advance(base, "" if skipped else made.version)
        self._step("over")
        self._journal.unlink(missing_ok=True)
        stage.clear_all(self._scanner.roots)

    async def _take_lines(self, scan: Scan, remote: Remote) -> None:
        for path in self._scope.remote_owned:
            theirs, ours = remote.tree.get(path), scan.tree.get(path)
            if theirs is None or theirs.kind != "file" or theirs == ours:
                continue
            if not self._scope.roots.has(path) or self._taken.get(path) == (
                ours,
                theirs,
            ):
                continue
            self._step("lines")
            try:
                await merge_appended_lines(
                    self._client, self._scope.roots, path, theirs, ours
                )
            except OSError as error:
                raise _local(error) from error
            self._taken[path] = (ours, theirs)


def _ours(delta: Delta, scan: Scan) -> dict[str, Entry | None]:
    """What a commit says about paths that are here as it has them; None for those that are gone."""
    put = {p: e for p, e in delta.put.items() if scan.tree.get(p) == e}
    gone = [p for p in delta.removed if p not in scan.tree]
    return {**put, **dict.fromkeys(gone)}


def _files(scan: Scan) -> Mapping[str, Entry]:
    return {path: entry for path, (_, entry) in scan.kept.items()}


def _size(delta: Delta) -> int:
    return len(delta.put) + len(delta.removed)


def _local(error: OSError) -> ContentUnavailable:
    with suppress(ContentUnavailable):
        raise_for_disk_error(error)
    return ContentUnavailable(
        f"the local folders cannot be read or written: {error.strerror or error}",
        hint=f"check {os.fspath(error.filename or 'the folders')!r} and their permissions",
    )
