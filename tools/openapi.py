"""`python -m tools.openapi docs/openapi.json`: write the OpenAPI document of the server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from midwatch.agent.links import Links
from midwatch.lifecycle import StopEvent, SystemClock
from midwatch.logs import open_log
from midwatch.redaction import Redactor
from midwatch.server.actions import Actions
from midwatch.server.app import create_app
from midwatch.server.context import ServerContext
from midwatch.session.manager import SessionManager
from midwatch.settings import Settings
from midwatch.store.sessions import SqlSessions, SqlTranscripts
from midwatch.store.sql import open_store


def main(arguments: Sequence[str]) -> int:
    """Write the document. Return the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    Path(arguments[0]).write_text(openapi_document(), encoding="utf-8")
    return 0


def openapi_document() -> str:
    """Return the document as JSON, as it is committed."""
    return json.dumps(asyncio.run(_document()), indent=1, sort_keys=True) + "\n"


async def _document() -> object:
    settings, redactor = Settings(), Redactor()
    store = await open_store("sqlite://")
    try:
        context = ServerContext(
            settings=settings,
            store=store,
            subjects=(),
            redactor=redactor,
            links=Links((), {}),
            log=open_log(settings.log, sys.stderr, redactor),
            clock=SystemClock(),
            environ={},
            stop=StopEvent(),
        )
        context.actions = Actions(store, redactor)
        context.sessions = SessionManager(
            SqlSessions(store.transactions), SqlTranscripts(store.transactions)
        )
        return create_app(context).openapi()
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
