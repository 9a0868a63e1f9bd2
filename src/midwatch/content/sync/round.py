"""One round of the sync: scan both sides, merge, push ours, apply theirs, and record what both sides have now.

The order makes it safe to be killed at any point. The proxy's commit comes first, the local folders next, by a plan
that is on disk before it begins, and the base last: as long as it is the old one, the steps that were done are found
to be the same change on both sides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.content.errors import (
    ChunksMissing,
    ContentDamaged,
    ContentRefused,
    ContentUnavailable,
    TokenRefused,
    VersionConflict,
)
from midwatch.content.sync.apply import (
    Plan,
    Staging,
    apply_plan,
    clear_all,
    make_plan,
    raise_for_disk_error,
    read_plan,
    write_plan,
)
from midwatch.content.sync.client import ContentClient, Remote
from midwatch.content.sync.merge import Merged, folders_above, git_folder_of, merge
from midwatch.content.sync.roots import Roots, is_denied
from midwatch.content.sync.scan import Ignored, Scan, Scanner
from midwatch.content.sync.transfer import (
    download,
    finish,
    in_thread,
    merge_appended_lines,
    upload,
)
from midwatch.content.tree import (
    NO_CHANGE,
    Delta,
    Entry,
    Tree,
    delta_between,
    delta_from_json,
    tree_from_json,
    tree_text,
)
from midwatch.files import open_regular, read_regular, replace_file

_REWRITE_BYTES = 1 << 20
"""Bytes of changes, at least, before the base file is rewritten."""
_DENIED_ROUNDS = 20
"""Rounds until a change that was not permitted is tried again: each try downloads the file."""
_PUSH_TRIES = 8
"""Commits of one round, when other writers are faster or files change meanwhile."""
Step = Callable[[str], None]
"""Called with the name of each step before it; a test raises there, as if the process were killed."""


@contextmanager
def _map_local_errors() -> Iterator[None]:
    """Turn an OSError about the local folders into ContentFull or ContentUnavailable."""
    try:
        yield
    except OSError as error:
        raise_for_disk_error(error)
        raise ContentUnavailable(
            f"the local folders cannot be read or written: {error.strerror or error}",
            hint=f"check {os.fspath(error.filename or 'the folders')!r} and their permissions",
        ) from error


# ------------------------------------------------------------------ the base


class BaseFile:
    """What both sides had when they were last equal: the base of the merge, on disk.

    The first line is a whole tree, each further one a change of it: a sync of ten files among ten thousand writes
    ten. An incomplete last line does not count.

    Attributes:
        tree: The base.
        version: Its version if the proxy has it; empty for a tree that the proxy does not have.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tree: Mapping[str, Entry] = {}
        self.version = ""
        self._whole = 0
        self._size = 0

    def load(self) -> None:
        """Read the file, if there is one. Raises OSError, and ContentDamaged for an invalid file."""
        try:
            lines = read_regular(self._path).splitlines(keepends=True)
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
                hint="remove it; the folders are then merged as if for the first time",
            ) from error
        self.tree = tree

    def _changed(self, tree: dict[str, Entry], data: Any) -> dict[str, Entry]:
        self.version = str(data["version"])
        return delta_from_json(data).apply(tree)

    def advance(self, delta: Delta, version: str) -> None:
        """Change the base. Raises OSError; the base is then unchanged."""
        if not delta and version == self.version:
            return
        tree = delta.apply(self.tree)
        line = delta.to_bytes(version=version) + b"\n" if self._whole else b""
        changes = self._size - self._whole + len(line)
        if not line or changes > max(self._whole, _REWRITE_BYTES):
            self._rewrite(tree, version)
        else:
            self._append(line)
        self.tree, self.version = tree, version

    def _append(self, line: bytes) -> None:
        with os.fdopen(open_regular(self._path, os.O_RDWR), "r+b") as file:
            # Drop an incomplete line, which never counted.
            file.truncate(self._size)
            file.seek(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)

    def _rewrite(self, tree: Mapping[str, Entry], version: str) -> None:
        line = f'{{"version":"{version}","tree":{tree_text(tree)}}}\n'.encode("ascii")
        replace_file(self._path, line)
        self._whole = self._size = len(line)


# ------------------------------------------------------------------ the scope


@dataclass(frozen=True, slots=True)
class Scope:
    """The paths that are synchronised, and which side owns them. Pure.

    Attributes:
        roots: The local folders.
        remote_owned: Files in which only the proxy's changes count.
        ignored: Paths in the roots that are left out.
        local_owned: Top folders in which only local changes count.
    """

    roots: Roots
    remote_owned: frozenset[str]
    ignored: Ignored | None = None
    local_owned: frozenset[str] = frozenset()

    def _is_owned(self, path: str) -> bool:
        top, slash, _ = path.partition("/")
        return bool(slash) and top in self.local_owned and self.has(path)

    def has(self, path: str) -> bool:
        """Return whether the path is synchronised."""
        if not self.roots.has(path):
            return False
        if path.endswith(".lock") and git_folder_of(path):
            return False
        ignored = self.ignored
        return ignored is None or not (
            ignored(path) or any(map(ignored, folders_above(path)))
        )

    def foreign(self, tree: Tree) -> dict[str, Entry]:
        """Return the entries out of scope."""
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
        """Merge the scan with the proxy's tree.

        Args:
            base: What both sides had when they were last equal.
            scan: The local tree.
            remote: The proxy's tree.
            foreign: Its entries out of scope, which stay as they are.
            own: Whether to reject remote changes in `local_owned` folders.
        """
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
        """Return the base of what is in scope, and the proxy's entries of everything else."""
        # An empty tree means that the folder was lost, not that everything in it was removed.
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
    """Return what both sides have in common after the local side has applied `merged` except for what it skipped,
    and the proxy has `remote`."""
    if not skipped and (remote is merged or remote == merged):
        return merged
    found = {}
    for path in remote.keys() | base.keys():
        settled = path not in skipped and merged.get(path) == remote.get(path)
        if entry := (remote if settled else base).get(path):
            found[path] = entry
    return found


# ------------------------------------------------------------------ rounds


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round did: the version of the base, entries pushed and applied, paths of conflicts, and messages."""

    version: str
    sent: int = 0
    applied: int = 0
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unsent: tuple[str, ...] = ()
    unapplied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Denied:
    """A change that this user may not make: to `entry` (None: a removal), and the round that tries it `again`."""

    entry: Entry | None
    why: str
    again: int


class Rounds:
    """Runs rounds, one at a time.

    Args:
        client: The proxy's folder.
        scope: What is synchronised.
        scanner: Scans the local folders.
        state: The folder of the base and the plan.
        step: Called before each step.
    """

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
        self._plan = state / "journal.json"
        self._step = step
        self._loaded = False
        self._foreign: tuple[Tree | None, dict[str, Entry]] = (None, {})
        self._impossible: dict[str, Entry] = {}
        self._denied: dict[str, _Denied] = {}
        self._number = 0
        self._unanswered: Mapping[str, frozenset[Entry | None]] = {}
        self._appended: dict[str, tuple[Entry | None, Entry]] = {}
        self.base = BaseFile(state / "base.jsonl")

    def load(self) -> None:
        """Read the base, and finish a plan that was begun. Raises ContentDamaged, ContentFull, ContentUnavailable."""
        try:
            with _map_local_errors():
                if not self._loaded:
                    self.base.load()
                    self._loaded = True
                if plan := read_plan(self._plan):
                    self._apply_plan(plan)
        except ValueError as error:
            raise ContentDamaged(str(error), hint="remove that file") from error

    async def run(
        self, *, push: bool, last: bool = False, unchanged: bool = False
    ) -> RoundResult:
        """Run a round.

        Args:
            push: Whether to send local changes.
            last: Whether no program runs in the local folders any more, so that every git lock is stale.
            unchanged: Whether the proxy is known to still have the base's version, because it is watched.
        """
        try:
            return await self._run(push, last, unchanged)
        finally:
            if last:
                await in_thread(self._scanner.close_again)

    async def _run(self, push: bool, last: bool, unchanged: bool) -> RoundResult:
        self._number += 1
        await in_thread(self.load)
        scan = await self._scan(last)
        remote, merged = await self._compare(scan, push, unchanged)
        sent = 0
        if push:
            scan, remote, merged, sent = await self._push(scan, remote, merged)
        applied = await self._apply_remote(scan, remote, merged)
        await self._append_lines(scan, remote)
        conflicts = tuple(sorted(merged.conflicts.values())) if push else ()
        return RoundResult(
            self.base.version,
            sent,
            applied,
            conflicts,
            scan.notes,
            scan.unsent,
            self._unapplied(),
        )

    async def adopt(self, folder: str) -> RoundResult:
        """Copy everything from another folder, except where the local folders differ."""
        await in_thread(self.load)
        scan = await self._scan(False)
        other = await self._client.manifest(folder=folder)
        tree = {p: e for p, e in other.tree.items() if self._scope.has(p)}
        merged = merge({}, scan.tree, tree)
        delta = self._local_change(merged.to_apply_locally, scan)[0]
        await self._apply(
            delta, scan, merged.tree, NO_CHANGE, self.base.version, folder
        )
        return RoundResult(self.base.version, 0, len(delta.put), (), scan.notes)

    # -------------------------------------------------- comparing

    async def _scan(self, last: bool) -> Scan:
        self._step("scan")
        with _map_local_errors():
            return await in_thread(self._scanner.scan, self.base.tree, last=last)

    async def _compare(
        self, scan: Scan, push: bool, unchanged: bool
    ) -> tuple[Remote, Merged]:
        """Return the proxy's tree and the merge with it.

        The proxy is not asked if the commit that follows fails anyway when it no longer has the base.
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
        """Return the base, with the entries of unanswered commits that the proxy has: this side wrote them."""
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

    # -------------------------------------------------- pushing

    async def _push(
        self, scan: Scan, remote: Remote, merged: Merged
    ) -> tuple[Scan, Remote, Merged, int]:
        known: set[str] | None = None
        for _ in range(_PUSH_TRIES):
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
                return scan, Remote(version, merged.tree), merged, len(delta)
            except VersionConflict:
                self._step("manifest")
                remote, known = await self._client.changed(remote), None
                merged = await self._merge(scan, remote)
            except ChunksMissing as error:
                known -= set(error.hashes)
        raise ContentUnavailable(
            f"the folders changed during each of {_PUSH_TRIES} tries to send them"
        )

    async def _commit(self, remote: Remote, delta: Delta, scan: Scan) -> str:
        # From here on, until the base has it, it may be applied: its response may be lost, or the caller cancelled.
        before = self._unanswered
        none = frozenset[Entry | None]()
        sent = {p: before.get(p, none) | {e} for p, e in _ours(delta, scan).items()}
        self._unanswered = {**before, **sent}
        try:
            return await self._client.commit(remote.version, delta)
        except TokenRefused:  # an earlier try may have been in time
            raise
        except ContentRefused:  # it is about the commit, so no earlier try was applied
            self._unanswered = before
            raise

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

    # -------------------------------------------------- applying

    async def _apply_remote(self, scan: Scan, remote: Remote, merged: Merged) -> int:
        """Apply the proxy's changes to the local folders, and update the base. Return the number of entries."""

        def prepare() -> tuple[Delta, Delta, str]:
            delta, skipped = self._local_change(merged.to_apply_locally, scan)
            base = next_base(self.base.tree, remote.tree, merged.tree, skipped)
            change = delta_between(self.base.tree, base)
            return delta, change, remote.version if base == remote.tree else ""

        wanted = merged.to_apply_locally
        self._denied = {
            path: denied
            for path, denied in self._denied.items()
            if path in wanted.put
            or path in wanted.removed
            or path in self._scope.remote_owned
        }
        self._impossible = {
            path: entry
            for path, entry in self._impossible.items()
            if wanted.put.get(path) == entry
        }
        delta, change, version = await in_thread(prepare)
        await self._apply(delta, scan, merged.tree, change, version)
        self._unanswered = {}
        return len(delta)

    def _local_change(self, delta: Delta, scan: Scan) -> tuple[Delta, set[str]]:
        """Return the change of the local folders, and the paths that cannot be changed in this round."""
        put, removed, skipped = {}, set(), set()
        for path in [*delta.put, *delta.removed]:
            if "/" not in path or not self._scope.has(path):
                continue
            entry = delta.put.get(path)
            if not scan.is_sure(path) or self._is_hopeless(path, entry):
                skipped.add(path)
            elif entry is None:
                removed.add(path)
            else:
                put[path] = entry
        return Delta(put, frozenset(removed)), skipped

    def _is_hopeless(self, path: str, entry: Entry | None) -> bool:
        """Return whether this change failed for good, or so recently that it is not tried again yet."""
        if entry is not None and self._impossible.get(path) == entry:
            return True
        denied = self._denied.get(path)
        if denied is None:
            return False
        if denied.entry == entry and self._number < denied.again:
            return True
        del self._denied[path]
        return False

    def _unapplied(self) -> tuple[str, ...]:
        return tuple(
            f"{ascii(path[:200])} cannot be changed here: {denied.why}"
            for path, denied in sorted(self._denied.items())
        )

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
            return await self._finish(Plan(delta, {}, base=change, version=version))
        self._step("download")
        roots = self._scanner.roots
        files = {p: e for p, e in delta.put.items() if e.kind != "folder"}
        staged: Mapping[str, str] = {}
        if files:
            staging = Staging(roots, files)
            present = {path: entry for path, (_, entry) in scan.files.items()}
            try:
                await in_thread(staging.open)
                await download(self._client, roots, staging, present, folder=folder)
                self._step("sync files")
                await in_thread(finish, staging)
                staged = staging.names
            finally:
                staging.close()
        self._step("plan")
        await self._finish(make_plan(delta, scan, tree, staged, change, version))

    async def _finish(self, plan: Plan) -> None:
        def finish() -> None:
            if not plan.delta:
                return self.base.advance(plan.base, plan.version)
            write_plan(self._plan, plan)
            self._apply_plan(plan)

        with _map_local_errors():
            await in_thread(finish)

    def _apply_plan(self, plan: Plan) -> None:
        self._step("apply")
        applied = apply_plan(self._scanner.roots, plan, self._step)
        put = plan.delta.put
        self._impossible.update((p, put[p]) for p in applied.impossible if p in put)
        for path, why in applied.denied.items():
            again = self._number + _DENIED_ROUNDS
            self._denied[path] = _Denied(put.get(path), why, again)
        skipped = applied.skipped
        base = Delta(
            {p: e for p, e in plan.base.put.items() if p not in skipped},
            plan.base.removed - skipped,
        )
        self._step("base")
        self.base.advance(base, "" if skipped else plan.version)
        self._step("over")
        self._plan.unlink(missing_ok=True)
        clear_all(self._scanner.roots)

    async def _append_lines(self, scan: Scan, remote: Remote) -> None:
        for path in self._scope.remote_owned:
            theirs, ours = remote.tree.get(path), scan.tree.get(path)
            if theirs is None or theirs.kind != "file" or theirs == ours:
                continue
            roots = self._scope.roots
            if not roots.has(path) or self._appended.get(path) == (ours, theirs):
                continue
            if self._is_hopeless(path, theirs):
                continue
            self._step("lines")
            try:
                with _map_local_errors():
                    await merge_appended_lines(self._client, roots, path, theirs, ours)
            except ContentUnavailable as error:
                if not _is_about_permissions(error):
                    raise
                again = self._number + _DENIED_ROUNDS
                self._denied[path] = _Denied(theirs, "Permission denied", again)
                continue
            self._denied.pop(path, None)
            self._appended[path] = (ours, theirs)


def _is_about_permissions(error: ContentUnavailable) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and is_denied(cause)


def _ours(delta: Delta, scan: Scan) -> dict[str, Entry | None]:
    """Return the entries of a commit that equal the local ones; None for removed ones."""
    put = {p: e for p, e in delta.put.items() if scan.tree.get(p) == e}
    removed = [p for p in delta.removed if p not in scan.tree]
    return {**put, **dict.fromkeys(removed)}
