"""`midwatch content serve`."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.cli.daemons import end_in
from midwatch.errors import SettingsError
from midwatch.settings import Settings
from midwatch.units import parse_duration

# ------------------------------------------------------------ extra
# What only an installation with the extra `content` has.

_PARTS = ("jwt", "prometheus_client", "starlette", "uvicorn")


@contextmanager
def needs_content() -> Iterator[None]:
    """Imports inside need the extra. Raises SettingsError where a package of it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PARTS:
            raise
        raise SettingsError(
            f"the content proxy needs the package {error.name}",
            hint="pip install 'midwatch[content]'",
        ) from None


def keys_of(settings: Settings) -> tuple[bytes, ...]:
    """The keys that tokens are signed with. Raises SettingsError."""
    from midwatch.content.tokens import read_keys

    return read_keys(key_file(settings))


def key_file(settings: Settings) -> Path:
    """The file that holds them. Raises SettingsError."""
    if settings.content.key_file is None:
        raise SettingsError(
            "there is no key for tokens",
            path="content.key_file",
            hint="openssl rand -hex 32 > FILE, and name the file; the operator needs the same",
        )
    return settings.content.key_file


app = typer.Typer()

_MARGIN = 5.0
"""Seconds beyond the grace until the process ends, whatever a disk that hangs would wait for."""


@app.command()
def serve(context: typer.Context) -> None:
    """Serve the volume that `content.root` names, until SIGTERM."""
    with needs_content():
        asyncio.run(_serve(context.obj))


async def _serve(edge: Edge) -> None:
    from midwatch.content.server.app import serve
    from midwatch.content.tokens import KeyFile
    from midwatch.lifecycle import StopEvent, stop_on_signals
    from midwatch.logs import open_log
    from midwatch.redaction import Redactor

    settings = edge.settings()
    keys = keys_of(settings)
    redactor = Redactor([key.decode("latin-1") for key in keys])
    gc.enable()  # `main` turned it off for the start
    stop = StopEvent()
    longest = settings.content.grace + _MARGIN
    with stop_on_signals(stop, lambda: end_in(longest, 1)):
        log = open_log(settings.log, sys.stdout, redactor)
        live = KeyFile(key_file(settings), keys, log)
        await serve(settings.content, live, stop, log)


# ------------------------------------------------------------ token
# `midwatch content token`.


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


# ------------------------------------------------------------ init
# `midwatch content`: the content proxy and tokens for it.
