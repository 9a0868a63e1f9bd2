"""`midwatch content token`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from ...errors import SettingsError
from ...units import parse_duration
from .app import app
from .extra import keys_of, needs_content


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
    """Print a token for a folder, to look into it by hand."""
    with needs_content():
        from ...content.tokens import issue
    now = datetime.now(UTC)
    try:
        seconds = parse_duration(expires)
        until = now + timedelta(seconds=seconds) if seconds else None
    except (ValueError, OverflowError) as error:
        raise SettingsError(str(error), path="--expires") from None
    key = keys_of(context.obj.settings())[0]
    print(issue(key, folder, read or (), now=now, expires=until))
