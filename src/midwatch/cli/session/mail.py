"""`midwatch session send | interrupt | approve | deny | end | attach`: the two files of a session."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midwatch.cli.output import Output
from midwatch.cli.session.app import AsJson, Id
from midwatch.cli.wiring import Edge
from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.cli.session.places import Place
    from midwatch.session.mailbox import Kind

app = typer.Typer()

RequestId = Annotated[
    str | None,
    typer.Argument(metavar="[REQUEST]", help="Which one, if several are asked."),
]


@app.command()
def send(
    context: typer.Context,
    session_id: Id,
    text: Annotated[str, typer.Argument(help="TEXT, @FILE, or - for stdin.")],
    as_json: AsJson = False,
) -> None:
    """Say something to an interactive session; `/end` ends it."""
    from midwatch.cli.session.request import read_prompt

    _post(context.obj, session_id, "user_message", read_prompt(text), as_json)


@app.command()
def interrupt(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """End the turn under way, not the session."""
    _post(context.obj, session_id, "interrupt", None, as_json)


@app.command()
def end(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """End an interactive session, once what was said before is answered."""
    _post(context.obj, session_id, "end_session", None, as_json)


@app.command()
def approve(
    context: typer.Context,
    session_id: Id,
    request: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Let Claude use the tool that it asks for."""
    _answer(context.obj, session_id, request, True, "", as_json)


@app.command()
def deny(
    context: typer.Context,
    session_id: Id,
    request: RequestId = None,
    why: Annotated[str, typer.Option("--why", help="What Claude is told.")] = "",
    as_json: AsJson = False,
) -> None:
    """Do not let Claude use the tool that it asks for."""
    _answer(context.obj, session_id, request, False, why, as_json)


@app.command()
def attach(
    context: typer.Context,
    session_id: Id,
    after: Annotated[
        int, typer.Option("--after", min=0, help="Begin behind this event's number.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Follow a session; each line of standard input is said to it, as in a chat.

    `/interrupt`, `/approve`, `/deny` and `/end` are commands. Who leaves ends nothing.
    """
    from midwatch.cli.session.attaching import follow
    from midwatch.cli.session.telling import Teller

    edge: Edge = context.obj
    place = _place(edge, session_id)
    follow(place, Teller(Output.standard(edge.environ), as_json), after)


# ------------------------------------------------------------------ shared


def _answer(
    edge: Edge,
    session_id: str,
    request: str | None,
    allow: bool,
    why: str,
    as_json: bool,
) -> None:
    from midwatch.cli.session.letters import pending_request

    asked = request or pending_request(_place(edge, session_id))
    content = {"request_id": asked, "allow": allow, "message": why}
    _post(edge, session_id, "permission_response", content, as_json)


def _post(edge: Edge, session_id: str, kind: Kind, content: Any, as_json: bool) -> None:
    from midwatch.cli.session.letters import expectation, write

    place = _place(edge, session_id)
    message_id = write(place, kind, content, datetime.now(UTC))
    output = Output.standard(edge.environ)
    if as_json:
        output.json({"session": session_id, "message": message_id, "type": kind})
    else:
        output.line(f"{kind} {message_id}: {expectation(place)}")


def _place(edge: Edge, session_id: str) -> Place:
    """Raises NotFound."""
    from midwatch.cli.session.places import Places

    settings = edge.settings()
    if not session_id:
        raise SettingsError("is empty", path="ID", hint="see `midwatch session list`")
    return Places.of(settings.sessions).present(session_id)
