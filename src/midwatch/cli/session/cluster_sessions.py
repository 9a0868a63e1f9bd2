"""Sessions for tickets in a cluster: the server creates an AgenticSession, as `midwatch session fix --pr --resource` prints it."""

from __future__ import annotations

from dataclasses import replace

from midwatch.cli.session.options import RunOptions
from midwatch.cli.session.publish import expect_pull_requests
from midwatch.cli.session.run import fix_request
from midwatch.cli.session.service import SessionContext
from midwatch.model import Json
from midwatch.server_settings import SessionClusterSettings
from midwatch.session.options import OptionOverrides


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
        from midwatch.kube.client import Cluster

        chosen = self._settings
        metadata = {**body["metadata"], "namespace": chosen.namespace}
        async with Cluster.connect(
            chosen.kubeconfig,
            chosen.context,
            chosen.request_timeout,
            setting="server.session_cluster.kubeconfig",
        ) as cluster:
            return await cluster.create({**body, "metadata": metadata}, may_read=False)
