"""Services that are told of tickets, on loopback: what each was sent, and how it answers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from midwatch.notification_settings import NotificationSettings
from midwatch.notify.notifier import Notifier
from midwatch.notify.notifier_setup import sender
from midwatch.notify.routes import Routes
from midwatch.redaction import Redactor
from midwatch.store.protocol import Store

from ..waiting import PATIENCE, wait_until
from .web import Reply, serving


@dataclass(frozen=True)
class Call:
    """A request that a service got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """A service of HTTP. `answer` replies to a call; it may wait, or return None for a connection that breaks."""

    answer: Callable[[Call], Reply | None]
    calls: list[Call] = field(default_factory=list)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, handler: BaseHTTPRequestHandler) -> Reply | None:
        length = int(handler.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        call = Call(handler.path, headers, handler.rfile.read(length))
        with self._lock:
            self.calls.append(call)
        return self.answer(call)

    def wait_for(self, number: int) -> list[Call]:
        """Return the calls once there are so many."""
        wait_until(lambda: len(self.calls) >= number)
        return self.calls


def fine(call: Call) -> Reply:
    return 200, {"Content-Type": "application/json"}, b'{"ok": true}'


@contextlib.contextmanager
def service(answer: Callable[[Call], Reply | None] = fine) -> Iterator[Service]:
    found = Service(answer)
    with serving(found.reply) as found.url:
        yield found


def settings(target: dict[str, Any], **more: Any) -> NotificationSettings:
    """Settings with one target and one route that takes everything, at once."""
    route = {"name": "all", "to": ["ops"], **more.pop("route", {})}
    more = {"targets": [{"name": "ops", **target}], "routes": [route], **more}
    return NotificationSettings.model_validate(
        {
            "group_wait": 0,
            "poll_interval": 0.05,
            "backoff": 0.05,
            "timeout": PATIENCE,
            **more,
        }
    )


def notifier(
    store: Store, chosen: NotificationSettings, *secrets: str, **more: Any
) -> Notifier:
    return Notifier(
        store,
        Routes.from_settings(chosen, {"db": "postgres"}),
        {one.name: sender(one, chosen, {}) for one in chosen.targets},
        redactor=Redactor([*secrets, *chosen.secrets()]),
        base_url="http://midwatch.test",
        random=lambda: 0.5,
        **more,
    )


def slowly(seconds: float = PATIENCE) -> Callable[[Call], Reply | None]:
    """Answer so late that nobody waits for it; the server's end does not wait either."""

    def answer(call: Call) -> Reply | None:
        time.sleep(seconds)
        return None

    return answer
