"""`midwatch tokens …`: the tokens with which programs and people reach the server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import use_store
from midwatch.cli.output import DIM, Cell, Output
from midwatch.cli.serve import needs_server
from midwatch.cli.tickets import AsJson, user_at_host
from midwatch.errors import SettingsError
from midwatch.session_ancestry import refuse_in_session
from midwatch.units import parse_duration

if TYPE_CHECKING:
    from midwatch.store.on_call import ApiToken, NewToken

app = typer.Typer()


@app.command()
def create(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="Who has it, as the history of tickets will name them."),
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is for; repeatable. read (the default), tickets:write, silences:write, "
            "sessions:write, investigations:write, changes:write, actions, alerts:write or mcp."
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="viewer, operator or admin. Without it operator if a scope permits changes, else viewer."
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option(help="How long it is valid, such as 12h or 90d.")
    ] = "90d",
    as_json: AsJson = False,
) -> None:
    """Create a token and print it. It is shown only once: the database has a digest of it.

    `curl -H "Authorization: Bearer TOKEN" URL/api/v1/tickets` uses it, and so does Sign in on the page.
    """
    refuse_in_session(context.obj.environ, "create a token")
    secret, new = _new(name, tuple(dict.fromkeys(scope or ("read",))), role, expires)
    made = use_store(context.obj, lambda store: store.add_token(new))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json({**_document(made), "token": secret})
    else:
        output.line(secret)


def _new(
    name: str, scopes: tuple[str, ...], role: str | None, expires: str
) -> tuple[str, NewToken]:
    """Return the secret of a new token, and what is stored of it. Raises SettingsError."""
    with needs_server():
        from midwatch.server.auth import SCOPES, Role
        from midwatch.server.authentication import clean_name, digest_of, new_secret
    from midwatch.store.on_call import NewToken

    if unknown := [one for one in scopes if one not in SCOPES]:
        raise SettingsError(
            f"{ascii(unknown[0][:60])} is no scope",
            path="--scope",
            hint=f"use one of {', '.join(SCOPES)}",
        )
    changes = {*scopes} - {"read", "mcp", "alerts:write"}
    chosen = role or (Role.OPERATOR if changes else Role.VIEWER).label
    if chosen not in {one.label for one in Role}:
        raise SettingsError(
            f"{ascii(chosen[:60])} is no role",
            path="--role",
            hint="use viewer, operator or admin",
        )
    if not clean_name(name):
        raise SettingsError("is empty", path="NAME", hint="name who has the token")
    secret = new_secret()
    return secret, NewToken(
        kind="api",
        name=clean_name(name),
        digest=digest_of(secret),
        role=chosen,
        scopes=scopes,
        created_by=user_at_host(),
        seconds=_seconds(expires),
    )


def _seconds(expires: str) -> float:
    try:
        seconds = parse_duration(expires)
    except ValueError as error:
        raise SettingsError(str(error), path="--expires") from None
    if seconds < 1:
        raise SettingsError(
            "the token would never be valid",
            path="--expires",
            hint="use one such as 90d",
        )
    return seconds


@app.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[
        bool, typer.Option("--all", help="Also those that ended in the last 90 days.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the tokens and the sign-ins of browsers."""
    found = use_store(context.obj, lambda store: store.tokens(all_))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([_document(one) for one in found])
        return
    rows = [
        [
            Cell(str(one.id)),
            Cell(one.name),
            Cell(one.role),
            Cell(", ".join(one.scopes)),
            Cell(_state(one, output), DIM if _ended(one, output.now) else ""),
            Cell(output.age(one.last_used_at)),
            Cell(one.created_by),
        ]
        for one in found
    ]
    if not rows:
        output.line("no tokens")
        return
    headings = ("id", "name", "role", "scopes", "ends", "last used", "made by")
    output.table(headings, rows, shrink=("scopes", "name"), drop=("made by",))


def _ended(token: ApiToken, now: datetime) -> bool:
    return token.revoked_at is not None or token.expires_at <= now


def _state(token: ApiToken, output: Output) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return f"{token.expires_at.astimezone(UTC):%Y-%m-%d %H:%M}Z"


@app.command()
def revoke(
    context: typer.Context,
    token_id: Annotated[int, typer.Argument(metavar="ID", help="The token's id.")],
    as_json: AsJson = False,
) -> None:
    """End a token, and the sign-ins that were made with it. A server refuses it within 5 s."""
    revoked = use_store(context.obj, lambda store: store.revoke_token(token_id))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json(_document(revoked))
    else:
        output.line(f"token {revoked.id}: revoked")


def _document(token: ApiToken) -> dict[str, object]:
    return {
        "id": token.id,
        "kind": token.kind,
        "name": token.name,
        "role": token.role,
        "scopes": list(token.scopes),
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
        "revoked_at": token.revoked_at,
    }
