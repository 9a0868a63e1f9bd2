"""`midwatch session send | interrupt | end | approve | deny | attach`: the mailbox of a session.

These commands use only the session's folder, not the database.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.cli.output import Output
from midwatch.cli.session.options import AsJson, Id, read_prompt
from midwatch.errors import Conflict, SettingsError
from midwatch.session_ancestry import refuse_in_session

if TYPE_CHECKING:
    from midwatch.session.mailbox import Kind, Mailbox
    from midwatch.session.records import SessionPaths

app = typer.Typer()
RequestId = Annotated[
    str | None,
    typer.Argument(
        metavar="[REQUEST]", help="Id of the request, if several are pending."
    ),
]


@app.command()
def send(
    context: typer.Context,
    session_id: Id,
    text: Annotated[str, typer.Argument(help="TEXT, @FILE, or - for stdin.")],
    as_json: AsJson = False,
) -> None:
    """Send a message, or one of the commands of `attach`, to an interactive session; `/end` ends it."""
    from midwatch.cli.session.chat import send_line

    message = read_prompt(text)
    _write(context.obj, session_id, lambda box: send_line(box, message), as_json)


@app.command()
def interrupt(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """End the current turn, not the session."""
    _write(context.obj, session_id, lambda box: ("interrupt", box.interrupt()), as_json)


@app.command()
def end(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """End an interactive session once its earlier messages are answered."""
    _write(context.obj, session_id, lambda box: ("end_session", box.end()), as_json)


@app.command()
def approve(
    context: typer.Context,
    session_id: Id,
    request: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Allow the tool call that Claude asks permission for."""
    _answer(context.obj, session_id, request, True, "", as_json)


@app.command()
def deny(
    context: typer.Context,
    session_id: Id,
    request: RequestId = None,
    why: Annotated[
        str, typer.Option("--why", help="The reason, which Claude reads.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Deny the tool call that Claude asks permission for."""
    _answer(context.obj, session_id, request, False, why, as_json)


@app.command()
def attach(
    context: typer.Context,
    session_id: Id,
    after: Annotated[
        int, typer.Option("--after", min=0, help="Start after this event number.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Follow a session; each line of standard input is sent to it, as in a chat.

    `/interrupt`, `/approve`, `/deny`, `/end` and `/help` are commands. Detaching does not end the session.
    """
    from midwatch.cli.session.chat import follow
    from midwatch.cli.session.view import EventPrinter

    edge: Edge = context.obj
    paths = _paths(edge, session_id)
    output = Output.standard(edge.environ)
    follow(paths, EventPrinter(output, as_json, session_id), after)


def _answer(
    edge: Edge,
    session_id: str,
    request: str | None,
    allow: bool,
    why: str,
    as_json: bool,
) -> None:
    def write(mailbox: Mailbox) -> tuple[Kind, str]:
        return "permission_response", mailbox.answer(request, allow=allow, why=why)

    if not _paths(edge, session_id).running:
        raise Conflict(
            f"session {session_id} does not run, so no request waits for an answer",
            hint=f"`midwatch session show {session_id}`",
        )
    _write(edge, session_id, write, as_json)


def _write(
    edge: Edge,
    session_id: str,
    write: Callable[[Mailbox], tuple[Kind, str]],
    as_json: bool,
) -> None:
    from midwatch.cli.session.chat import delivery_line
    from midwatch.session.mailbox import Mailbox

    paths = _paths(edge, session_id)
    kind, message_id = write(Mailbox(session_id, paths.folder))
    output = Output.standard(edge.environ)
    if as_json:
        output.json({"session": session_id, "message": message_id, "type": kind})
    else:
        output.line(f"{kind} {message_id}: {delivery_line(paths)}")


def _paths(edge: Edge, session_id: str) -> SessionPaths:
    """Return the paths of a session on this machine. Raises NotFound."""
    refuse_in_session(edge.environ, "write to the mailbox of a session")
    from midwatch.session.records import SessionFolders

    settings = edge.settings()
    if not session_id:
        raise SettingsError("is empty", path="ID", hint="see `midwatch session list`")
    return SessionFolders.from_settings(settings.sessions).existing(session_id)
