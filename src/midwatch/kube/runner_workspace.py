"""The pod's folders and their copy behind the content proxy: fetched first, kept in step, saved last."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from midwatch.content.errors import ContentUnavailable, Superseded
from midwatch.errors import MidwatchError, NotFound, PermanentError, TemporaryError
from midwatch.kube.runner_outcome import HINTS, SIGNALS, End, hint_for
from midwatch.kube.runner_task import PodTask
from midwatch.kube.status import Condition, repository_changes
from midwatch.lifecycle import Clock, StopEvent
from midwatch.model import Json
from midwatch.session.agentic_session import GO_ON
from midwatch.session.events import (
    Event,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
)
from midwatch.session.log import SessionFolder, map_disk_error, read_json, replace_json
from midwatch.session.status import SessionStatus, fold
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.git import Git
from midwatch.workspace.inspect import inspect_workspace
from midwatch.workspace.plan import plan_workspace
from midwatch.workspace.push import PushResult, push_workspace
from midwatch.workspace.record import (
    Workspace,
    load_record,
    open_workspace,
    save_record,
)
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

# ------------------------------------------------------------ saved
# What the sync's reports say about the workspace, for the resource and for the pod's log.
#
# Both are for people, and both tell what a successful push does not: files that could not be read and so were not
# saved, and files that were changed on both sides, of which the other version was put aside.

CONDITION = "WorkspaceSaved"
_NAMED = 3
"""Files that a message names; the log has all, up to `_LOGGED`."""
_LOGGED = 200
_LONGEST = 400
"""Characters of a path in a message."""


class Report(Protocol):
    """What is needed of `content.sync.SyncReport`."""

    @property
    def conflicts(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def unsent(self) -> tuple[str, ...]: ...


class SyncCondition:
    """`hear` every report; then `condition` is what there is to tell.

    A file that is being written, or a `.git` in the middle of a change, is left out of one push and comes with
    the next. So what was not saved counts once it was not saved twice, or in the last push of all.
    """

    def __init__(self) -> None:
        self._unsaved: tuple[str, ...] = ()
        self._before: frozenset[str] = frozenset()
        self._conflicts: dict[str, None] = {}
        self._said: set[str] = set()

    def hear(self, report: Report, *, last: bool = False) -> list[str]:
        """The lines for the log that are new."""
        self._unsaved = tuple(
            one for one in report.unsent if last or one in self._before
        )
        self._before = frozenset(report.unsent)
        # A socket or a pipe is nothing that could be saved: worth a line, no more.
        special = [one for one in report.notes if one not in self._before]
        fresh = [one for one in report.conflicts if one not in self._conflicts]
        self._conflicts |= dict.fromkeys(fresh)
        return self._new(
            [
                *(f"not saved: {one}" for one in (*self._unsaved, *special)),
                *(f"changed on both sides: {_how_to_get(one)}" for one in fresh),
            ]
        )

    def condition(self) -> Condition:
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
        message = ". ".join(parts)
        if self._unsaved:
            return Condition(CONDITION, "False", "SavedPartly", message)
        reason = "SavedWithConflicts" if parts else "Saved"
        return Condition(CONDITION, "True", reason, message)

    def _new(self, lines: Iterable[str]) -> list[str]:
        new = [one for one in dict.fromkeys(lines) if one not in self._said]
        new = new[: max(_LOGGED - len(self._said), 0)]
        self._said.update(new)
        return new


def _how_to_get(place: str) -> str:
    """Where the other version is: a path that nobody has to trust, in the words of the content proxy."""
    path = quote(os.fsencode(place))
    shown = path if len(path) <= _LONGEST else f"{path[:_LONGEST]}…"
    return f"GET /content/file?path={shown}"


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _first(items: Sequence[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


FETCH_FOR = 900.0
"""Seconds of tries to reach the proxy before the session is given up, since it must not begin with nothing. A node that is lost
often takes the proxy along; its volume comes to another node after some 6 to 10 minutes."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_LOOK = 5.0  # seconds between two looks at how the sync fares
WIND_UP = 5.0
"""Seconds that a push under way gets before the last one, at most."""


class Sync(Protocol):
    """What is needed of `content.sync.WorkspaceSync`."""

    last_error: MidwatchError | None
    last_success: datetime | None
    heard: Callable[[Any], None]

    async def pull(self) -> Any: ...
    async def pull_from(self, folder: str, /) -> Any: ...
    async def push(self, *, last: bool = False) -> Any: ...
    async def run(self, stop: StopEvent, /) -> None: ...
    def nudge(self) -> None: ...


class SyncSupervisor:
    """`fetch` at first, `beside` the session, `save` at the end. Without a sync all of it is nothing.

    `tell` gets the condition whenever it changes, `note` lines for the log. What was never fetched is never
    saved: an empty folder must not go over a full one. Where a later attempt has claimed the folder, `lost` says so
    (`on_lost` hears of it once), and nothing is saved any more.
    """

    def __init__(
        self,
        sync: Sync | None,
        clock: Clock,
        tell: Callable[[Condition], None],
        wind_up: float = WIND_UP,
        *,
        note: Callable[[str], None] = lambda text: None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.lost: Superseded | None = None
        self._sync = sync
        self._clock = clock
        self._tell = tell
        self._wind_up = wind_up
        self._note = note
        self._on_lost = on_lost
        self._saved = SyncCondition()
        self._ending = False
        self._told: Condition | None = None
        self._fetched = False

    @property
    def present(self) -> bool:
        return self._sync is not None

    async def fetch(
        self,
        within: float = FETCH_FOR,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Bring the session's folder here, within so many seconds; `waiting` is told why that takes longer.

        Raises ContentUnavailable when they are over, and what is permanent.
        """
        if self._sync is None:
            why = "there is no content proxy: it lasts as long as its volume"
            return self._say(Condition(CONDITION, "Unknown", "OnVolume", why))
        await self._tried(self._sync.pull, within, waiting)
        self._fetched = True

    async def fetch_from(
        self,
        folder: str,
        within: float = FETCH_FOR,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Bring another session's folder here, as ours. Raises as `fetch`."""
        assert self._sync is not None
        sync, self._fetched = self._sync, False
        await self._tried(lambda: sync.pull_from(folder), within, waiting)
        self._fetched = True

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """While inside, changes travel both ways."""
        if self._sync is None:
            yield
            return
        stop, self._sync.heard = StopEvent(self._clock), self._hear
        syncing = asyncio.create_task(self._sync.run(stop), name="sync")
        looking = asyncio.create_task(self._look(syncing), name="look at the sync")
        try:
            yield
        finally:
            stop.set("the session ends")
            looking.cancel()
            await asyncio.wait({syncing}, timeout=self._wind_up)
            syncing.cancel()
            await asyncio.gather(syncing, looking, return_exceptions=True)

    def nudge(self) -> None:
        """Something worth saving has happened."""
        if self._sync is not None and self._fetched:
            self._sync.nudge()

    async def save(self, within: float) -> None:
        """Push what there is, for so many seconds; how it went is in the condition."""
        if self._sync is None or not self._fetched or self.lost is not None:
            return
        sync, self._ending = self._sync, True
        sync.heard = self._hear
        try:
            async with asyncio.timeout(within):
                await self._tried(lambda: sync.push(last=True), within)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._say(_not_saved(ContentUnavailable("there was no time to save all")))
            if isinstance(error, asyncio.CancelledError):
                raise
        except Superseded:
            pass  # it is told by `lost`
        except MidwatchError as error:
            self._say(_not_saved(error))

    async def _tried(
        self,
        work: Callable[[], Any],
        within: float,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Do it, again and again while the proxy is away."""
        deadline, wait = self._clock.monotonic() + within, _FIRST_WAIT
        while True:
            try:
                await work()
                return
            except Superseded as error:
                self._lose(error)
                raise
            except TemporaryError as error:
                pause = max(wait, error.retry_after or 0.0)
                if self._clock.monotonic() + pause > deadline:
                    raise _given_up(error, within) from error
                condition = _not_saved(error)
                self._say(condition)
                waiting(condition.message)
                wait = min(wait * 2, _LONGEST_WAIT)
                await self._clock.sleep(pause)

    async def _look(self, syncing: asyncio.Task[None]) -> None:
        """Tell what goes wrong with the sync, at once if it has given up."""
        assert self._sync is not None
        while True:
            error = self._sync.last_error
            if isinstance(error, Superseded):
                return self._lose(error)
            if error is not None:
                self._say(_not_saved(error))
            if syncing.done():
                return
            sleeping = asyncio.ensure_future(self._clock.sleep(_LOOK))
            try:
                await asyncio.wait({syncing, sleeping}, return_when="FIRST_COMPLETED")
            finally:
                sleeping.cancel()
                await asyncio.gather(sleeping, return_exceptions=True)

    def _hear(self, report: Any) -> None:
        for line in self._saved.hear(report, last=self._ending):
            self._note(line)
        self._say(self._saved.condition())

    def _lose(self, error: Superseded) -> None:
        if self.lost is None:
            self.lost = error
            self._on_lost(error.message)

    def _say(self, condition: Condition) -> None:
        if condition != self._told:
            self._told = condition
            self._tell(condition)


def _given_up(error: TemporaryError, within: float) -> TemporaryError:
    if not isinstance(error, ContentUnavailable):
        return error
    why = f"{error.message}; it was tried for {within:.0f} s"
    return ContentUnavailable(why, hint=error.hint)


def _not_saved(error: MidwatchError) -> Condition:
    kind = type(error).__name__
    again = "" if isinstance(error, PermanentError) else "; it is tried again"
    hint = hint_for(kind, error.hint)
    return Condition(CONDITION, "False", kind, f"{error.message} ({hint}{again})")


# ------------------------------------------------------------ places
# The folders of a pod. They have the same absolute paths in every pod: a transcript knows them.

ADOPTING = ".adopting"
"""There while a session becomes the continuation of another: the names that were its own before."""
_STAY = (
    *("run", "lock", "heartbeat.json", "repositories.lock", "home/.cache"),
    *(".sync", ADOPTING),
)
"""What of the session's folder means something in this pod alone."""
LOCAL_OWNED = frozenset({"session"})
"""Top folders that only the runner writes to: it has files in them open, and works by what it wrote there."""


@dataclass(frozen=True, slots=True)
class PodPlaces:
    """`state` is the session's own folder; with the workspace it is all that is kept."""

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
        """Of git's SSH and of the program; the pod's own is read-only."""
        return self.state / "home"

    @property
    def transcripts(self) -> Path:
        return self.state / "claude" / "projects"

    @property
    def sync_state(self) -> Path:
        """What the sync remembers; it goes with the volume that it speaks of."""
        return self.state / ".sync"

    @property
    def roots(self) -> dict[str, Path]:
        """The top folders behind the content proxy."""
        return {"workspace": self.workspace, "session": self.state}

    def make(self) -> None:
        """Create what is missing. Raises DiskFull and FolderUnusable."""
        self.folder.make()
        for path in (self.workspace, self.cache):
            try:
                path.mkdir(parents=True, exist_ok=True)
                # Looked at now: a volume that nobody may write to shows only here as what it is.
                probe = path / f".midwatch-{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise map_disk_error(error, path) from error


def stays_here(path: str) -> bool:
    """Whether a path below `roots` means something in this pod alone, and does not travel."""
    top, _, rest = path.partition("/")
    return top == "session" and any(
        rest == one or rest.startswith(f"{one}/") for one in _STAY
    )


# ------------------------------------------------------------ adopting
# A session that goes on with another one: its folder becomes ours, at the very first and once.
#
# What was said and cloned stays; what was told of the other session (its outbox, mailbox, status) goes, or it
# would be taken for ours. A note of what was there before makes that safe to be killed anywhere.

_KEPT = frozenset({"claude", "repositories", "home", ".sync", "run", "lock"})


async def adopt(
    places: PodPlaces, origin: str, fetch: Callable[[], Awaitable[None]]
) -> None:
    """Fetch the folder of the session `origin` and make it ours, unless ours has its own story already.

    Raises what `fetch` raises, and NotFound where that session left no conversation.
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
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise map_disk_error(error, places.state) from error


# ------------------------------------------------------------ preparing
# Setting a pod's workspace up: anew, or as the pod before this one left it.


async def prepare_workspace(
    task: PodTask,
    places: PodPlaces,
    options: WorkspaceOptions,
    note: Callable[[str], None],
) -> Workspace:
    """The workspace as it was left, else fresh clones. Raises what `setup_workspace_async` raises.

    Clones that no whole record tells of cannot be worked in: nothing says where they began, and
    their `.git` is not to be trusted. They are moved aside, never removed, and cloned anew in their
    place, so that the working directory stays the one that the transcript knows.
    """
    for path in set_aside(task, places):
        note(f"what no record tells of was moved to {path}, and is cloned anew")
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
    """Move clones and records that do not belong together out of the way; where they are now."""
    given = task.environment
    plan = plan_workspace(task.specs, given.workspace_path, given.main_repo_index)
    wanted = [repo.path for repo in plan.repos]
    if _whole(places.repositories):
        return []
    left = [path for path in (*wanted, places.repositories) if os.path.lexists(path)]
    return [_moved(path) for path in left]


def _whole(record: Path) -> bool:
    """Whether a record and its clones fit: all there, all gone, or still being moved."""
    try:
        found = load_record(record)
    except WorkspaceExists:
        return False
    if found is None:
        return False
    present = {repo.path.is_dir() for repo in found.repos}
    return found.staging is not None or len(present) == 1


def _moved(path: Path) -> Path:
    """Beside it, under a name that is free: a rename, which needs no space."""
    number = 1
    while os.path.lexists(to := path.parent / f".midwatch-saved-{number}" / path.name):
        number += 1
    try:
        to.parent.mkdir(exist_ok=True)
        path.rename(to)
    except OSError as error:
        raise map_disk_error(error, path) from error
    return to


def _pushed_as_asked(workspace: Workspace, task: PodTask) -> Workspace:
    """A session that goes on with another one pushes to where its own resource says."""
    plan = plan_workspace(
        task.specs,
        task.environment.workspace_path,
        task.environment.main_repo_index,
        session_branch=workspace.session_branch,
    )
    targets = [(one.push_remote.url, one.push_branch) for one in plan.repos]
    repos = tuple(
        replace(repo, push_url=url, push_branch=branch)
        for repo, (url, branch) in zip(workspace.repos, targets, strict=True)
    )
    changed = replace(workspace, repos=repos, main=plan.main)
    if changed != workspace:
        save_record(changed)
    return changed


# ------------------------------------------------------------ delivering
# What a session did to its repositories: pushed, and looked at.

PUSH_AT_LEAST, PUSH_AT_MOST = 50.0, 300.0
"""Seconds for the push of all repositories: in between, what is left of the session's time-out."""
T = TypeVar("T")


class Delivery:
    """First `push`, then `look`."""

    def __init__(
        self, workspace: Workspace, git: Git, note: Callable[[str], None]
    ) -> None:
        self._workspace = workspace
        self._git = git
        self._note = note
        self._pushes: list[PushResult] = []

    async def push(self, end: End, time_left: float) -> End:
        """Push every repository that has something. What was to be delivered and is not, is no success."""
        within = max(PUSH_AT_LEAST, min(time_left, PUSH_AT_MOST))
        pushing = push_workspace(self._workspace, self._git)
        pushes = await self._within(within, pushing, "the push")
        if pushes is None:
            return unpushed(end)
        self._pushes = pushes
        errors = [one.error for one in pushes if one.error is not None]
        for error in errors:
            self._note(error.one_line())
        return _failed(end, errors[0].message) if errors else end

    async def look(self, within: float) -> list[Json]:
        """The repositories as `status.repos`; none where they cannot be looked at, which ends nothing."""
        looking = inspect_workspace(self._workspace, self._git)
        states = await self._within(within, looking, "the look at the repositories")
        return repository_changes(states or (), self._pushes)

    async def _within(
        self, seconds: float, work: Coroutine[Any, Any, T], what: str
    ) -> T | None:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            self._note(f"{what} took longer than {seconds:g} s")
        except MidwatchError as error:
            self._note(f"{what} failed: {error.one_line()}")
        return None


def unpushed(end: End) -> End:
    """The end where the time for the push was over."""
    return _failed(end, "the repositories could not be pushed in time")


def _failed(end: End, why: str) -> End:
    message = f"it is done, but {why} ({HINTS['PushFailed']})"
    return replace(end, phase=Phase.FAILED, reason="PushFailed", message=message)


# ------------------------------------------------------------ resuming
# What is left to say to a session, after what its outbox tells of earlier pods. Pure.


def left_to_say(events: Iterable[Event], prompt: str | None) -> str | None:
    """The prompt, unless the session has it; None goes on with what is unanswered.

    A pod that was taken away gently interrupted its turn. That turn counts as answered though nobody
    wanted its end: the session is told to go on.
    """
    told = list(events)
    if not any(isinstance(e, Prompt) and e.source == "call" for e in told):
        return prompt
    if fold(SessionStatus(), told).unfinished:
        return None
    return GO_ON if _cut_by_a_signal(told) else None


def _cut_by_a_signal(events: Iterable[Event]) -> bool:
    """Whether the last turn was interrupted by the end of its pod."""
    outcome, cut = "", False
    for event in events:
        match event:
            case TurnStarted():
                outcome, cut = "", False
            case TurnResult():
                outcome = event.outcome
            case PhaseChanged() if event.phase.terminal:
                cut = cut or (outcome == "interrupted" and event.reason in SIGNALS)
    return cut
