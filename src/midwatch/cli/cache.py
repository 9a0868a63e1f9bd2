"""`midwatch cache …`: the mirrors of repositories, which make the next clone fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.cli.output import Cell, Output
from midwatch.cli.tickets import AsJson
from midwatch.errors import SettingsError
from midwatch.units import format_size, parse_size

if TYPE_CHECKING:
    from midwatch.workspace.mirrors import Mirrors

app = typer.Typer()


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the mirrors, the one used last first."""
    from midwatch.cli.session.view import mirror_document

    found = _mirrors(context.obj).listed()
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([mirror_document(mirror) for mirror in found])
        return
    rows = [
        [Cell(output.when(one.used_at)), Cell(format_size(one.size)), Cell(one.url)]
        for one in found
    ]
    if rows:
        output.table(("used", "size", "repository"), rows, shrink=("repository",))


@app.command()
def prune(
    context: typer.Context,
    max_size: Annotated[
        str | None,
        typer.Option(help="Size that may stay, such as 5GB; 0 removes all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove mirrors, the least recently used first, down to sessions.cache_size."""
    from midwatch.cli.session.view import mirror_document

    left = context.obj.settings().sessions.cache_size
    if max_size is not None:
        try:
            left = parse_size(max_size)
        except ValueError as error:
            raise SettingsError(str(error), path="--max-size") from None
    removed = _mirrors(context.obj).prune(int(left))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([mirror_document(mirror) for mirror in removed])
        return
    for mirror in removed:
        output.line(f"removed: {mirror.url}, {format_size(mirror.size)}")


def _mirrors(edge: Edge) -> Mirrors:
    from midwatch.session.records import SessionFolders
    from midwatch.workspace.git import Git
    from midwatch.workspace.setup import WorkspaceOptions

    settings = edge.settings().sessions
    options = WorkspaceOptions(cache=SessionFolders.from_settings(settings).cache)
    return options.mirrors(Git())
