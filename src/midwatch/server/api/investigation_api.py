"""Investigations: a question about a subject, or an alert, is diagnosed like a ticket."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from midwatch.json_shapes import diagnosis_document, iso
from midwatch.model import Diagnosis, Facts, Json, Severity, TicketStatus
from midwatch.redaction import Sanitizer
from midwatch.server.actions import digest_of_key
from midwatch.server.api import models
from midwatch.server.api.answers import (
    IdempotencyKey,
    IfNoneMatch,
    Investigates,
    Once,
    Reader,
    answer,
    problems,
    text_answer,
    written,
)
from midwatch.server.api.paging import Cursor, Limit, page_of, read_cursor
from midwatch.server.auth import Principal
from midwatch.server.context import ServerContext
from midwatch.server.problems import Unprocessable
from midwatch.store.on_call import Investigation
from midwatch.store.protocol import Store
from midwatch.text import markdown_escape
from midwatch.units import url_is_at

InvestigationId = Annotated[str, Path(max_length=40, description="Its id.")]
_MOST_FACTS = 60


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/investigations", tags=["investigations"])
    _add_reading(routes, context.store)
    _add_changes(routes, context)
    return routes


def _add_reading(routes: APIRouter, store: Store) -> None:
    @routes.get(
        "",
        response_model=models.Page[models.InvestigationSummary],
        responses=problems(),
    )
    async def list_investigations(
        who: Reader,
        limit: Limit = 50,
        cursor: Cursor = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """List investigations, the newest first."""
        after = None
        if cursor is not None:
            created_at, id_ = read_cursor(cursor, datetime, str)
            after = (created_at, id_)
        found = await store.investigations(limit + 1, after)
        page = page_of(found, limit, lambda one: [one.created_at, one.id])
        return answer(page.document(_summary), if_none_match=if_none_match)

    @routes.get(
        "/{investigation_id}",
        response_model=models.Investigation,
        responses=problems(404),
    )
    async def read_investigation(
        who: Reader,
        investigation_id: InvestigationId,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return an investigation, with its diagnosis once there is one."""
        found = await store.investigation(investigation_id)
        return answer(
            await investigation_document(store, found), if_none_match=if_none_match
        )

    @routes.get(
        "/{investigation_id}/report",
        response_class=Response,
        responses={
            **problems(404),
            200: {"content": {"text/markdown": {"schema": {"type": "string"}}}},
        },
    )
    async def read_report(
        who: Reader,
        investigation_id: InvestigationId,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return an investigation and its diagnosis as Markdown."""
        found = await store.investigation(investigation_id)
        page = await _report(store, found)
        return text_answer(page, "text/markdown", if_none_match)


def _add_changes(routes: APIRouter, context: ServerContext) -> None:
    store, once = context.store, Once(context)
    sanitizer = Sanitizer(context.redactor)
    subjects = {one.name for one in context.subjects}

    @routes.post(
        "",
        status_code=202,
        response_model=models.Investigation,
        responses=written(409),
    )
    async def investigate(
        request: Request,
        who: Investigates,
        asked: models.NewInvestigation,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Ask for an investigation. It waits for an agent, like a ticket; Location says where its state is."""

        async def act() -> Response:
            _check(context, asked, subjects)
            question = sanitizer.sanitize(_question(asked), models.LONGEST_QUESTION)
            if not question.strip():
                raise Unprocessable("the question has no character that can be read")
            made = await store.investigate(
                _id_of(who, idempotency_key),
                asked.subject,
                question,
                by=who.name,
                severity=Severity.parse(asked.severity),
                facts=_facts(asked.alert, sanitizer),
                callback_url=asked.callback_url,
            )
            where = {"location": f"/api/v1/investigations/{made.id}"}
            document = await investigation_document(store, made)
            return answer(document, status=202, headers=where)

        return await once(request, who, idempotency_key, act)

    @routes.post(
        "/{investigation_id}/cancel",
        response_model=models.Investigation,
        responses=problems(404, 409),
    )
    async def cancel_investigation(
        who: Investigates, investigation_id: InvestigationId
    ) -> Response:
        """Cancel an investigation. A call to Claude that is under way goes on, and is paid."""
        ended = await store.cancel_investigation(investigation_id, who.name)
        return answer(await investigation_document(store, ended))


# ------------------------------------------------------------------ what is asked


def _id_of(who: Principal, key: str | None) -> str:
    """Return a new id; with an idempotency key that of the request, so that a crash does not double it."""
    if key is None:
        return f"i-{uuid.uuid4().hex[:16]}"
    return f"i-{digest_of_key(who, key)[:16]}"


def _check(
    context: ServerContext, asked: models.NewInvestigation, subjects: set[str]
) -> None:
    """Raise Unprocessable for a subject, a question or an address that cannot be used."""
    if asked.subject not in subjects:
        raise Unprocessable(
            f"there is no subject {asked.subject[:80]!r}", hint="see /api/v1/subjects"
        )
    if asked.question is None and asked.alert is None:
        raise Unprocessable("there is neither a question nor an alert")
    if asked.callback_url is not None:
        hosts = context.settings.notifications.callback_hosts
        check_callback(asked.callback_url, hosts)


def check_callback(url: str, hosts: list[str]) -> None:
    """Raise Unprocessable for an address that is not one of a host that the settings allow."""
    if any(one <= " " or one > "~" or one == "\\" for one in url) or "@" in url:
        # Readers of URLs differ in what they make of these.
        raise Unprocessable("callback_url has characters that no address here needs")
    if not url_is_at(url, hosts):
        raise Unprocessable(
            "callback_url is not one of a host that is allowed",
            hint="the setting notifications.callback_hosts names the hosts",
        )


def _question(asked: models.NewInvestigation) -> str:
    if asked.question is not None:
        return asked.question
    assert asked.alert is not None
    labels, annotations = asked.alert.labels, asked.alert.annotations
    name = labels.get("alertname", "an alert")
    about = annotations.get("summary") or annotations.get("description") or ""
    return f"What is behind the alert {name}? {about}".strip()


def _facts(alert: models.Alert | None, sanitizer: Sanitizer) -> Facts:
    """Return what an alert says as facts: its labels and annotations, cleaned and without secrets."""
    if alert is None:
        return {}
    said = {**alert.annotations, **alert.labels}
    if alert.startsAt is not None:
        said["startsAt"] = alert.startsAt.isoformat()
    if alert.generatorURL is not None:
        said["generatorURL"] = alert.generatorURL
    return {
        sanitizer.sanitize(name, 100): sanitizer.sanitize(f"{name}={value}", 2000)[
            len(name) + 1 :
        ]
        for name, value in list(said.items())[:_MOST_FACTS]
    }


# ------------------------------------------------------------------ how it stands


def _summary(one: Investigation) -> Json:
    return {
        "id": one.id,
        "ended": one.ended_at is not None,
        "subject": one.subject,
        "question": one.question,
        "requested_by": one.requested_by,
        "ticket": one.ticket_id,
        "created_at": one.created_at,
        "ended_at": one.ended_at,
    }


async def investigation_document(store: Store, one: Investigation) -> Json:
    """Return an investigation as JSON, with its state and its diagnosis."""
    diagnosis = await _diagnosis(store, one)
    document = _summary(one)
    del document["ended"]
    return {
        **document,
        "state": await _state(store, one, diagnosis),
        "callback_url": one.callback_url,
        "diagnosis": (
            None if diagnosis is None else await _answer(store, one, diagnosis)
        ),
    }


async def _answer(store: Store, one: Investigation, diagnosis: Diagnosis) -> Json:
    return diagnosis_document(await store.ticket(one.ticket_id), diagnosis)


async def _diagnosis(store: Store, one: Investigation) -> Diagnosis | None:
    return None if one.diagnosis_id is None else await store.diagnosis(one.diagnosis_id)


async def _state(
    store: Store, one: Investigation, diagnosis: Diagnosis | None
) -> models.InvestigationState:
    if one.cancelled_at is not None:
        return "cancelled"
    if diagnosis is not None:
        return "answered" if diagnosis.outcome in ("answered", "cut") else "failed"
    if one.ended_at is not None:
        ticket = await store.ticket(one.ticket_id)
        return "failed" if ticket.left_out_by is not None else "cancelled"
    attempts = await store.diagnoses(one.ticket_id)
    if attempts and attempts[-1].outcome in ("running", "asked"):
        return "running"
    ticket = await store.ticket(one.ticket_id)
    return "failed" if ticket.status is TicketStatus.GIVEN_UP else "queued"


async def _report(store: Store, one: Investigation) -> str:
    diagnosis = await _diagnosis(store, one)
    state = await _state(store, one, diagnosis)
    ended = f", ended {iso(one.ended_at)}" if one.ended_at else ""
    head = [
        f"# Investigation {one.id}",
        f"{markdown_escape(one.question)}",
        f"Subject {markdown_escape(one.subject)}, ticket {one.ticket_id}, asked by {markdown_escape(one.requested_by)} "
        f"{iso(one.created_at)}{ended}: **{state}**.",
    ]
    if diagnosis is not None and diagnosis.markdown:
        head.append(diagnosis.markdown.strip())
    elif diagnosis is not None and diagnosis.error:
        head.append(f"No answer: {markdown_escape(diagnosis.error)}")
    return "\n\n".join(head) + "\n"
