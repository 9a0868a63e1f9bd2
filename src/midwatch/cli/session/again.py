"""Requests for sessions that were before: resumed here or elsewhere, and forked."""

from __future__ import annotations

from dataclasses import replace

from midwatch.cli.session.choices import Choices
from midwatch.cli.session.desk import Desk, is_here
from midwatch.cli.session.kept import elsewhere
from midwatch.cli.session.places import Place
from midwatch.cli.session.request import (
    Repository,
    Request,
    carried_of,
    earlier_choices,
    new_id,
    repositories_of,
)
from midwatch.cli.session.telling import aside
from midwatch.errors import Conflict
from midwatch.session.agentic_session import GO_ON
from midwatch.session.log import conversation_id, read_events
from midwatch.session.records import TranscriptKey
from midwatch.session.status import SessionStatus, fold
from midwatch.session.transcripts import PROJECT
from midwatch.store.sessions import StoredSession


async def resumed(
    desk: Desk,
    session_id: str,
    prompt: str | None,
    interactive: bool,
    push: bool,
    choices: Choices,
) -> Request:
    """Raises NotFound, and Conflict where it runs or where there is nothing to go on with."""
    session = await desk.session(session_id)
    place = desk.places.place(session_id)
    if desk.alive(session):
        raise Conflict(
            f"session {session_id} is running on {session.options.get('host')}",
            hint=f"`midwatch session attach {session_id}` or `end {session_id}`",
        )
    repositories, carried = repositories_of(session), carried_of(session)
    here = fold(SessionStatus(), read_events(place.folder.outbox))
    moved = not is_here(session, place)
    if moved:
        carried = elsewhere(session.status, here)
        _tell_moved(session, place)
    if session.status.last_seq and not place.state.exists():
        repositories = _as_pushed(session, repositories)
    if prompt is None and not interactive:
        prompt = _still_to_do(session, here)
    return Request(
        id=session_id,
        prompt=prompt,
        repositories=repositories,
        main=int(session.options.get("main") or 0),
        interactive=interactive,
        push=push or bool(session.options.get("push")),
        choices=choices.over(earlier_choices(session)),
        forked_from=session.forked_from,
        ticket=session.ticket,
        carried=carried,
        moved=moved,
        asked=session.prompt,
    )


def _tell_moved(session: StoredSession, place: Place) -> None:
    was = f"session {session.id} was last on {session.options.get('host')}"
    if place.state.exists():
        aside(f"{was}: the workspace is as the session left it here")
    else:
        aside(f"{was}: what it did not push is not in this workspace")


def _as_pushed(
    session: StoredSession, asked: tuple[Repository, ...]
) -> tuple[Repository, ...]:
    """The repositories, each from the branch that the session has pushed to."""
    if len(session.repositories) != len(asked):
        return asked
    own = f"midwatch/{session.id}"
    return tuple(
        (
            replace(one, branch=one.push_branch or own)
            if record.get("status") == "pushed"
            else one
        )
        for one, record in zip(asked, session.repositories, strict=True)
    )


def _still_to_do(session: StoredSession, here: SessionStatus) -> str | None:
    """The prompt of a resume that has none; None where a turn was cut off here, and goes on."""
    if here.unfinished:
        return None
    if (
        session.status.unfinished
    ):  # cut off on another machine: the transcript tells how far
        return GO_ON
    if not session.status.prompts and session.prompt:
        return session.prompt
    raise Conflict(
        f"session {session.id} has answered everything",
        hint="say what to do next: --prompt TEXT",
    )


async def forked(
    desk: Desk,
    session_id: str,
    prompt: str | None,
    interactive: bool,
    push: bool,
    push_branch: str | None,
    choices: Choices,
) -> Request:
    """Raises NotFound, and Conflict where nothing was said yet."""
    session = await desk.session(session_id)
    key = TranscriptKey(project_key=PROJECT, session_id=conversation_id(session_id))
    if await desk.transcripts.load(key) is None:
        raise Conflict(f"nothing was said in session {session_id} yet")
    return Request(
        id=new_id(),
        prompt=prompt,
        repositories=tuple(
            replace(one, push_branch=push_branch)
            for one in _as_pushed(session, repositories_of(session))
        ),
        main=int(session.options.get("main") or 0),
        interactive=interactive,
        push=push,
        choices=choices.over(earlier_choices(session)),
        forked_from=session_id,
        ticket=session.ticket,
    )
