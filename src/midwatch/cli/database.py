"""`midwatch db`: the database's schema."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from midwatch.cli.output import Output
from midwatch.cli.tickets import AsJson
from midwatch.cli.wiring import Edge
from midwatch.errors import SchemaMismatch

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

app = typer.Typer()

db = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(db, name="db")


@db.command()
def upgrade(context: typer.Context, as_json: AsJson = False) -> None:
    """Bring the schema to what this version needs."""
    from midwatch.store.schema import REVISION

    before = asyncio.run(_upgrade(context.obj))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json({"before": before, "present": REVISION})
    elif before == REVISION:
        output.line(f"the database is at {REVISION} already")
    else:
        output.line(f"the database is at {REVISION} now, before at {before or 'none'}")


@db.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Say which schema the database has and which is needed; exit code 1 if they differ."""
    from midwatch.store.schema import REVISION

    present = asyncio.run(_present(context.obj))
    output = Output.standard(context.obj.environ)
    current = present == REVISION
    if as_json:
        output.json({"present": present, "needed": REVISION, "current": current})
    else:
        output.line(f"present: {present or 'none'}")
        output.line(f"needed:  {REVISION}")
    if not current:
        raise SchemaMismatch("the schema is not current")


async def _upgrade(edge: Edge) -> str | None:
    from midwatch.store.engine import open_transactions, parse_database
    from midwatch.store.upgrade import upgrade as apply

    transactions = open_transactions(parse_database(edge.settings().database))
    try:
        return await apply(transactions)
    finally:
        await transactions.close()


async def _present(edge: Edge) -> str | None:
    from midwatch.store.engine import open_transactions, parse_database
    from midwatch.store.upgrade import present_revision

    url = parse_database(edge.settings().database)
    if _is_missing_file(url):
        return None  # opening it would make it
    transactions = open_transactions(url)
    try:
        return await transactions.run(present_revision)
    finally:
        await transactions.close()


def _is_missing_file(url: URL) -> bool:
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return False
    return not Path(str(url.database)).exists()
