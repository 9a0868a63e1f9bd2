"""Render the templates: everything that is no markup is escaped, and what cannot be seen is made visible."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from midwatch.lifecycle import Clock
from midwatch.server.auth import Principal, Role
from midwatch.server.page.static_files import StaticFiles
from midwatch.text import clean, one_line
from midwatch.units import format_duration

_TEMPLATES = Path(__file__).parents[1] / "templates"
_LEAST_COMPRESSED = 500
_NO_STORE = {"cache-control": "no-store", "vary": "accept-encoding, cookie"}


@functools.cache
def compiled() -> tuple[StaticFiles, Environment]:
    """Return the static files and all templates: read and compiled once in a process, before a request waits for that."""
    static = StaticFiles()
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_visible,
    )
    environment.filters.update(
        ago=ago,
        clock=lambda at: at.astimezone(UTC).strftime("%H:%M:%S"),
        iso=_iso,
        line=one_line,
        millis=_millis,
        seconds=lambda value: "–" if value is None else format_duration(value),
        stamp=stamp,
    )
    environment.globals["static"] = static.url
    for name in environment.list_templates():
        environment.get_template(name)
    return static, environment


class Pages:
    """The templates, with what each page needs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.static, self._environment = compiled()

    def text(self, template: str, request: Request | None = None, **values: Any) -> str:
        """Return a template as text, such as a part of a page."""
        given = {"base": "", "now": self._clock.now(), **values}
        if request is not None:
            given["base"] = request.scope.get("root_path", "")
        return self._environment.get_template(template).render(given)

    def part(self, template: str, macro: str, *arguments: Any, base: str = "") -> str:
        """Return what a macro of a template makes of its arguments."""
        module = self._environment.get_template(template).make_module(
            {"base": base, "now": self._clock.now()}
        )
        made: Callable[..., object] = getattr(module, macro)
        return str(made(*arguments))

    def page(
        self,
        request: Request,
        who: Principal | None,
        template: str,
        section: str,
        *,
        status: int = 200,
        **values: Any,
    ) -> Response:
        """Return a whole page.

        Args:
            request: The request that it answers.
            who: Who asks; None for no one who is known.
            template: The name of the template.
            section: Which entry of the navigation it belongs to.
            status: The HTTP status.
            values: What the template shows.
        """
        text = self.text(
            template,
            request,
            principal=who,
            may=permissions(who),
            section=section,
            **values,
        )
        return compressed(request, text.encode(), status, _NO_STORE)


def compressed(
    request: Request, body: bytes, status: int, headers: Mapping[str, str]
) -> Response:
    """Return HTML, compressed where the client takes that."""
    answer = dict(headers)
    takes = "gzip" in request.headers.get("accept-encoding", "")
    if takes and len(body) >= _LEAST_COMPRESSED:
        answer["content-encoding"] = "gzip"
        body = gzip.compress(body, 5, mtime=0)
    return HTMLResponse(body, status, answer)


def permissions(who: Principal | None) -> Mapping[str, bool]:
    """Return which buttons a person gets. The routes behind them check it again."""
    operator = who is not None and who.role >= Role.OPERATOR
    scopes = who.scopes if operator and who is not None else frozenset()
    return {
        "change": "tickets:write" in scopes,
        "silence": "silences:write" in scopes,
        "fix": "sessions:write" in scopes,
        "approve": "actions" in scopes,
    }


def _visible(value: Any) -> Any:
    # A Markup is of this class too, and is left alone.
    return clean(value, longest=None) if type(value) is str else value


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp(at: datetime) -> str:
    """Return an instant as `2026-11-29 15:04:05 UTC`."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _millis(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def ago(at: datetime, now: datetime) -> str:
    """Return the age of an instant as `12m ago`; in one unit."""
    seconds = (now - at).total_seconds()
    if seconds < -1:
        return f"in {format_duration(-seconds).partition(' ')[0]}"
    if seconds < 1:
        return "now"
    return f"{format_duration(round(seconds)).partition(' ')[0]} ago"
