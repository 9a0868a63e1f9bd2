"""The addresses that deployments are reported to: `/hooks/SENDER`, or `/hooks/SENDER/NAME` for the hook with that name.

A request is answered 2xx once its changes are committed, and not before. A delivery that is sent again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from fastapi import APIRouter, Request

from midwatch.agent.reported_changes import (
    InvalidChange,
    ReportedChange,
    new_change,
)
from midwatch.change_settings import ChangeHookSettings, ChangeSender
from midwatch.errors import NotFound
from midwatch.model import ChangeKind
from midwatch.redaction import Sanitizer
from midwatch.server.auth import reports_changes
from midwatch.server.context import ServerContext
from midwatch.server.metrics import ChangeOutcome
from midwatch.server.problems import Forbidden, RequestRefused, Unauthenticated
from midwatch.server.senders.argocd_webhook import read_argocd
from midwatch.server.senders.change_reading import ReportedDelivery, place_of
from midwatch.server.senders.github_webhook import read_github
from midwatch.server.senders.gitlab_webhook import read_gitlab
from midwatch.server.signatures import (
    CHANGE_HEADERS,
    check_gitlab,
    check_signature,
)


def router(context: ServerContext) -> APIRouter:
    """Return the routes: two for each sender, so that other addresses below `/hooks` stay those of alerts."""
    hooks = _Hooks(context)
    routes = APIRouter(prefix="/hooks", tags=["changes"])
    for sender in get_args(ChangeSender):
        _add(routes, hooks, sender)
    return routes


def _add(routes: APIRouter, hooks: _Hooks, sender: str) -> None:
    async def take(request: Request) -> dict[str, Any]:
        return await hooks.take(request, sender, None)

    async def take_for(request: Request, name: str) -> dict[str, Any]:
        return await hooks.take(request, sender, name)

    about = f"Take deployments of {sender}"
    one = {"summary": f"{about} by the only hook of it", "operation_id": sender}
    named = {"summary": f"{about} by a hook", "operation_id": f"{sender}_hook"}
    routes.add_api_route(f"/{sender}", take, methods=["POST"], **one)  # type: ignore[arg-type]
    routes.add_api_route(f"/{sender}/{{name}}", take_for, methods=["POST"], **named)  # type: ignore[arg-type]


class _Hooks:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._hooks = context.settings.changes.hooks
        self._sanitizer = Sanitizer(context.redactor)
        self._watched = {
            (one["name"], place_of(repository["url"])): repository.get("branch")
            for one in context.settings.subjects
            for repository in one.get("repositories") or ()
        }

    async def take(
        self, request: Request, sender: str, name: str | None
    ) -> dict[str, Any]:
        outcome: ChangeOutcome = "failed"
        try:
            received = await self._take(request, sender, name)
            outcome = "stored" if received else "ignored"
        except (Unauthenticated, Forbidden, NotFound):
            outcome = "refused"
            raise
        except (RequestRefused, InvalidChange):
            outcome = "unreadable"
            raise
        finally:
            self._context.stats.changes[sender, outcome] += 1
        return {"received": received}

    async def _take(self, request: Request, sender: str, name: str | None) -> int:
        hook = await self._hook(request, sender, name)
        body = await request.body()
        if hook.signing_secrets:
            self._check(request, hook, body)
        delivery = _read(hook.sender, body, request.headers)
        now = self._context.clock.now()
        new = [
            new_change(one, self._sanitizer, now)
            for one in self._with_subjects(hook, delivery)
        ]
        if new:
            await self._context.store.record_changes(new)
        return len(new)

    async def _hook(
        self, request: Request, sender: str, name: str | None
    ) -> ChangeHookSettings:
        """Return the hook that a request is for, once its sender may report, or can prove it with the body.

        Which hooks there are is no business of others.
        """
        possible = [one for one in self._hooks if one.sender == sender]
        chosen = [one for one in possible if name is None or one.name == name]
        if len(chosen) != 1 or not chosen[0].signing_secrets:
            await reports_changes(request)
        if len(chosen) == 1:
            return chosen[0]
        if name is None and possible:
            names = ", ".join(sorted(one.name for one in possible)[:10])
            raise NotFound(
                f"there are several hooks of {sender}",
                hint=f"name one: /hooks/{sender}/NAME, of {names}",
            )
        raise NotFound(
            f"there is no such hook of {sender}",
            hint=f"add one to the settings: changes: {{hooks: [{{name: …, sender: {sender}}}]}}",
        )

    def _check(self, request: Request, hook: ChangeHookSettings, body: bytes) -> None:
        """Raise Unauthenticated for a request that does not prove that it is of the sender."""
        secrets = [one.get_secret_value() for one in hook.signing_secrets]
        if hook.sender == "gitlab":
            now = self._context.clock.now().timestamp()
            check_gitlab(request.headers, body, secrets, now)
            return
        check_signature(request.headers, CHANGE_HEADERS[hook.sender], body, secrets)

    # ------------------------------------------------------------------ whose changes they are

    def _with_subjects(
        self, hook: ChangeHookSettings, delivery: ReportedDelivery
    ) -> Iterable[ReportedChange]:
        """Yield the changes of a delivery, one for each subject that it is about."""
        elsewhere = delivery.environment not in hook.environments
        if hook.environments and delivery.environment and elsewhere:
            return
        subjects = list(hook.subjects) or self._of_repository(delivery)
        for change in delivery.changes:
            change = replace(change, source=f"{hook.sender} {hook.name}")
            for subject in subjects:
                if self._of_branch(subject, delivery):
                    yield replace(change, subject=subject)
            if not subjects and change.kind is ChangeKind.DEPLOY:
                yield change  # by its labels

    def _of_repository(self, delivery: ReportedDelivery) -> list[str]:
        """Return the subjects that have the repository of a delivery."""
        places = {place_of(url) for url in delivery.repositories} - {""}
        found = (name for name, place in self._watched if place in places)
        return list(dict.fromkeys(found))

    def _of_branch(self, subject: str, delivery: ReportedDelivery) -> bool:
        """Return whether a delivery is about the branch of a subject's repository, or about none."""
        if not delivery.branch:
            return True
        places = {place_of(url) for url in delivery.repositories}
        own = [
            branch
            for (name, place), branch in self._watched.items()
            if name == subject and place in places
        ]
        wanted = {one or delivery.default_branch for one in own or [None]}
        return delivery.branch in wanted or wanted == {""}


def _read(sender: str, body: bytes, headers: Mapping[str, str]) -> ReportedDelivery:
    """Return what a request of a sender reports. Raises Unreadable."""
    match sender:
        case "github":
            return read_github(body, headers)
        case "gitlab":
            return read_gitlab(body, headers)
    return read_argocd(body)
