"""`midwatch content token`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from midwatch.cli.content.extra import keys_of, needs_content
from midwatch.errors import SettingsError
from midwatch.units import parse_duration

app = typer.Typer()


@app.command()
def token(
    context: typer.Context,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="NAMESPACE/NAME.UID, as it is.")
    ],
    read: Annotated[
        list[str] | None,
        typer.Option(help="Another folder that it may read; repeatable."),
    ] = None,
    expires: Annotated[
        str, typer.Option(help="For how long it holds, such as 2h; 0 for ever.")
    ] = "1h",
) -> None:
    """Print a token for a session's folder, to read its files or to send it a message by hand.

    `curl -H "Authorization: Bearer TOKEN" ADDRESS/content/list?path=workspace` lists a folder of it, and
    `/content/file?path=…` answers a file; docs/kubernetes.md has more.
    """
    with needs_content():
        from midwatch.content.tokens import issue
    now = datetime.now(UTC)
    try:
        seconds = parse_duration(expires)
        until = now + timedelta(seconds=seconds) if seconds else None
    except (ValueError, OverflowError) as error:
        raise SettingsError(str(error), path="--expires") from None
    for one in (folder, *(read or ())):
        _check(one)
    key = keys_of(context.obj.settings())[0]
    print(issue(key, folder, read or (), now=now, expires=until))


def _check(folder: str) -> None:
    """Without the uid it would be another folder, where nobody reads what is sent. Raises SettingsError."""
    if not re.search(r"\.[0-9a-f]{8}\Z", folder):
        raise SettingsError(
            f"{ascii(folder[:200])} does not end with the first 8 digits of the session's uid",
            path="FOLDER",
            hint="kubectl get agenticsession NAME -o jsonpath='{.metadata.uid}' tells it: NAMESPACE/NAME.UID",
        )
