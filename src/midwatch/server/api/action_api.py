"""Approved actions of a ticket: list, try, approve."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from midwatch.agent.approved_actions import actions_document
from midwatch.json_shapes import action_run_document
from midwatch.server.api import models
from midwatch.server.api.answers import (
    ApprovesActions,
    IdempotencyKey,
    IfNoneMatch,
    Once,
    Reader,
    answer,
    problems,
    written,
)
from midwatch.server.api.ticket_api import TicketId
from midwatch.server.context import ServerContext

ActionId = Annotated[
    str, Path(pattern=r"^[0-9a-f]{10}-[0-9]{1,6}$", description="As it is listed.")
]


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/tickets/{ticket_id}/actions", tags=["actions"])
    once, actions = Once(context), context.actions

    @routes.get("", response_model=models.TicketActions, responses=problems(404))
    async def list_actions(
        who: Reader, ticket_id: TicketId, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return what can be approved on a ticket, and what was."""
        found = await actions.ticket_actions(ticket_id)
        return answer(actions_document(found), if_none_match=if_none_match)

    @routes.post(
        "/{action_id}/dry-run",
        response_model=models.DryRun,
        responses=written(404, 409),
    )
    async def try_action(
        who: ApprovesActions, ticket_id: TicketId, action_id: ActionId
    ) -> Response:
        """Return what an action would do now. It changes nothing."""
        return answer(await actions.dry_run(who, ticket_id, action_id))

    @routes.post(
        "/{action_id}/approve",
        response_model=models.ActionRun,
        responses=written(404, 409),
    )
    async def approve_action(
        request: Request,
        who: ApprovesActions,
        ticket_id: TicketId,
        action_id: ActionId,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Approve an action and run it, once. The answer says how it ended."""

        async def act() -> Response:
            run = await actions.approve(who, ticket_id, action_id, "api")
            return answer(action_run_document(run))

        return await once(request, who, idempotency_key, act)

    return routes
