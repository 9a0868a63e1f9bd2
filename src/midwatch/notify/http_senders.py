"""Senders to services that speak HTTP and take a key: a webhook, PagerDuty and Opsgenie.

By the key a service knows a message, or an alert, that it has already: one that is sent again after a crash is not doubled.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from midwatch.cookies import no_cookies
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json
from midwatch.notification_settings import OpsgenieTarget, PagerDutyTarget
from midwatch.notify.message import Limits, Message
from midwatch.notify.sender import (
    Reference,
    SendFailed,
    SendRefused,
    about,
    news_of,
)
from midwatch.text import one_line

if TYPE_CHECKING:
    import httpx2

_MOST_READ = 4096
"""Bytes of an answer."""
_REFUSED = frozenset({400, 413, 415, 422})
"""Statuses that are about this message and not about the address, the key or the moment."""
_LONGEST_PAUSE = 3600.0


class HttpPoster:
    """Posts JSON to one service, within a time.

    Args:
        timeout: Seconds that one request may take as a whole.
        what: What the service is called in errors.
    """

    def __init__(self, timeout: float, what: str) -> None:
        self._timeout = timeout
        self._what = what
        self._client: httpx2.AsyncClient | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Post a document and return the beginning of the answer. Raises SendFailed, SendRefused."""
        import httpx2

        if self._client is None:
            self._client = httpx2.AsyncClient(
                timeout=self._timeout, follow_redirects=False, cookies=no_cookies()
            )
        sent = {"Content-Type": "application/json", "User-Agent": "midwatch", **headers}
        try:
            async with asyncio.timeout(self._timeout):
                async with self._client.stream(
                    "POST", url, content=body, headers=sent
                ) as answer:
                    read = b""
                    async for part in answer.aiter_raw():
                        read += part
                        if len(read) >= _MOST_READ:
                            break
        except (TimeoutError, httpx2.TimeoutException):
            raise SendFailed(
                f"{self._what} did not answer within {self._timeout:g} s"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            why = one_line(str(error)) or type(error).__name__
            raise SendFailed(f"{self._what} cannot be reached: {why}") from None
        self._check(answer.status_code, answer.headers, read[:_MOST_READ])
        return read[:_MOST_READ]

    def _check(self, status: int, headers: Any, body: bytes) -> None:
        if 200 <= status < 300:
            return
        said = one_line(body[:400].decode("utf-8", "replace"), 200)
        why = f"{self._what} answered {status}{said and f': {said}'}"
        if status in _REFUSED:
            raise SendRefused(why)
        if 300 <= status < 400:
            raise SendFailed(f"{why}; redirects are not followed")
        raise SendFailed(why, retry_after=retry_after(headers.get("retry-after")))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def retry_after(text: object) -> float | None:
    """Return the seconds of a Retry-After header, an hour at most; None without one that is a number."""
    value = str(text or "").strip()
    if not (value.isascii() and value.isdecimal()):
        return None
    return min(float(value[:9]), _LONGEST_PAUSE)


def signature(secret: str, body: bytes, at: int) -> str:
    """Return the value of the header X-Midwatch-Signature: `t=SECONDS,v1=HEX`.

    HEX is the HMAC-SHA256, by the secret, of the seconds as text, a full stop and the body.
    """
    signed = f"{at}.".encode() + body
    return f"t={at},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


class WebhookSender:
    """Posts each message as JSON; `docs/notifications.md` has the fields.

    Args:
        url: Where to.
        secret: Signs each request; None for no signature.
        timeout: Seconds that one request may take.
        what: What it is called in errors.
        clock: The source of time for the signature.
    """

    def __init__(
        self,
        url: str,
        secret: str | None,
        timeout: float,
        *,
        what: str = "the webhook",
        clock: Clock | None = None,
    ) -> None:
        self._url, self._secret = url, secret
        self._poster = HttpPoster(timeout, what)
        self._clock = clock or SystemClock()

    async def limits(self) -> Limits:
        return Limits("text")

    async def send(self, message: Message, reference: Reference) -> Json | None:
        await self.post(message.key, message.document())
        return about(message)

    async def post(self, key: str, document: Json) -> None:
        """Post a document under a key. Raises SendFailed, SendRefused."""
        body = json.dumps(document, ensure_ascii=False).encode()
        headers = {"Idempotency-Key": key}
        if self._secret:
            at = int(self._clock.now().timestamp())
            headers["X-Midwatch-Signature"] = signature(self._secret, body, at)
        await self._poster.post(self._url, body, headers)

    async def close(self) -> None:
        await self._poster.close()


class PagerDutySender:
    """Triggers, acknowledges and resolves one alert for an incident.

    https://developer.pagerduty.com/docs/send-alert-event
    """

    def __init__(self, settings: PagerDutyTarget, timeout: float) -> None:
        self._settings = settings
        self._poster = HttpPoster(timeout, "PagerDuty")

    async def limits(self) -> Limits:
        return Limits("text", 1000, 10_000)

    async def send(self, message: Message, reference: Reference) -> Json | None:
        told = str(reference.get("status") or "")
        status = message.incident.status
        if told in ("", "resolved") and status == "resolved" and not message.again:
            return None  # it was never triggered
        if status == "resolved":
            await self._event(message, "resolve")
            return about(message)
        if news_of(message, reference) and message.events - {"acknowledged"}:
            await self._event(message, "trigger")
        elif told == status:
            return None
        if status == "acknowledged" and told != status:
            await self._event(message, "acknowledge")
        return about(message)

    async def _event(self, message: Message, action: str) -> None:
        incident = message.incident
        event: Json = {
            "routing_key": self._settings.routing_key,
            "event_action": action,
            "dedup_key": dedup_key(message),
        }
        if action == "trigger":
            event["payload"] = {
                "summary": message.title,
                "source": incident.tickets[0].subject,
                "severity": incident.severity,
                "component": incident.tickets[0].component,
                "class": incident.tickets[0].invariant,
                "custom_details": {"text": message.body},
            }
            if incident.url:
                event["links"] = [{"href": incident.url, "text": "Ticket"}]
        body = json.dumps(event, ensure_ascii=False).encode()
        await self._poster.post(self._settings.url, body, {})

    async def close(self) -> None:
        await self._poster.close()


class OpsgenieSender:
    """Creates one alert for an incident, adds notes to it, acknowledges and closes it.

    https://docs.opsgenie.com/docs/alert-api
    """

    def __init__(self, settings: OpsgenieTarget, timeout: float) -> None:
        self._settings = settings
        self._poster = HttpPoster(timeout, "Opsgenie")

    async def limits(self) -> Limits:
        return Limits("text", 130, 15_000)

    async def send(self, message: Message, reference: Reference) -> Json | None:
        told = str(reference.get("status") or "")
        status = message.incident.status
        if status == "resolved":
            if told in ("", "resolved") and not message.again:
                return None
            await self._post(message, "/close", {"note": message.news[:25_000]})
            return about(message)
        if told in ("", "resolved"):
            await self._create(message)
        elif news_of(message, reference):
            await self._post(message, "/notes", {"note": message.news[:25_000]})
        elif told == status:
            return None
        if status == "acknowledged" and told != status:
            await self._post(message, "/acknowledge", {"note": message.news[:25_000]})
        return about(message)

    async def _create(self, message: Message) -> None:
        incident = message.incident
        priority = {"critical": "P1", "warning": "P3"}.get(incident.severity, "P5")
        alert = {
            "message": message.title,
            "alias": dedup_key(message),
            "description": message.body,
            "priority": priority,
            "entity": incident.tickets[0].subject[:512],
            "source": "midwatch",
            "details": {"ticket": incident.url},
        }
        await self._post(message, "", alert)

    async def _post(self, message: Message, action: str, document: Json) -> None:
        place = f"/{quote(dedup_key(message), safe='')}{action}?identifierType=alias"
        url = f"{self._settings.url.rstrip('/')}/v2/alerts{place if action else ''}"
        body = json.dumps(document, ensure_ascii=False).encode()
        key = {"Authorization": f"GenieKey {self._settings.api_key}"}
        await self._poster.post(url, body, key)

    async def close(self) -> None:
        await self._poster.close()


def dedup_key(message: Message) -> str:
    """Return the key of an incident at a service."""
    return f"midwatch-{message.thread}"[:250]
