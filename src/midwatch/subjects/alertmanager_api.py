"""The part of Alertmanager's HTTP API (version 2) that is used here, as values.

https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml. The list of alerts is read item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from midwatch.errors import ObservationFailed
from midwatch.subjects.http_client import Answer, WebClient
from midwatch.subjects.json_stream import JsonFeed, JsonText, Reading
from midwatch.text import ticket_line
from midwatch.units import parse_time

ANSWER_LIMIT = 500_000_000  # bytes; an answer is read only within the timeout
_HEAD = 300  # bytes of an answer that is not JSON
_LOGIN = "set `basic_auth`, `bearer_token_file` or `headers`"
State = Literal["active", "suppressed", "unprocessed"]


class NotAlertmanager(ObservationFailed):
    """The server does not speak Alertmanager's API."""

    hint = "check that `url` is that of an Alertmanager, and the login"


@dataclass(frozen=True, slots=True)
class ManagedAlert:
    """An alert that fires, as Alertmanager has it, and what keeps it silent there."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    fingerprint: str
    starts_at: datetime | None
    updated_at: datetime | None
    generator: str
    state: State
    silenced_by: tuple[str, ...]
    inhibited_by: tuple[str, ...]
    muted_by: tuple[str, ...]


class AlertmanagerApi:
    """Each method is one request. All raise WebFailure or NotAlertmanager."""

    def __init__(
        self, web: WebClient, url: str, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._web = web
        self._base = url.rstrip("/") + "/api/v2/"
        self._headers = headers

    async def alerts(
        self, timeout: float, take: Callable[[ManagedAlert], None]
    ) -> datetime | None:
        """Pass each alert to `take`. Return the time by the server's clock, if it says so."""
        every = {
            name: "true" for name in ("active", "silenced", "inhibited", "unprocessed")
        }
        answer = await self._list(
            "alerts", every, timeout, lambda item: take(_alert(item))
        )
        return _date_of(answer)

    async def silences(self, timeout: float) -> Mapping[str, str]:
        """Return who made each silence, and why, by its id."""
        found: dict[str, str] = {}

        def take(item: Any) -> None:
            author, reason = item.get("createdBy") or "", item.get("comment") or ""
            found[str(item["id"])] = ticket_line(f"{author}: {reason}", 120)

        await self._list("silences", {}, timeout, take)
        return found

    async def started_at(self, timeout: float) -> datetime | None:
        """Return when the server was started."""
        text = JsonText()
        feed = JsonFeed(text.value())
        answer = await self._get("status", {}, timeout, feed.feed)
        feed.feed(b"", final=True)
        if feed.error or not isinstance(feed.result, dict):
            raise _not_alertmanager(answer, b"")
        return parse_time(feed.result.get("uptime"))

    async def _list(
        self,
        path: str,
        params: Mapping[str, str],
        timeout: float,
        take: Callable[[Any], None],
    ) -> Answer:
        text = JsonText()
        head = bytearray()

        def item() -> Reading[None]:
            take((yield from text.value()))

        feed = JsonFeed(text.array(item))

        def consume(piece: bytes) -> None:
            if len(head) < _HEAD:
                head.extend(piece[:_HEAD])
            feed.feed(piece)

        try:
            answer = await self._get(path, params, timeout, consume)
        except (KeyError, TypeError, AttributeError):
            raise NotAlertmanager(
                "the answer does not have Alertmanager's form"
            ) from None
        if not feed.ended or answer.status != 200 or not head.lstrip().startswith(b"["):
            raise _not_alertmanager(answer, bytes(head))
        return answer

    async def _get(
        self,
        path: str,
        params: Mapping[str, str],
        timeout: float,
        consume: Callable[[bytes], object],
    ) -> Answer:
        def go_on(piece: bytes) -> bool:
            consume(piece)
            return True

        return await self._web.fetch(
            "GET",
            self._base + path,
            params=params,
            headers=self._headers(),
            timeout=timeout,
            limit=ANSWER_LIMIT,
            consume=go_on,
        )


def _alert(item: Any) -> ManagedAlert:
    status = item["status"]
    state: State = "unprocessed"
    if status["state"] in ("active", "suppressed"):
        state = status["state"]
    return ManagedAlert(
        labels=_texts(item["labels"]),
        annotations=_texts(item.get("annotations") or {}),
        fingerprint=str(item["fingerprint"]),
        starts_at=parse_time(item.get("startsAt")),
        updated_at=parse_time(item.get("updatedAt")),
        generator=str(item.get("generatorURL") or ""),
        state=state,
        silenced_by=_names(status.get("silencedBy")),
        inhibited_by=_names(status.get("inhibitedBy")),
        muted_by=_names(status.get("mutedBy")),
    )


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in list(value or ())[:10])


def _date_of(answer: Answer) -> datetime | None:
    try:
        return parsedate_to_datetime(answer.header("date")).astimezone(UTC)
    except ValueError:
        return None


def _not_alertmanager(answer: Answer, head: bytes) -> NotAlertmanager:
    kind = ticket_line(answer.header("content-type") or "nothing known", 60)
    text = f"status {answer.status} and {kind} instead of Alertmanager's JSON"
    if answer.status in range(300, 400) and (to := answer.header("location")):
        text += f", and a redirect to {ticket_line(to.partition('?')[0], 100)}"
    if answer.status in (401, 403):
        return NotAlertmanager(text, hint=_LOGIN)
    if answer.status >= 500:
        start = ticket_line(head.decode("utf-8", "replace").strip(), 100)
        return NotAlertmanager(
            f"{text}: {start}", hint="see whether the server is up and ready"
        )
    return NotAlertmanager(text)
