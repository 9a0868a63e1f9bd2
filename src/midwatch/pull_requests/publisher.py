"""Push what a session changed and open its pull requests: one for each ticket and repository, also after a crash.

The branch has the ticket in its name, so a pull request that was opened and not recorded is found by it. What a person
closed stays closed, and a branch that a person pushed to is built on, never overwritten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from midwatch.errors import Conflict, MidwatchError, NotFound, TemporaryError
from midwatch.json_shapes import settled
from midwatch.model import Json, Ticket
from midwatch.pull_request_settings import PullRequestSettings
from midwatch.pull_requests.description import Description, spliced, title_of
from midwatch.pull_requests.forge import (
    AlreadyOpen,
    ForgePullRequest,
    ForgeRepository,
    NewPullRequest,
    NothingToMerge,
)
from midwatch.pull_requests.known_forges import KnownForges, Place
from midwatch.redaction import Redactor
from midwatch.session.records import SessionStore
from midwatch.store.on_call import PullRequest
from midwatch.store.protocol import Store
from midwatch.store.pull_requests import SqlPullRequests
from midwatch.text import one_line
from midwatch.workspace.git import Git
from midwatch.workspace.inspect import inspect_workspace
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import PushOptions, PushResult, push_repo
from midwatch.workspace.record import ClonedRepo, Workspace

SOON = 60.0
"""Seconds after which a daemon goes on with what the process that pushed did not end."""
_ANOTHER = "--new-pr opens another one"


@dataclass(frozen=True, slots=True)
class Planned:
    """Where the pull request of a ticket in one repository is to be.

    Attributes:
        repository: The URL in the settings.
        place: The forge, and the repository there.
        attempt: See `PullRequest`.
        branch: The branch to push to.
        base: The branch that it is for.
        exists: Whether the branch is there already: then a session starts from it.
        known: What is recorded of it.
    """

    repository: str
    place: Place
    attempt: int
    branch: str
    base: str
    exists: bool
    known: PullRequest | None = None

    def spec(self, written: RepoSpec) -> RepoSpec:
        """Return the repository for a session: it begins on the branch if that is there, and is pushed to it."""
        start = self.branch if self.exists else written.branch
        return replace(written, branch=start, push_branch=self.branch)


@dataclass(frozen=True, slots=True)
class Work:
    """What is published: the workspace of a session, and who asks for it.

    Attributes:
        ticket: The ticket.
        session: The session's id.
        by: Who asked for the pull requests.
        workspace: Its clones.
        git: Runs git, with the tokens.
        at: When the session ended, the time of a commit of what it did not commit.
        approved_by: The person who approved it; None if no person did.
    """

    ticket: Ticket
    session: str
    by: str
    workspace: Workspace
    git: Git
    at: datetime | None
    approved_by: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one repository.

    Attributes:
        name: Name of the clone's folder.
        outcome: "pushed" means that the pull request could not be opened yet, and a daemon does it.
        url: The page of the pull request.
        error: Why it failed, or is not open yet.
    """

    name: str
    outcome: Literal["opened", "updated", "waiting", "nothing", "pushed", "failed"]
    url: str | None = None
    error: MidwatchError | None = field(default=None, compare=False)


def branch_of(ticket: Ticket, attempt: int) -> str:
    """Return the name of a ticket's branch. The digest keeps tickets of two databases apart."""
    key = ticket.key
    parts = (key.subject, key.invariant, key.component, ticket.opened_at.isoformat())
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()
    name = f"midwatch/ticket-{ticket.id}-{digest[:8]}"
    return name if attempt == 1 else f"{name}-{attempt}"


class Publisher:
    """Plans, pushes, opens and describes pull requests.

    Args:
        forges: The forges.
        records: The records of pull requests.
        store: The tickets.
        sessions: The sessions.
        redactor: Removes secrets from descriptions.
        settings: The group `pull_requests`.
        base_url: `server.url`, for a link to the ticket's page.
    """

    def __init__(
        self,
        forges: KnownForges,
        records: SqlPullRequests,
        store: Store,
        sessions: SessionStore,
        redactor: Redactor,
        settings: PullRequestSettings,
        base_url: str | None,
    ) -> None:
        self.forges = forges
        self.records = records
        self.store = store
        self._sessions = sessions
        self._redactor = redactor
        self._settings = settings
        self._base_url = base_url

    # -------------------------------------------------- before the session

    async def plan(
        self, ticket: Ticket, repositories: Sequence[RepoSpec], *, new: bool = False
    ) -> dict[str, Planned]:
        """Return where the pull requests of a ticket are to be, by the URL of the repository.

        Args:
            ticket: The ticket.
            repositories: Those of its subject, as the settings have them.
            new: Whether another one is opened where the last one was merged or closed.

        Raises:
            Conflict: One cannot be opened: it was merged or closed, its branch was deleted, the repository is archived or a fork.
            SettingsError: The forge is not known, or there is no token for it.
            MidwatchError: The forge does not answer, or refuses the token.
        """
        rows = await self.store.pull_requests_of(ticket.id)
        last = {row.repository: row for row in rows}
        return {
            one.url: await self._plan(ticket, one, last.get(one.url), new)
            for one in repositories
        }

    async def _plan(
        self, ticket: Ticket, spec: RepoSpec, known: PullRequest | None, new: bool
    ) -> Planned:
        place = self.forges.of(spec.url)
        repository = await place.forge.repository(place.project)
        if repository.problem:
            raise Conflict(
                f"no {place.forge.noun} can be opened in {place.project}: {repository.problem}",
                hint="change that there, or the repositories of the subject",
            )
        base = spec.branch or repository.default_branch
        if base is None:
            raise Conflict(
                f"{place.project} has no default branch to open a {place.forge.noun} for",
                hint="write `branch` of the repository into the subject's settings",
            )
        attempt = known.attempt if known else 1
        while True:
            planned = Planned(
                spec.url, place, attempt, branch_of(ticket, attempt), base, False, known
            )
            planned, problem = await self._looked_up(planned)
            if not problem:
                return planned
            if not new:
                raise Conflict(problem, hint=_ANOTHER)
            attempt, known = attempt + 1, None

    async def _looked_up(self, planned: Planned) -> tuple[Planned, str]:
        """Return the plan with what is at the forge, and why it cannot be carried out; empty if it can."""
        forge, project = planned.place.forge, planned.place.project
        known, branch = planned.known, planned.branch
        found = _best(await forge.find(project, branch))
        exists = await forge.branch(project, branch) is not None
        if known is not None and found is not None and known.number is not None:
            known = await self._saw(known, found)
        planned = replace(planned, exists=exists, known=known)
        if found is not None and found.ended:
            return planned, f"the {forge.noun} {found.url} is {found.state}"
        if not exists and (found is not None or (known and known.head)):
            where = found.url if found else project
            return planned, f"the branch {branch} of {where} was deleted"
        return planned, ""

    async def _saw(self, row: PullRequest, found: ForgePullRequest) -> PullRequest:
        values = {"state": found.state, "number": found.number, "url": found.url}
        seconds = None if found.state == "merged" else self._settings.interval
        return await self.records.change(
            row,
            values,
            actor="midwatch",
            why=state_line(found),
            seconds=seconds,
        )

    # -------------------------------------------------- a session elsewhere

    def check_pushes_by_itself(self) -> None:
        """Raise Conflict if the settings want an approval: a session in a cluster pushes before a person could."""
        if self._settings.approval:
            raise Conflict(
                "a session in a cluster pushes by itself, so no person can approve its changes first",
                hint="set pull_requests.approval to false, or let the session run on this machine",
            )

    async def expect(
        self, ticket: Ticket, plans: dict[str, Planned], session: str, by: str
    ) -> None:
        """Record that a session on another machine will push to the branches: a daemon then opens the pull requests.

        Args:
            ticket: The ticket.
            plans: Of `plan`. What is open already is left as it is: new commits show there by themselves.
            session: The name of the session there.
            by: Who asked for it.
        """
        for planned in plans.values():
            if planned.known is not None and planned.known.number is not None:
                continue
            await self.records.save(
                ticket.id,
                planned.repository,
                planned.attempt,
                {
                    "branch": planned.branch,
                    "base": planned.base,
                    "session_id": session,
                    "requested_by": by,
                    "waiting": None,
                    "state": "waiting",
                },
                actor=by,
                why=f"waits for the branch of session {session}",
                seconds=SOON,
            )

    async def pushed(self, row: PullRequest) -> PullRequest | None:
        """Return what is recorded of a branch that a session elsewhere was to push; None while it is not there."""
        place = self.forges.of(row.repository)
        head = await place.forge.branch(place.project, row.branch)
        if head is None:
            return None
        return await self.records.change(
            row, {"state": "pushed", "head": head}, seconds=SOON
        )

    # -------------------------------------------------- after the session

    async def publish(
        self, work: Work, plans: dict[str, Planned]
    ) -> Sequence[Published]:
        """Push each repository with changes, and open or update its pull request.

        Where the settings want approval and it is missing, what changed waits for it, and nothing leaves this machine.
        A failure is in the result of its repository.
        """
        if self._settings.approval and work.approved_by is None:
            return await self._wait(work, plans)
        results = [
            await self._one(work, repo, plans[repo.url])
            for repo in work.workspace.repos
            if repo.url in plans
        ]
        if any(one.outcome in ("opened", "updated") for one in results):
            await self._describe_all(work.ticket)
        return results

    async def _wait(self, work: Work, plans: dict[str, Planned]) -> Sequence[Published]:
        states = await inspect_workspace(work.workspace, work.git)
        results = []
        for repo, state in zip(work.workspace.repos, states, strict=True):
            if state.status != "changed" or repo.url not in plans:
                results.append(Published(repo.name, "nothing"))
                continue
            values = {"waiting": work.session}
            planned = plans[repo.url]
            if planned.known is None or planned.known.number is None:
                values["state"] = "waiting"
            row = await self._save(
                work, planned, values, f"waits for approval: session {work.session}"
            )
            results.append(Published(repo.name, "waiting", row.url))
        return results

    async def _one(self, work: Work, repo: ClonedRepo, planned: Planned) -> Published:
        options = PushOptions(
            message=f"Changes for ticket {work.ticket.id} of Midwatch", at=work.at
        )
        target = replace(repo, push_branch=planned.branch)
        pushed = await push_repo(target, work.git, options)
        if pushed.error is not None:
            return Published(repo.name, "failed", error=pushed.error)
        known = planned.known
        opened = known is not None and known.number is not None
        if pushed.outcome == "nothing" and (opened or not planned.exists):
            return Published(repo.name, "nothing", known.url if known else None)
        row = await self._save(work, planned, _pushed(pushed, known), "")
        try:
            row, is_new = await self.open(row, work.ticket)
        except NothingToMerge:
            await self.records.remove(row)
            return Published(repo.name, "nothing")
        except MidwatchError as error:
            later = isinstance(error, TemporaryError)
            outcome: Literal["pushed", "failed"] = "pushed" if later else "failed"
            return Published(repo.name, outcome, row.url, error)
        return Published(repo.name, "opened" if is_new else "updated", row.url)

    async def _save(
        self, work: Work, planned: Planned, values: Json, why: str
    ) -> PullRequest:
        waits = bool(values.get("waiting"))
        opened = planned.known is not None and planned.known.number is not None
        later = self._settings.interval if opened else None
        values = {
            "branch": planned.branch,
            "base": planned.base,
            "session_id": work.session,
            "requested_by": work.by,
            "waiting": None,
            **({} if work.approved_by is None else {"approved_by": work.approved_by}),
            **values,
        }
        return await self.records.save(
            work.ticket.id,
            planned.repository,
            planned.attempt,
            values,
            actor=work.by,
            why=why,
            seconds=later if waits else SOON,
        )

    # -------------------------------------------------- at the forge

    async def open(self, row: PullRequest, ticket: Ticket) -> tuple[PullRequest, bool]:
        """Open the pull request of a branch that is pushed, or find the one that is there, and record it.

        Returns:
            What is recorded, and whether it was opened now.

        Raises:
            Conflict: It was merged or closed meanwhile.
            NothingToMerge: The branch has no commit of its own.
            MidwatchError: The forge does not answer, or refuses; that is recorded too.
        """
        try:
            found, is_new = await self._opened(row, ticket)
        except NothingToMerge:
            raise
        except MidwatchError as error:
            await self._failed(row, error)
            raise
        values = {
            "state": found.state,
            "number": found.number,
            "url": found.url,
            "failures": 0,
            "last_error": None,
        }
        row = await self.records.change(
            row,
            values,
            actor=row.requested_by,
            why=f"{'opened' if is_new else 'is open:'} {found.url}",
            seconds=self._settings.interval,
        )
        return row, is_new

    async def _opened(
        self, row: PullRequest, ticket: Ticket
    ) -> tuple[ForgePullRequest, bool]:
        place = self.forges.of(row.repository)
        forge, project = place.forge, place.project
        found = _best(await forge.find(project, row.branch))
        if found is None:
            repository = await forge.repository(project)
            new = NewPullRequest(
                row.branch,
                row.base,
                title_of(ticket, self._redactor, evidence=self._tells(repository)),
                await self._description(row, ticket, repository, ()),
                self._settings.draft,
            )
            try:
                return await forge.open(project, new), True
            except AlreadyOpen as error:
                # Another process opened it, or this one before it was killed.
                found = _best(await forge.find(project, row.branch))
                if found is None:
                    raise error
        if found.ended:
            await self._saw(row, found)
            raise Conflict(
                f"the {forge.noun} {found.url} is {found.state}", hint=_ANOTHER
            )
        return found, False

    async def _failed(self, row: PullRequest, error: MidwatchError) -> None:
        if isinstance(error, Conflict):
            return
        later = isinstance(error, TemporaryError)
        values = {"last_error": one_line(self._redactor.text(error.one_line()), 500)}
        wait = getattr(error, "retry_after", None) or SOON
        await self.records.change(row, values, seconds=wait if later else None)

    async def _describe_all(self, ticket: Ticket) -> None:
        """Bring the descriptions up to date: the last session's answer, and links to the others."""
        rows = await self.store.pull_requests_of(ticket.id)
        shown = [row for row in rows if row.url is not None and not row.ended]
        for row in shown:
            others = [str(one.url) for one in shown if one.id != row.id]
            try:
                await self._describe(row, ticket, others)
            except MidwatchError as error:
                # It is open all the same; the next session tries again.
                await self._failed(row, error)
                await self.records.change(row, {}, seconds=self._settings.interval)

    async def _describe(
        self, row: PullRequest, ticket: Ticket, others: Sequence[str]
    ) -> None:
        place = self.forges.of(row.repository)
        forge, project = place.forge, place.project
        found = [one for one in await forge.find(project, row.branch) if not one.ended]
        if not found:
            return
        repository = await forge.repository(project)
        part = await self._description(row, ticket, repository, others)
        changed = spliced(found[0].body, part)
        if changed is not None and len(changed.encode()) <= forge.longest_body:
            await forge.describe(project, found[0].number, changed)

    async def _description(
        self,
        row: PullRequest,
        ticket: Ticket,
        repository: ForgeRepository,
        others: Sequence[str],
    ) -> str:
        forge = self.forges.of(row.repository).forge
        attempts = await self.store.diagnoses(ticket.id)
        try:
            answer = (await self._sessions.get(row.session)).status.result
        except NotFound:  # it runs in a cluster
            answer = ""
        base = self._base_url
        return Description(
            ticket=ticket,
            diagnosis=settled(ticket, attempts),
            answer=answer,
            session=row.session,
            page=f"{base}/tickets/{ticket.id}" if base else "",
            evidence=self._tells(repository),
            others=others,
            noun=forge.noun,
        ).markdown(self._redactor, forge.longest_body)

    def _tells(self, repository: ForgeRepository) -> bool:
        """Return whether what was seen of the system may be written into a repository."""
        chosen = self._settings.evidence
        return chosen == "always" or (chosen == "private" and not repository.public)


def _best(found: Sequence[ForgePullRequest]) -> ForgePullRequest | None:
    """Return the one that is open, else the newest."""
    still_open = [one for one in found if not one.ended]
    return next(iter([*still_open, *found]), None)


def _pushed(pushed: PushResult, known: PullRequest | None) -> Json:
    values: Json = {"last_error": None}
    if pushed.commit is not None:
        values["head"] = pushed.commit
    if known is None or known.number is None:
        values["state"] = "pushed"
    return values


def state_line(found: ForgePullRequest) -> str:
    """Return the line of a ticket's history for a new state."""
    by = f" by {one_line(found.by, 100)}" if found.by else ""
    words = {"open": "is open:", "draft": "is a draft:"}
    return f"{words.get(found.state, found.state)} {found.url}{by}"
