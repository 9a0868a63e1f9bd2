"""Alerts of any program: a document whose fields the settings pick by JMESPath, or a CloudEvent.

A CloudEvent (version 1.0) is read as one document in both of its modes, with its attributes beside `data`: structured, as
`application/cloudevents+json` or a batch of these, and binary, with the attributes in headers `ce-…`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import jmespath
from jmespath.exceptions import JMESPathError

from midwatch.model import Fact
from midwatch.received import Delivery, ReceivedAlert
from midwatch.server.senders.reading import (
    MOST_ALERTS,
    Unreadable,
    fact_of,
    list_of,
    object_of,
    read_json,
    required_text,
    text_of,
    time_of,
)
from midwatch.subjects.pushed import FieldSettings

_compile = lru_cache(512)(jmespath.compile)


def read_generic(
    body: bytes, headers: Mapping[str, str], fields: FieldSettings
) -> Delivery:
    """Return the alerts that the settings find in a body or a CloudEvent. Raises Unreadable."""
    found: list[ReceivedAlert] = []
    for document in documents(body, headers):
        found += _alerts(document, fields)
    if len(found) > MOST_ALERTS:
        raise Unreadable(f"{len(found):,} alerts are too many; at most {MOST_ALERTS:,}")
    return Delivery(tuple(found))


def documents(body: bytes, headers: Mapping[str, str]) -> Sequence[Any]:
    """Return the documents of a request: the body, or its CloudEvents. Raises Unreadable."""
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/cloudevents-batch+json":
        events = list_of(read_json(body), "the body")
        return [_event(one, f"[{at}]") for at, one in enumerate(events)]
    if media == "application/cloudevents+json":
        return [_event(read_json(body), "the event")]
    if "ce-specversion" in headers:
        own = {
            name.removeprefix("ce-"): unquote(value)
            for name, value in headers.items()
            if name.startswith("ce-")
        }
        data = read_json(body) if body.strip() else None
        return [_event({**own, "data": data}, "the event")]
    return [read_json(body)]


def _event(value: Any, where: str) -> Mapping[str, Any]:
    event = dict(object_of(value, where))
    version = text_of(event.get("specversion"), f"{where}.specversion")
    if version.partition(".")[0] != "1":
        raise Unreadable(f"{where}.specversion: expected 1.0, found {version!r:.20}")
    for name in ("id", "source", "type"):
        required_text(event.get(name), f"{where}.{name}")
    if "data_base64" in event:
        try:
            data = base64.b64decode(
                text_of(event.pop("data_base64"), f"{where}.data_base64"), validate=True
            )
        except (binascii.Error, ValueError):
            raise Unreadable(f"{where}.data_base64: is not base64") from None
        event["data"] = read_json(data)
    return event


def _alerts(document: Any, fields: FieldSettings) -> list[ReceivedAlert]:
    found = _find(fields.alerts, document)
    if not isinstance(found, list):
        found = [found]
    list_of(found, "alerts")
    return [
        _alert(one, fields, f"alerts[{at}]")
        for at, one in enumerate(found)
        if fields.where is None or _find(fields.where, one)
    ]


def _alert(document: Any, fields: FieldSettings, where: str) -> ReceivedAlert:
    def text(expression: str | None, name: str) -> str:
        if expression is None:
            return ""
        return text_of(_find(expression, document), f"{where} {name}").strip()

    name = required_text(text(fields.name, "name"), f"{where} name ({fields.name})")
    status = text(fields.status, "status").lower()
    if fields.status is not None and not status:
        raise Unreadable(f"{where} status ({fields.status}): is missing")
    resolved = fields.status is not None and status in fields.resolved
    labels = {
        label: value
        for label, expression in fields.labels.items()
        if (value := text(expression, f"label {label}"))
    }
    times = {
        name: time_of(_find(expression, document), f"{where} {name}")
        for name in ("starts_at", "changed_at")
        if (expression := getattr(fields, name)) is not None
    }
    facts: dict[str, Fact] = {
        fact: fact_of(value)
        for fact, expression in fields.facts.items()
        if (value := _find(expression, document)) not in (None, "")
    }
    message = text(fields.message, "message")
    changed_at = times.get("changed_at")
    return ReceivedAlert(
        name=name,
        firing=not resolved,
        labels=labels,
        fingerprint=text(fields.fingerprint, "fingerprint"),
        starts_at=times.get("starts_at"),
        ends_at=changed_at if resolved else None,
        changed_at=changed_at,
        annotations={"summary": message} if message else {},
        facts=facts,
        severity=text(fields.severity, "severity") or None,
    )


def _find(expression: str, document: Any) -> Any:
    """Return what an expression finds. Raises Unreadable if it does not fit the document."""
    try:
        return _compile(expression).search(document)
    except JMESPathError as error:
        first = str(error).splitlines()[0]
        raise Unreadable(f"{expression}: {first}") from None
