"""Sessions for tickets in a cluster: the server creates an AgenticSession, as `midwatch session fix --pr --resource` prints it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from midwatch.cli.session.options import RunOptions
from midwatch.cli.session.publish import expect_pull_requests
from midwatch.cli.session.run import fix_request
from midwatch.cli.session.service import SessionContext
from midwatch.model import Json
from midwatch.server_settings import SessionClusterSettings
from midwatch.session.options import OptionOverrides

if TYPE_CHECKING:
    from midwatch.kube.client import Cluster


class SessionResources:
    """Creates sessions that push to the branches of their tickets. Satisfies `midwatch.server.actions.CreatesResources`.

    Args:
        context: The stores and settings.
        settings: The cluster and the namespace.
    """

    def __init__(
        self, context: SessionContext, settings: SessionClusterSettings
    ) -> None:
        self._context = context
        self._settings = settings

    @property
    def namespace(self) -> str:
        return self._settings.namespace

    async def create(
        self, ticket_id: int, *, by: str, prompt: str, session_id: str | None = None
    ) -> str:
        """Create the resource of a session for a ticket, once for a `session_id`, and return its name.

        Raises:
            SettingsError: The subject names no repositories, or the login cannot be used.
            ClusterUnavailable, ClusterRefused: The API server does not answer, or refuses it.
            MidwatchError: As `expect_pull_requests`. Nothing was created then, unless the database is away.
        """
        context = self._context
        request = await fix_request(
            context, ticket_id, RunOptions(), OptionOverrides(), prompt, True
        )
        if session_id is not None:
            request = replace(request, id=session_id)

        async def create(body: Json) -> None:
            if await self._created(body):
                name = body["metadata"]["name"]
                why = f"created in namespace {self.namespace}"
                await context.sessions.note(ticket_id, name, by, why)

        body = await expect_pull_requests(context, request, by, create=create)
        return str(body["metadata"]["name"])

    async def _created(self, body: Json) -> bool:
        """Create a resource. Return whether it was not there before."""
        metadata = {**body["metadata"], "namespace": self.namespace}
        async with _connect(self._settings) as cluster:
            return await cluster.create({**body, "metadata": metadata}, may_read=False)


async def try_to_create(settings: SessionClusterSettings) -> None:
    """Have the API server check that a session can be created, without creating one.

    Raises:
        SettingsError: The login cannot be used.
        ClusterUnavailable, ClusterRefused: The API server does not answer, or would refuse it.
    """
    from midwatch.kube.rules import API_VERSION, KIND

    body: Json = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "midwatch-check", "namespace": settings.namespace},
        "spec": {
            "prompt": "Look whether this can be created.",
            "repos": [{"input": {"url": "https://example.com/app.git"}}],
        },
    }
    async with _connect(settings) as cluster:
        await cluster.create(body, may_read=False, dry=True)


def _connect(settings: SessionClusterSettings) -> AbstractAsyncContextManager[Cluster]:
    from midwatch.kube.client import Cluster

    return Cluster.connect(
        settings.kubeconfig,
        settings.context,
        settings.request_timeout,
        setting="server.session_cluster.kubeconfig",
    )
