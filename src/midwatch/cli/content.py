"""`midwatch content`: run the content proxy, and issue tokens for it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.cli.running import end_in
from midwatch.errors import SettingsError
from midwatch.settings import Settings
from midwatch.units import parse_duration

app = typer.Typer()

_EXTRA = ("jwt", "obstore", "prometheus_client", "starlette", "uvicorn")
"""The packages of the extra `content`."""
_MARGIN = 5.0
"""Seconds after `content.grace` until the process exits, even if a disk hangs."""


@contextmanager
def needs_content() -> Iterator[None]:
    """Import packages of the extra `content` in the block. Raises SettingsError if one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise SettingsError(
            f"the content proxy needs the package {error.name}",
            hint="pip install 'midwatch[content]'",
        ) from None


def keys_of(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys that tokens are signed with. Raises SettingsError."""
    from midwatch.content.tokens import read_keys

    return read_keys(key_file(settings))


def key_file(settings: Settings) -> Path:
    """Return the path of the file of keys. Raises SettingsError."""
    if settings.content.key_file is None:
        raise SettingsError(
            "no file with a key for tokens is set",
            path="content.key_file",
            hint="run `openssl rand -hex 32 > FILE` and set this to FILE; the operator needs the same key",
        )
    return settings.content.key_file


@app.command()
def serve(context: typer.Context) -> None:
    """Serve the folders at `content.root` or in the bucket `content.url` over HTTP until SIGTERM."""
    with needs_content():
        asyncio.run(_serve(context.obj))


async def _serve(edge: Edge) -> None:
    from midwatch.content.server.app import serve
    from midwatch.content.tokens import KeyFile
    from midwatch.lifecycle import StopEvent, collect_rarely, stop_on_signals
    from midwatch.logs import forward_library_logs, open_log
    from midwatch.redaction import Redactor

    settings = edge.settings()
    keys = keys_of(settings)
    redactor = Redactor([key.decode("latin-1") for key in keys])
    collect_rarely()  # `main` turned the collector off for the start
    stop = StopEvent()
    longest = settings.content.grace + _MARGIN
    with stop_on_signals(stop, lambda: end_in(longest, 1)):
        log = open_log(settings.log, sys.stdout, redactor)
        forward_library_logs(log)
        live = KeyFile(key_file(settings), keys, log)
        await serve(settings.content, live, stop, log)


@app.command()
def token(
    context: typer.Context,
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="The session's folder: NAMESPACE/NAME.UID."
        ),
    ],
    read: Annotated[
        list[str] | None,
        typer.Option(help="Another folder that the token may read; repeatable."),
    ] = None,
    expires: Annotated[
        str, typer.Option(help="How long the token is valid, such as 2h; 0 for ever.")
    ] = "1h",
) -> None:
    """Print a token for a session's folder, to read its files or to send it a message.

    `curl -H "Authorization: Bearer TOKEN" ADDRESS/content/list?path=workspace` lists a folder, and
    `/content/file?path=…` returns a file; see docs/kubernetes.md.
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
        _check_uid(one)
    key = keys_of(context.obj.settings())[0]
    print(issue(key, folder, read or (), now=now, expires=until))


def _check_uid(folder: str) -> None:
    """Raise SettingsError for an id without the uid: it is another folder, which no session reads."""
    if not re.search(r"\.[0-9a-f]{8}\Z", folder):
        raise SettingsError(
            f"{ascii(folder[:200])} does not end with the first 8 digits of the session's uid",
            path="FOLDER",
            hint="use NAMESPACE/NAME.UID; kubectl get agenticsession NAME -o jsonpath='{.metadata.uid}' prints the uid",
        )
