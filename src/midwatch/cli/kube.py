"""`midwatch kube`: the operator, and documents for kubectl (`crd`, `convert`)."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from midwatch.cli.app import Edge
from midwatch.cli.output import Output
from midwatch.cli.running import end_in
from midwatch.errors import MidwatchError, PermanentError, SettingsError
from midwatch.lifecycle import StopEvent, stop_on_signals
from midwatch.model import Json
from midwatch.text import one_line

app = typer.Typer()


@app.command()
def operator(context: typer.Context) -> None:
    """Run the operator: turn AgenticSession resources into Jobs, until SIGTERM."""
    if find_spec("jwt") is None:
        raise SettingsError(
            "PyJWT is not installed",
            hint="pip install 'midwatch[kubernetes]'",
        )
    asyncio.run(_operate(context.obj))


async def _operate(edge: Edge) -> None:
    from midwatch.kube.client import Cluster
    from midwatch.kube.operator import Operator
    from midwatch.logs import forward_library_logs, open_log
    from midwatch.redaction import Redactor

    settings = edge.settings()
    options = settings.operator
    log = open_log(settings.log, sys.stdout, Redactor())
    forward_library_logs(log)
    gc.enable()  # `main` turned it off for the start
    stop = StopEvent()
    with stop_on_signals(stop, end_in):
        async with Cluster.connect(
            options.kubeconfig, options.context, options.request_timeout
        ) as cluster:
            await Operator(cluster, options, log=log).run(stop)
    log.info("operator stopped", reason=stop.reason)


Format = Annotated[
    Literal["yaml", "json"], typer.Option("--output", "-o", help="Output format.")
]
_MAX_WARNING = 500


@app.command()
def crd(context: typer.Context, output: Format = "yaml") -> None:
    """Print the CustomResourceDefinition of AgenticSession, for `kubectl apply -f -`."""
    from midwatch.kube.crd import crd as definition

    _print([definition()], output, Output.standard(context.obj.environ))


@app.command()
def convert(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="YAML or JSON; - is standard input."),
    ] = None,
    output: Format = "yaml",
) -> None:
    """Convert AgenticSession resources of vteam.ambient-code/v1alpha1 to midwatch.dev/v1alpha1.

    Other documents pass through unchanged. Fields without a counterpart are reported on standard error.
    """
    from midwatch.kube.convert import convert as convert_document
    from midwatch.kube.convert import read_documents

    documents: list[Json] = []
    warnings: list[str] = []
    for file in files or [Path("-")]:
        name = "standard input" if str(file) == "-" else str(file)
        with _located(name):
            found = read_documents(_read(file))
        for number, document in enumerate(found, 1):
            with _located(f"{name}, document {number}"):
                done = convert_document(document)
            documents.append(done.document)
            warnings += done.warnings
    # Print nothing if one document is wrong: the output may go straight to kubectl.
    _print(documents, output, Output.standard(context.obj.environ))
    for warning in warnings:
        print(f"midwatch: {one_line(warning, _MAX_WARNING)}", file=sys.stderr)


@app.command()
def schedules(
    context: typer.Context,
    namespace: Annotated[
        str,
        typer.Option("--namespace", "-n", help="The namespace of the sessions."),
    ],
    output: Format = "yaml",
) -> None:
    """Print a CronJob for each schedule of the settings, with what it needs, for `kubectl apply -f -`.

    Each creates an AgenticSession at its times; operator.image is the image that does it.
    """
    from midwatch.kube.schedules import objects

    edge: Edge = context.obj
    settings = edge.settings()
    documents = [
        one
        for number, schedule in enumerate(settings.schedules)
        for one in objects(
            schedule, settings.operator, namespace, f"schedules[{number}]"
        )
    ]
    _print(documents, output, Output.standard(edge.environ))


@app.command()
def submit(
    context: typer.Context,
    schedule: Annotated[
        str, typer.Argument(metavar="SCHEDULE", help="The name of a schedule.")
    ],
    name: Annotated[str, typer.Option(help="The name of the resource.")],
    namespace: Annotated[
        str,
        typer.Option("--namespace", "-n", help="The namespace of the session."),
    ],
) -> None:
    """Create the AgenticSession of a schedule, once for a name; its CronJob runs this.

    With Forbid it creates none while another session of the schedule runs.
    """
    from midwatch.cli.schedules import schedule_named
    from midwatch.kube.schedules import session_of

    edge: Edge = context.obj
    settings = edge.settings()
    one = schedule_named(settings, schedule)
    path = f"schedules[{settings.schedules.index(one)}]"
    body = session_of(one, namespace, path)
    body["metadata"]["name"] = name
    typer.echo(asyncio.run(_submit(edge, body, one.concurrency == "Forbid")))


async def _submit(edge: Edge, body: Json, unless_running: bool) -> str:
    from midwatch.kube.client import Cluster
    from midwatch.kube.schedules import submit as submit_to

    options = edge.settings().operator
    async with Cluster.connect(
        options.kubeconfig, options.context, options.request_timeout
    ) as cluster:
        return await submit_to(cluster, body, unless_running=unless_running)


def _print(documents: list[Json], format: str, output: Output) -> None:
    if format == "json":
        one = documents[0] if len(documents) == 1 else _list_of(documents)
        output.json(one)
        return
    from midwatch.kube.convert import write_yaml

    # Escaped on a terminal, where control characters of a hostile text would act.
    output.stream.write(write_yaml(documents, ascii_only=output.terminal))


def _list_of(documents: list[Json]) -> Json:
    return {"apiVersion": "v1", "kind": "List", "items": documents}


def _read(file: Path) -> bytes:
    """Return at most one byte more than the limit. Raises PermanentError."""
    from midwatch.documents import MAX_BYTES

    if str(file) == "-":
        if sys.stdin.isatty():
            raise PermanentError(
                "nothing to convert", hint="name a file, or pipe one into it"
            )
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise PermanentError(f"cannot be read: {error.strerror}") from None


@contextmanager
def _located(place: str) -> Iterator[None]:
    """Add the place of a document to an error."""
    from midwatch.documents import DocumentError

    try:
        yield
    except MidwatchError as error:
        raise DocumentError(
            one_line(f"{place}: {error.message}", _MAX_WARNING), hint=error.hint
        ) from None
