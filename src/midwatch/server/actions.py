"""What people and programs do to tickets: the page, the API and MCP act through `Actions`, which checks who may."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import asdict, dataclass
from typing import Protocol

from midwatch.agent.approved_actions import ApprovedActions, TicketActions
from midwatch.errors import Conflict
from midwatch.matchers import Matcher
from midwatch.model import Json, Ticket
from midwatch.redaction import Redactor
from midwatch.server.auth import Principal, Role, refuse_sessions
from midwatch.server.problems import Forbidden
from midwatch.silences import Silence
from midwatch.store.action_runs_protocol import ActionRun
from midwatch.store.on_call import Answered
from midwatch.store.protocol import Store
from midwatch.subjects.actionable import ActionCheck
from midwatch.text import clean

MAX_WHY = 2000
MAX_PROMPT = 20_000
"""Characters of a reason and of what a person adds to the task of a session."""
_LONGEST_START = 90.0  # seconds
_POLL = 0.2


class StartsSessions(Protocol):
    """Starts sessions that fix tickets."""

    async def fix(
        self,
        ticket_id: int,
        *,
        by: str,
        prompt: str,
        interactive: bool,
        session_id: str | None = None,
        pull_request: bool = False,
    ) -> str:
        """Start a session for a ticket and return its id. Raises MidwatchError if it does not start.

        With `session_id` that is its id; a session that has it already is returned. With `pull_request` its changes
        become pull requests.
        """
        ...

    async def approve_pull_requests(self, session_id: str, *, by: str) -> None:
        """Push what a session changed, and open its pull requests. Raises MidwatchError if that fails."""
        ...


class CreatesResources(Protocol):
    """Creates sessions in a cluster."""

    @property
    def namespace(self) -> str:
        """The namespace of the sessions."""
        ...

    async def create(
        self, ticket_id: int, *, by: str, prompt: str, session_id: str | None = None
    ) -> str:
        """Create the resource of a session for a ticket, whose changes become pull requests, and return its name.

        The same `session_id` gives the same name, and one resource. Raises MidwatchError if it cannot be created.
        """
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """A session that was started.

    Attributes:
        session: Its id; of a session in a cluster the name of its resource.
        resource: NAMESPACE/NAME of its AgenticSession; None for a session on this machine.
    """

    session: str
    resource: str | None = None


class Actions:
    """What people and programs do to tickets. Each change names who did it in the ticket's history.

    Every method raises Forbidden if the role or the scopes of `who` do not allow it, and NotFound. Those with a
    `version` raise Outdated, and change nothing, if it is not the present one (`Store.version`).
    """

    def __init__(
        self,
        store: Store,
        redactor: Redactor,
        sessions: StartsSessions | None = None,
        approved: ApprovedActions | None = None,
        cluster: CreatesResources | None = None,
    ) -> None:
        self._approved = approved or ApprovedActions(store, (), redactor)
        self._store = store
        self._redactor = redactor
        self._sessions = sessions
        self._cluster = cluster

    async def acknowledge(
        self,
        who: Principal,
        ticket_id: int,
        why: str = "",
        *,
        version: int | None = None,
    ) -> Ticket:
        """Record that somebody works on a ticket. Raises Conflict if it is resolved."""
        _require(who, "tickets:write")
        reason = self._text(why)
        return await self._store.acknowledge(
            ticket_id, who.name, reason, version=version
        )

    async def hold(
        self,
        who: Principal,
        ticket_id: int,
        held: bool,
        why: str = "",
        *,
        version: int | None = None,
    ) -> Ticket:
        """Set whether the monitor must not resolve a ticket. Raises Conflict if it is resolved."""
        _require(who, "tickets:write")
        reason = self._text(why)
        return await self._store.hold(
            ticket_id, held, who.name, reason, version=version
        )

    async def resolve(
        self, who: Principal, ticket_id: int, why: str, *, version: int | None = None
    ) -> Ticket:
        """Resolve a ticket. Raises Conflict if it is resolved already, or without a reason."""
        _require(who, "tickets:write")
        reason = self._needed(why)
        return await self._store.resolve(ticket_id, who.name, reason, version=version)

    async def retry(
        self,
        who: Principal,
        ticket_id: int,
        why: str = "",
        *,
        version: int | None = None,
    ) -> Ticket:
        """Put a ticket back into the queue. Raises Conflict if it is resolved or being diagnosed."""
        _require(who, "tickets:write")
        reason = self._text(why)
        return await self._store.retry(ticket_id, who.name, reason, version=version)

    async def silence(
        self, who: Principal, ticket_id: int, seconds: float, why: str
    ) -> Silence:
        """Silence what a ticket is about, the violation of its invariant on its component.

        Args:
            who: Who asks.
            ticket_id: The ticket.
            seconds: How long, from now.
            why: The reason, which must be given.

        Raises:
            Conflict: There is no reason.
            InvalidSilence: The time is too short or too long.
        """
        _require(who, "silences:write")
        reason = self._needed(why)
        key = (await self._store.ticket(ticket_id)).key
        parts = {
            "subject": key.subject,
            "invariant": key.invariant,
            "component": key.component,
        }
        matchers = [Matcher(name, "=", value) for name, value in parts.items()]
        return await self._store.add_silence(
            matchers, author=who.name, reason=reason, seconds=seconds
        )

    async def fix(
        self,
        who: Principal,
        ticket_id: int,
        prompt: str = "",
        *,
        interactive: bool = True,
        session_id: str | None = None,
        pull_request: bool = False,
    ) -> Started:
        """Start a session that works on a ticket, in the repositories of its subject.

        Where the settings name a cluster, one with pull requests runs there: by itself, also if it is to be interactive.

        Args:
            who: Who asks.
            ticket_id: The ticket; a resolved one may still have its cause in the code.
            prompt: What is added to the task.
            interactive: Whether the session waits for answers to its requests for permission, and for messages.
            session_id: The id that it gets, for a request that may come again; by default a new one.
            pull_request: Whether a pull request is opened for each repository that it changes.

        Raises:
            SettingsError: The subject names no repositories.
            Conflict: This process starts no sessions.
            MidwatchError: The session did not start.
        """
        _require(who, "sessions:write")
        await self._store.ticket(ticket_id)
        text = self._redactor.text(clean(prompt[:MAX_PROMPT], longest=None)).strip()
        if pull_request and self._cluster is not None:
            name = await self._cluster.create(
                ticket_id, by=who.name, prompt=text, session_id=session_id
            )
            return Started(name, f"{self._cluster.namespace}/{name}")
        if self._sessions is None:
            raise Conflict("this process starts no sessions", hint="use midwatch serve")
        started = await self._sessions.fix(
            ticket_id,
            by=who.name,
            prompt=text,
            interactive=interactive,
            session_id=session_id,
            pull_request=pull_request,
        )
        return Started(started)

    async def fix_once(
        self,
        who: Principal,
        ticket_id: int,
        prompt: str,
        key: str,
        *,
        interactive: bool = True,
        pull_request: bool = False,
    ) -> Started:
        """Start a session as `fix` does, or return the one that the same request with this key has started.

        One that comes while the first is being carried out waits for it. An answer is kept for a day.

        Args:
            who: Who asks.
            ticket_id: The ticket.
            prompt: What is added to the task; another one makes another request.
            key: Any text that the request, and its repetitions, bring along.
            interactive: As for `fix`.
            pull_request: Whether pull requests are opened for what changes.

        Raises:
            MidwatchError: As `fix`.
        """
        _require(who, "sessions:write")
        request = digest_of_key(who, f"{ticket_id}\n{key}\n{pull_request}\n{prompt}")
        owner = f"{who.via} {who.name}"
        known = await self._begun(owner, request)
        if known is not None:
            return Started(**known.answer)
        answer: Json | None = None
        try:
            session_id = f"s-{request[:12]}"
            started = await self.fix(
                who,
                ticket_id,
                prompt,
                interactive=interactive,
                session_id=session_id,
                pull_request=pull_request,
            )
            answer = asdict(started)
        finally:
            await self._store.end_request(owner, request, 202, answer)
        return started

    async def _begun(self, owner: str, request: str) -> Answered | None:
        """Return the answer to a request, or None if it has to be carried out. Raises Conflict."""
        for _ in range(round(_LONGEST_START / _POLL)):
            try:
                return await self._store.begin_request(owner, request, request)
            except Conflict:
                await asyncio.sleep(_POLL)
        return await self._store.begin_request(owner, request, request)

    async def approve_pull_requests(self, who: Principal, ticket_id: int) -> None:
        """Approve what waits for it: it is pushed, and the pull requests are opened.

        Raises:
            Conflict: Nothing waits, or this process starts no sessions.
            MidwatchError: It could not be pushed, or a pull request could not be opened.
        """
        _require(who, "sessions:write")
        await self._store.ticket(ticket_id)
        pulls = await self._store.pull_requests_of(ticket_id)
        waiting = sorted({one.waiting for one in pulls if one.waiting is not None})
        if not waiting:
            raise Conflict(f"no change for ticket {ticket_id} waits for approval")
        if self._sessions is None:
            raise Conflict("this process starts no sessions", hint="use midwatch serve")
        for session_id in waiting:
            await self._sessions.approve_pull_requests(session_id, by=who.name)

    async def ticket_actions(self, ticket_id: int) -> TicketActions:
        """Return what can be approved on a ticket, and what was."""
        return await self._approved.of_ticket(ticket_id)

    async def dry_run(
        self, who: Principal, ticket_id: int, action_id: str
    ) -> ActionCheck:
        """Return what an action would do now. Raises Conflict if the settings do not allow it."""
        _require(who, "actions")
        return await self._approved.dry_run(ticket_id, action_id)

    async def approve(
        self, who: Principal, ticket_id: int, action_id: str, channel: str
    ) -> ActionRun:
        """Approve an action of a ticket, and run it once.

        Args:
            who: Who approves it.
            ticket_id: The ticket.
            action_id: The id of the proposal, as it was listed.
            channel: Where: page, api or mcp.

        Raises:
            Conflict: The settings do not allow it, or somebody approved it before.
        """
        _require(who, "actions")
        await refuse_sessions(who)
        return await self._approved.approve(
            ticket_id, action_id, by=who.name, channel=channel
        )

    def _text(self, why: str) -> str:
        """Return a reason as it is stored: printable, without secrets, of bounded length."""
        return self._redactor.text(clean(why, longest=None)).strip()[:MAX_WHY]

    def _needed(self, why: str) -> str:
        if reason := self._text(why):
            return reason
        raise Conflict("no reason was given", hint="say why: later diagnoses use it")


def digest_of_key(who: Principal, key: str) -> str:
    """Return hexadecimal digits that an idempotency key of a person or a program always gives."""
    return hashlib.sha256(f"{who.via}\n{who.name}\n{key}".encode()).hexdigest()


def session_of(who: Principal, ticket_id: int, key: str | None) -> str | None:
    """Return the id of the session that a request with an idempotency key starts: a crash does not double it."""
    return None if key is None else f"s-{digest_of_key(who, f'{ticket_id} {key}')[:12]}"


def _require(who: Principal, scope: str) -> None:
    if who.role < Role.OPERATOR:
        role = who.role.label
        raise Forbidden(f"{who.name} is {role}; this needs operator")
    if scope not in who.scopes:
        raise Forbidden(f"the token of {who.name} has no scope {scope}")
