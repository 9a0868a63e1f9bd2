"""Senders by libraries that block: Slack's SDK and Apprise, each call in a process that is ended in time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress

from midwatch.errors import SettingsError
from midwatch.model import Json
from midwatch.notification_settings import AppriseTarget, SlackTarget
from midwatch.notify.http_senders import retry_after
from midwatch.notify.message import Limits, Message
from midwatch.notify.sender import (
    Reference,
    SendFailed,
    SendRefused,
    about,
    news_of,
)
from midwatch.text import one_line

_MODULE = "midwatch.notify.blocking_process"
_KEPT = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|PYTHON\w*|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|\w+_proxy",
    re.IGNORECASE,
)
"""Variables that the process gets: no key of Midwatch's own."""
_START = 30.0
"""Seconds that Python and the library get to start on a busy machine, beside those of the call."""
_MARKDOWN = frozenset("discord mmost mmosts rocket rockets zulip guilded".split())
"""Services that read Markdown in what Apprise calls text."""
_SLACK_TEXT = 3500
"""Characters: above 4000 Slack advises against (docs.slack.dev, chat.postMessage)."""
_SEVERITIES = {"critical": "failure", "warning": "warning", "info": "info"}


class BlockingCall:
    """Makes calls of a blocking library, each in a process of its own.

    Args:
        timeout: Seconds that a call may take, beside the start of the process.
        environ: The environment of this process; what it needs of it is passed on.
    """

    def __init__(self, timeout: float, environ: Mapping[str, str]) -> None:
        self._timeout = timeout
        self._environ = {
            name: value for name, value in environ.items() if _KEPT.fullmatch(name)
        }

    async def __call__(self, request: Json) -> Json:
        """Return the result of a call. Raises SendFailed, SendRefused, and SettingsError for a missing package."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", _MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environ,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout + _START):
                written, _ = await process.communicate(json.dumps(request).encode())
        except TimeoutError:
            raise SendFailed(f"it took longer than {self._timeout:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        try:
            result: Json = json.loads(written)
        except ValueError:
            raise SendFailed(
                f"the process that sends ended with {process.returncode}"
            ) from None
        return _checked(result)


def _checked(result: Json) -> Json:
    if "missing" in result:
        raise SettingsError(
            f"the package {result['missing']} is not installed",
            path="notifications",
            hint="pip install 'midwatch[notify]'",
        )
    if "error" in result:
        why = one_line(str(result["error"]), 300)
        if result.get("refused"):
            raise SendRefused(why)
        raise SendFailed(why, retry_after=retry_after(result.get("retry_after")))
    return result


class SlackSender:
    """Keeps one message for an incident, edits it, and replies in its thread to what is news.

    Args:
        settings: The channel.
        call: Makes the calls.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self, settings: SlackTarget, call: BlockingCall, timeout: float
    ) -> None:
        self._settings = settings
        self._call = call
        self._timeout = timeout

    async def limits(self) -> Limits:
        return Limits("slack", 0, _SLACK_TEXT)

    async def send(self, message: Message, reference: Reference) -> Json | None:
        shown = hashlib.sha256(message.body.encode()).hexdigest()[:16]
        edit = reference.get("shown") != shown
        reply = message.news if reference and _worth_a_reply(message) else ""
        if reference and not edit and not reply:
            return None
        base = self._settings.base_url
        result = await self._call(
            {
                "call": "slack",
                "token": self._settings.token,
                "base_url": base if base.endswith("/") else f"{base}/",
                "timeout": max(1, int(self._timeout)),
                "post_to": self._settings.channel,
                "channel": reference.get("channel"),
                "ts": reference.get("ts"),
                "text": message.body,
                "edit": edit,
                "reply": reply,
                "broadcast": "escalated" in message.events,
            }
        )
        place = {"channel": result["channel"], "ts": result["ts"]}
        return {**about(message), **place, "shown": shown}

    async def close(self) -> None:
        pass


def _worth_a_reply(message: Message) -> bool:
    return bool(message.events - {"opened", "first_aid", "acknowledged"})


class AppriseSender:
    """Sends by Apprise: each piece of news is a message.

    Args:
        settings: The URL.
        call: Makes the calls.
        name: Name of the target.
    """

    def __init__(self, settings: AppriseTarget, call: BlockingCall, name: str) -> None:
        self._settings = settings
        self._call = call
        self._name = name
        self._limits: Limits | None = None

    async def limits(self) -> Limits:
        if self._limits is None:
            found = await self._call({"call": "describe", "url": self._settings.url})
            if "unknown" in found:
                raise SettingsError(
                    "Apprise does not know this URL",
                    path=f"notifications.targets ({self._name}).apprise.url",
                    hint="see https://appriseit.com/services/ for the form of each service's URL",
                )
            self._limits = _limits(found)
        return self._limits

    async def send(self, message: Message, reference: Reference) -> Json | None:
        if not news_of(message, reference):
            return None
        limits = await self.limits()
        resolved = message.incident.status == "resolved"
        severity = _SEVERITIES.get(message.incident.severity, "info")
        await self._call(
            {
                "call": "apprise",
                "url": self._settings.url,
                "title": message.title if limits.title else "",
                "body": message.body,
                "format": limits.format,
                "type": "success" if resolved else severity,
            }
        )
        return about(message)

    async def close(self) -> None:
        pass


def _limits(found: Json) -> Limits:
    """Return the limits of a service as Apprise describes it."""
    formats = found["formats"]
    # A title is shown as it is where it is the subject of a mail; elsewhere it may be markup.
    title, body = int(found["title"]), max(int(found["body"]), 40)
    if formats[0] == "html":
        return Limits("html", title, body)
    if found["schema"] in _MARKDOWN or formats[:2] == ["text", "markdown"]:
        return Limits("markdown", 0, body)
    return Limits("text", title, body)
