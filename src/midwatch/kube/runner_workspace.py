"""The folders of a pod and their copy behind the content proxy: fetched first, kept in sync, saved last."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from midwatch.content.errors import ContentUnavailable, Superseded
from midwatch.errors import MidwatchError, NotFound, PermanentError, TemporaryError
from midwatch.files import make_usable, remove_tree
from midwatch.kube.runner_task import PodTask
from midwatch.kube.status import Condition
from midwatch.kube.status_writer import HINTS
from midwatch.lifecycle import Backoff, Clock, StopEvent, background, cancel, first
from midwatch.session.log import (
    SessionFolder,
    map_disk_error,
    read_json,
    replace_json,
)
from midwatch.session.runner import Deadline
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.plan import plan_workspace
from midwatch.workspace.record import (
    Workspace,
    load_record,
    open_workspace,
    save_record,
)
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

# ------------------------------------------------------------------ the condition WorkspaceSaved

CONDITION = "WorkspaceSaved"
_NAMED = 3
"""Files that a message names; the log names all, up to `_LOGGED`."""
_LOGGED = 200
_LONGEST = 400
"""Characters of a path in a message."""


class Report(Protocol):
    """The part of `content.sync.SyncReport` that is used here."""

    @property
    def conflicts(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def unsent(self) -> tuple[str, ...]: ...
    @property
    def unapplied(self) -> tuple[str, ...]: ...


class SyncCondition:
    """Turns the reports of the sync into a condition of the resource and lines for the pod's log.

    A file that is being written, or a `.git` in the middle of a change, is left out of one push and comes with
    the next. So a path counts as not saved once two pushes, or the last one, left it out.
    """

    def __init__(self) -> None:
        self._unsaved: tuple[str, ...] = ()
        self._unapplied: tuple[str, ...] = ()
        self._before: frozenset[str] = frozenset()
        self._conflicts: dict[str, None] = {}
        self._logged: set[str] = set()

    def add(self, report: Report, *, last: bool = False) -> list[str]:
        """Take in a report. Return the new lines for the log."""
        self._unsaved = tuple(
            one for one in report.unsent if last or one in self._before
        )
        self._before = frozenset(report.unsent)
        self._unapplied = tuple(report.unapplied)
        # A socket or a pipe cannot be saved at all: a line in the log is enough.
        special = [one for one in report.notes if one not in self._before]
        fresh = [one for one in report.conflicts if one not in self._conflicts]
        self._conflicts |= dict.fromkeys(fresh)
        return self._new(
            [
                *(f"not saved: {one}" for one in (*self._unsaved, *special)),
                *self._unapplied,
                *(f"changed on both sides: {_how_to_get(one)}" for one in fresh),
            ]
        )

    def condition(self) -> Condition:
        """Return the condition after all reports so far."""
        parts = []
        if self._unsaved:
            parts.append(
                f"{_count(self._unsaved, 'path is', 'paths are')} not saved: {_first(self._unsaved)}"
            )
        if conflicts := [_how_to_get(one) for one in self._conflicts]:
            parts.append(
                f"{_count(conflicts, 'file was', 'files were')} changed on both sides; the session's version stays, "
                f"the other: {_first(conflicts)}"
            )
        reason = "SavedWithConflicts" if self._conflicts else "Saved"
        if self._unapplied:
            parts.append(
                f"{_count(self._unapplied, 'change', 'changes')} of the other side not made: {_first(self._unapplied)}"
            )
            reason = "SavedWithWarnings"
        message = ". ".join(parts)
        if self._unsaved:
            return Condition(CONDITION, "False", "SavedPartly", message)
        return Condition(CONDITION, "True", reason, message)

    def _new(self, lines: Iterable[str]) -> list[str]:
        new = [one for one in dict.fromkeys(lines) if one not in self._logged]
        new = new[: max(_LOGGED - len(self._logged), 0)]
        self._logged.update(new)
        return new


def _how_to_get(place: str) -> str:
    """Return the request to the content proxy that gives the other version. The path is untrusted, so it is quoted."""
    path = quote(os.fsencode(place))
    shown = path if len(path) <= _LONGEST else f"{path[:_LONGEST]}…"
    return f"GET /content/file?path={shown}"


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _first(items: Sequence[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


# ------------------------------------------------------------------ the sync

FETCH_FOR = 900.0
"""Seconds of retries to reach the proxy before the session fails: it must not start with an empty folder. A lost node
is often the proxy's too; its volume moves to another node within 6 to 10 minutes."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_CHECK_EVERY = 5.0  # seconds between two checks of the sync
WIND_UP = 5.0
"""Most seconds to wait for a running push before the last one."""


class Sync(Protocol):
    """The part of `content.sync.WorkspaceSync` that is used here."""

    last_error: MidwatchError | None
    last_success: datetime | None
    on_report: Callable[[Any], None]

    async def pull(self) -> Any: ...
    async def pull_from(self, folder: str, /) -> Any: ...
    async def push(self, *, last: bool = False) -> Any: ...
    async def run(self, stop: StopEvent, /) -> None: ...
    def nudge(self) -> None: ...


class SyncSupervisor:
    """Runs the sync of one session: `fetch` first, `beside` the session, `save` last. Without a sync nothing happens.

    A folder that was never fetched is never saved: an empty folder must not replace a full one. Once a later
    attempt has claimed the folder, nothing is saved any more.

    Args:
        sync: The sync, None without a content proxy.
        clock: Where time comes from.
        report: Gets the condition whenever it changes.
        wind_up: Seconds that a push under way gets before the last one.
        note: Gets lines for the pod's log.
        on_lost: Is called once, with the reason, when a later attempt has claimed the folder.
    """

    def __init__(
        self,
        sync: Sync | None,
        clock: Clock,
        report: Callable[[Condition], None],
        wind_up: float = WIND_UP,
        *,
        note: Callable[[str], None] = lambda text: None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.lost: Superseded | None = None
        self._sync = sync
        self._clock = clock
        self._on_condition = report
        self._wind_up = wind_up
        self._note = note
        self._on_lost = on_lost
        self._saved = SyncCondition()
        self._ending = False
        self._reported: Condition | None = None
        self._fetched = False

    @property
    def present(self) -> bool:
        """Whether there is a content proxy."""
        return self._sync is not None

    async def fetch(
        self,
        within: float = FETCH_FOR,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Download the session's folder.

        Args:
            within: Seconds of tries while the proxy is away.
            on_wait: Gets the reason why it takes longer.

        Raises:
            ContentUnavailable: The proxy was away all the time.
            PermanentError: The proxy refused.
        """
        if self._sync is None:
            why = "there is no content proxy: it lasts as long as its volume"
            return self._report(Condition(CONDITION, "Unknown", "OnVolume", why))
        await self._retry(self._sync.pull, within, on_wait)
        self._fetched = True

    async def fetch_from(
        self,
        folder: str,
        within: float = FETCH_FOR,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Download another session's folder as this session's own. Raises as `fetch`."""
        assert self._sync is not None
        sync, self._fetched = self._sync, False
        await self._retry(lambda: sync.pull_from(folder), within, on_wait)
        self._fetched = True

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Sync in both directions while the block runs."""
        if self._sync is None:
            yield
            return
        stop, self._sync.on_report = StopEvent(self._clock), self._on_report
        syncing = asyncio.create_task(self._sync.run(stop), name="sync")
        try:
            async with background(self._watch(syncing)):
                yield
        finally:
            stop.set("the session ends")
            await asyncio.wait({syncing}, timeout=self._wind_up)
            await cancel(syncing)

    def nudge(self) -> None:
        """Request a sync soon."""
        if self._sync is not None and self._fetched:
            self._sync.nudge()

    async def save(self, within: float) -> None:
        """Push all changes, for at most `within` seconds; the condition has the result."""
        if self._sync is None or not self._fetched or self.lost is not None:
            return
        sync, self._ending = self._sync, True
        sync.on_report = self._on_report
        try:
            async with asyncio.timeout(within):
                await self._retry(lambda: sync.push(last=True), within)
        except (TimeoutError, asyncio.CancelledError) as error:
            late = ContentUnavailable("there was no time to save all")
            self._report(_not_saved(late))
            if isinstance(error, asyncio.CancelledError):
                raise
        except Superseded:
            pass  # `lost` has it
        except MidwatchError as error:
            self._report(_not_saved(error))

    async def _retry(
        self,
        work: Callable[[], Awaitable[Any]],
        within: float,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Call it, and retry while the proxy does not answer."""
        deadline = self._clock.monotonic() + within
        backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT)
        while True:
            try:
                await work()
                return
            except Superseded as error:
                self._lose(error)
                raise
            except TemporaryError as error:
                pause = max(backoff.next(), error.retry_after or 0.0)
                if self._clock.monotonic() + pause > deadline:
                    raise _given_up(error, within) from error
                condition = _not_saved(error)
                self._report(condition)
                on_wait(condition.message)
                await self._clock.sleep(pause)

    async def _watch(self, syncing: asyncio.Task[None]) -> None:
        """Report failures of the sync, at once if it has given up."""
        assert self._sync is not None
        while True:
            error = self._sync.last_error
            if isinstance(error, Superseded):
                return self._lose(error)
            if error is not None:
                self._report(_not_saved(error))
            if syncing.done():
                return
            await first(self._clock.sleep(_CHECK_EVERY), asyncio.shield(syncing))

    def _on_report(self, report: Any) -> None:
        for line in self._saved.add(report, last=self._ending):
            self._note(line)
        self._report(self._saved.condition())

    def _lose(self, error: Superseded) -> None:
        if self.lost is None:
            self.lost = error
            self._on_lost(error.message)

    def _report(self, condition: Condition) -> None:
        if condition != self._reported:
            self._reported = condition
            self._on_condition(condition)


def _given_up(error: TemporaryError, within: float) -> TemporaryError:
    if not isinstance(error, ContentUnavailable):
        return error
    why = f"{error.message}; it was tried for {within:.0f} s"
    return ContentUnavailable(why, hint=error.hint)


def _not_saved(error: MidwatchError) -> Condition:
    kind = type(error).__name__
    again = "" if isinstance(error, PermanentError) else "; it is tried again"
    hint = HINTS.get(kind, error.hint)
    return Condition(CONDITION, "False", kind, f"{error.message} ({hint}{again})")


# ------------------------------------------------------------------ the folders

ADOPTING = ".adopting"
"""Marker of an unfinished takeover of another session's folder: the names that existed before."""
_STAY = (
    *("run", "lock", "heartbeat.json", "repositories.lock", "home/.cache"),
    *(".sync", ADOPTING),
)
"""Paths of the session's folder that are valid in this pod only."""
LOCAL_OWNED = frozenset({"session"})
"""Top folders that only the runner writes to: it keeps files in them open and relies on their content."""


@dataclass(frozen=True, slots=True)
class PodPlaces:
    """The folders of a pod, with the same absolute paths in every pod: a transcript contains them.

    `state` is the session's own folder; it and the workspace are what is kept.
    """

    workspace: Path
    state: Path
    cache: Path

    @property
    def folder(self) -> SessionFolder:
        return SessionFolder(self.state)

    @property
    def repositories(self) -> Path:
        """The record of the workspace: in the session's folder, where no agent writes."""
        return self.state / "repositories"

    @property
    def home(self) -> Path:
        """The home folder of git's SSH and of the program; the pod's own is read-only."""
        return self.state / "home"

    @property
    def transcripts(self) -> Path:
        return self.state / "claude" / "projects"

    @property
    def sync_state(self) -> Path:
        """The state of the sync; it belongs to the volume that it describes."""
        return self.state / ".sync"

    @property
    def roots(self) -> dict[str, Path]:
        """The top folders behind the content proxy."""
        return {"workspace": self.workspace, "session": self.state}

    def make(self) -> None:
        """Create missing folders. Raises DiskFull and FolderUnusable."""
        self.folder.make()
        for path in (self.workspace, self.cache):
            try:
                path.mkdir(parents=True, exist_ok=True)
                make_usable(path)
                # Check now: later, a volume that is not writable would cause a less clear error.
                probe = path / f".midwatch-{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise map_disk_error(error, path) from error


def stays_here(path: str) -> bool:
    """Return whether a path below `roots` is valid in this pod only, and is not synced."""
    top, _, rest = path.partition("/")
    return top == "session" and any(
        rest == one or rest.startswith(f"{one}/") for one in _STAY
    )


# ------------------------------------------------------------------ preparation

_KEPT = frozenset({"claude", "repositories", "home", ".sync", "run", "lock"})


async def adopt(
    places: PodPlaces, origin: str, fetch: Callable[[], Awaitable[None]]
) -> None:
    """Fetch the folder of the session `origin` and make it this session's own, once, before it has an outbox.

    Conversation and clones stay. The other session's outbox, mailbox and status go, or they would count as
    this session's. A note of the names that were there before makes it safe to be killed at any point.

    Raises what `fetch` raises, and NotFound if that session left no conversation.
    """
    note = places.state / ADOPTING
    own = read_json(note)
    if own is None and places.folder.outbox.exists():
        return
    if own is None:
        own = [path.name for path in places.state.iterdir()]
        replace_json(note, own)
    await fetch()
    _leave_out(places, {*own, *_KEPT, ADOPTING})
    if not any(places.transcripts.glob("*/*.jsonl")):
        raise NotFound(
            f"session {origin} has kept no conversation to go on with",
            hint="check spec.resumeFrom; that session must have run with the content proxy",
        )
    note.unlink()


def _leave_out(places: PodPlaces, kept: set[str]) -> None:
    try:
        for path in places.state.iterdir():
            if path.name not in kept:
                folder = path.is_dir() and not path.is_symlink()
                remove_tree(path) if folder else path.unlink()
    except OSError as error:
        raise map_disk_error(error, places.state) from error


async def prepare_workspace(
    task: PodTask,
    places: PodPlaces,
    options: WorkspaceOptions,
    note: Callable[[str], None],
) -> Workspace:
    """Return the workspace of the previous pod, or fresh clones. Raises what `setup_workspace_async` raises.

    Clones without a complete record cannot be used: where they began is unknown, and their `.git` is not to be
    trusted. They are moved aside, never removed, and cloned again in their place, so that the working directory
    stays the one that the transcript knows.
    """
    for path in set_aside(task, places):
        note(f"an incomplete clone or record was moved to {path}, and is cloned again")
    given = task.environment
    await setup_workspace_async(
        task.specs,
        given.workspace_path,
        given.main_repo_index,
        options=options,
        on_progress=None,
    )
    return _pushed_as_asked(open_workspace(places.repositories), task)


def set_aside(task: PodTask, places: PodPlaces) -> list[Path]:
    """Move clones and records that do not belong together out of the way. Return their new paths."""
    given = task.environment
    plan = plan_workspace(task.specs, given.workspace_path, given.main_repo_index)
    wanted = plan.paths
    if _whole(places.repositories):
        return []
    left = [path for path in (*wanted, places.repositories) if os.path.lexists(path)]
    return [_moved(path) for path in left]


def _whole(record: Path) -> bool:
    """Return whether a record and its clones fit: all there, all gone, or still being moved."""
    try:
        found = load_record(record)
    except WorkspaceExists:
        return False
    if found is None:
        return False
    present = {repo.path.is_dir() for repo in found.repos}
    return found.staging is not None or len(present) == 1


def _moved(path: Path) -> Path:
    """Move `path` to a free name beside it, by a rename, which needs no space. Return the new path."""
    number = 1
    while os.path.lexists(to := path.parent / f".midwatch-saved-{number}" / path.name):
        number += 1
    try:
        to.parent.mkdir(exist_ok=True)
        # A folder that its owner may not change cannot be moved either.
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            make_usable(path)
        path.rename(to)
        if stat.S_ISDIR(found.st_mode):
            to.chmod(stat.S_IMODE(found.st_mode))
    except OSError as error:
        raise map_disk_error(error, path) from error
    return to


def _pushed_as_asked(workspace: Workspace, task: PodTask) -> Workspace:
    """Return the workspace with the push targets of this session's resource, also if it continues another session."""
    plan = plan_workspace(
        task.specs,
        task.environment.workspace_path,
        task.environment.main_repo_index,
        session_branch=workspace.session_branch,
    )
    targets = [
        (one.push_remote.url, one.push_branch or plan.session_branch)
        for one in plan.repos
    ]
    repos = tuple(
        replace(repo, push_url=url, push_branch=branch)
        for repo, (url, branch) in zip(workspace.repos, targets, strict=True)
    )
    changed = replace(workspace, repos=repos, main=plan.main)
    if changed != workspace:
        save_record(changed)
    return changed


class PodWorkspace:
    """The workspace of a pod's session, restored from the content proxy. Satisfies `WorkspaceProvider`.

    Args:
        task: What the pod is to do.
        places: The pod's folders.
        options: How the workspace is cloned, inspected and pushed.
        supervisor: The sync with the content proxy.
        deadline: How long the session may take; the proxy is waited for no longer.
        report: Gets each step, as a reason and a message.
        note: Gets lines for the pod's log.
        save_within: Returns the seconds for the last push to the proxy.
    """

    def __init__(
        self,
        task: PodTask,
        places: PodPlaces,
        options: WorkspaceOptions,
        supervisor: SyncSupervisor,
        deadline: Deadline,
        report: Callable[[str, str], None],
        note: Callable[[str], None],
        *,
        save_within: Callable[[], float],
    ) -> None:
        self.options = options
        self.root = places.workspace
        self.folder = places.folder
        self._task = task
        self._places = places
        self._supervisor = supervisor
        self._deadline = deadline
        self._report = report
        self._note = note
        self._save_within = save_within

    def owned(self) -> AbstractContextManager[None]:
        """Nothing is locked: the number of the attempt decides who owns the session (`ResourceStatus.owned`)."""
        return contextlib.nullcontext()

    def locked(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def prepare(self) -> Workspace:
        self._places.make()
        self._report("FetchingWorkspace", "")
        await self._supervisor.fetch(self._patience(), self._on_wait)
        if origin := self._task.environment.resume_from:
            await adopt(self._places, origin, self._fetch_origin)
        self._report("CloningRepositories", "")
        return await prepare_workspace(
            self._task, self._places, self.options, self._note
        )

    def beside(self) -> AbstractAsyncContextManager[None]:
        return self._supervisor.beside()

    def nudge(self) -> None:
        self._supervisor.nudge()

    async def save(self) -> None:
        await self._supervisor.save(self._save_within())

    async def _fetch_origin(self) -> None:
        folder = self._task.environment.resume_from_folder
        if folder and self._supervisor.present:
            self._report("FetchingEarlierSession", "")
            await self._supervisor.fetch_from(folder, self._patience(), self._on_wait)

    def _patience(self) -> float:
        """Return the seconds to wait for the content proxy, at most the rest of the session's timeout."""
        return min(FETCH_FOR, self._deadline.left() * 0.9)

    def _on_wait(self, why: str) -> None:
        self._report("WaitingForContent", why)
