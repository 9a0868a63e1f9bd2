"""`midwatch session serve`: the runner in a pod, configured by its environment alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from midwatch.cli.wiring import Edge
from midwatch.errors import MidwatchError, SettingsError
from midwatch.lifecycle import shield_process

if TYPE_CHECKING:
    from midwatch.kube.runner_task import Identity, PodTask
    from midwatch.kube.runner_workspace import Sync
    from midwatch.kube.status_writer import StatusCluster
    from midwatch.settings import Settings

app = typer.Typer()


@app.command()
def serve(context: typer.Context) -> None:
    """Run the session of a pod, as its environment says (docs/kubernetes.md has the table).

    Exit code: 0 Completed or Stopped, 1 Failed, 2 the environment is wrong, 3 the status could not be
    written, 143 the pod was taken away before the end.
    """
    shield_process()
    gc.enable()  # `main` turned it off for the start
    code = asyncio.run(_serve(context.obj))
    raise typer.Exit(code)


async def _serve(edge: Edge) -> int:
    from midwatch.cli.session.telling import aside
    from midwatch.kube.environment import BAD_ENVIRONMENT, sorted_variables
    from midwatch.kube.runner_task import read_identity, read_task, refuse

    variables = sorted_variables(edge.environ)
    own = replace(edge, environ=variables.own)
    try:
        identity = read_identity(variables.own)
        settings = own.settings()
        async with _cluster(identity, settings) as cluster:
            try:
                return await _run(own, settings, read_task(variables), cluster)
            except SettingsError as error:
                await refuse(identity, cluster, error)
                raise
    except SettingsError as error:
        aside(error.line())
        return BAD_ENVIRONMENT


async def _run(
    edge: Edge, settings: Settings, task: PodTask, cluster: StatusCluster
) -> int:
    from midwatch.cli.output import Output
    from midwatch.cli.session.choices import Choices, git_environment, session_options
    from midwatch.cli.session.telling import Teller, aside
    from midwatch.kube.runner import Means, PodRunner
    from midwatch.kube.runner_task import allowed_in_a_pod

    teller = Teller(Output.standard(edge.environ))

    class Voice:
        event = staticmethod(teller.event)
        note = staticmethod(aside)

    for name in task.variables.left_out:
        aside(f"{name} is a reserved name: that key of a secret is left out")
    async with _sync(task) as sync:
        means = Means(
            cluster=cluster,
            sync=sync,
            options=allowed_in_a_pod(
                session_options(settings.sessions, Choices()), settings.sessions
            ),
            environment=git_environment(settings.sessions, task.variables.of_git),
            voice=Voice(),
        )
        return await PodRunner(task, means).run()


@contextlib.asynccontextmanager
async def _cluster(
    identity: Identity, settings: Settings
) -> AsyncIterator[StatusCluster]:
    """The API server, or what stands in where nothing is to be told. Raises SettingsError."""
    from midwatch.kube.status_writer import NoCluster

    if not identity.told:
        yield NoCluster()
        return
    try:
        from midwatch.kube.client import Cluster
    except ImportError as error:
        raise _missing(error, "kubernetes") from error
    operator = settings.operator
    async with Cluster.connect(operator.kubeconfig, operator.context) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def _sync(task: PodTask) -> AsyncIterator[Sync | None]:
    """The way to the content proxy, where there is one. Raises SettingsError."""
    content = task.content
    if content is None:
        yield None
        return
    try:
        from midwatch.content.sync.client import ContentClient
        from midwatch.content.sync.session import WorkspaceSync
    except ImportError as error:
        raise _missing(error, "content") from error
    from midwatch.kube.runner_workspace import LOCAL_OWNED, PodPlaces, stays_here

    given = task.environment
    places = PodPlaces(given.workspace_path, given.state_path, given.cache_path)
    attempt = task.identity.attempt
    async with ContentClient(
        content.url, content.token, content.folder, attempt=attempt
    ) as client:
        yield WorkspaceSync(
            client,
            places.roots,
            places.sync_state,
            interval=given.sync_interval,
            local_owned=LOCAL_OWNED,
            ignored=stays_here,
        )


def _missing(error: ImportError, extra: str) -> MidwatchError:
    return SettingsError(
        f"{error.name or error} is not installed",
        hint=f"pip install 'midwatch[{extra},sessions]'",
    )
