"""Messages: what is sent of an incident to a target, worded by templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from midwatch.errors import SettingsError
from midwatch.logs import Log, quiet_log
from midwatch.model import Json
from midwatch.notification_settings import TemplateSettings
from midwatch.notify import templates
from midwatch.notify.formats import FORMATS, PLAIN, Format, cut
from midwatch.notify.incident import IncidentView
from midwatch.notify.templates import LONGEST_OUTPUT, TemplateFailed, Templates
from midwatch.text import one_line

_LONGEST_TITLE = 250


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service shows: its markup, and the longest title and body in characters. A title of 0 is part of the body."""

    format: Literal["text", "html", "markdown", "slack"] = "text"
    title: int = _LONGEST_TITLE
    body: int = 30_000

    @property
    def markup(self) -> Format:
        return FORMATS[self.format]


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send.

    Attributes:
        key: The same for each attempt to send it: by it a service can tell that it has it already.
        thread: The incident, by which a service finds its alert.
        title: One line of plain text.
        body: The whole of it, in the markup of the service and within its limits.
        news: What has just happened, in a line or two of markup.
        incident: What it is about.
        again: Whether some of it was tried before: its service may have it, although no answer came.
    """

    key: str
    thread: str
    title: str
    body: str
    news: str
    incident: IncidentView
    again: bool = False

    @property
    def events(self) -> frozenset[str]:
        return frozenset(event.name for event in self.incident.events)

    def document(self) -> Json:
        """Return all of it as JSON."""
        found: Json = _json(asdict(self.incident))
        events = found.pop("events")
        document = {"title": self.title, "text": self.body, "events": events}
        return {"version": 1, "id": self.key, **document, "incident": found}


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return value


class Writer:
    """Words messages.

    Args:
        settings: The templates of the settings.
        log: Where it is logged that a template of the settings failed; Midwatch's own is used then.
    """

    def __init__(self, settings: TemplateSettings, log: Log | None = None) -> None:
        self._settings = settings
        self._templates = Templates()
        self._log = log or quiet_log()

    def check(self) -> None:
        """Raise SettingsError for a template of the settings that can never be shown."""
        for name, source in self._settings:
            try:
                self._templates.check(source or "")
            except TemplateFailed as error:
                path = f"notifications.templates.{name}"
                raise SettingsError(error.message, path=path, hint=error.hint) from None

    def write(
        self,
        key: str,
        incident: IncidentView,
        limits: Limits,
        *,
        digest: bool = False,
        strict: bool = False,
    ) -> Message:
        """Return the message of an incident.

        Args:
            key: Its key.
            incident: What it tells.
            limits: Those of the service.
            digest: Whether it is a digest.
            strict: Whether a template of the settings that fails raises.

        Raises:
            TemplateFailed: A template failed, and `strict` is true.
        """
        own = self._settings
        title = self._show(
            None if digest else own.title,
            templates.DIGEST_TITLE if digest else templates.TITLE,
            incident,
            PLAIN,
            strict,
        )
        body = self._show(
            own.digest if digest else own.body,
            templates.DIGEST if digest else templates.BODY,
            incident,
            limits.markup,
            strict,
        )
        title = one_line(title, _LONGEST_TITLE)
        end = limits.markup.line_end
        lines = [line.rstrip() for line in body.strip().split("\n")]
        if limits.title == 0:
            lines.insert(0, limits.markup.bold(title))
        return Message(
            key=key,
            thread=incident.thread,
            title=one_line(title, limits.title or _LONGEST_TITLE),
            body=cut(end.join(lines), limits.body, incident.url, limits.markup),
            news=_news(incident, limits),
            incident=incident,
        )

    def _show(
        self,
        own: str | None,
        built_in: str,
        incident: IncidentView,
        format: Format,
        strict: bool,
    ) -> str:
        if own is not None:
            try:
                return self._templates.show(own, incident, format, LONGEST_OUTPUT)
            except TemplateFailed as error:
                if strict:
                    raise
                self._log.warning("template failed", error=error.one_line())
        return self._templates.show(built_in, incident, format, LONGEST_OUTPUT)


def _news(incident: IncidentView, limits: Limits) -> str:
    """Return one line for each event, and of a diagnosis its cause."""
    markup, lines = limits.markup, []
    for event in incident.events:
        by = f" by {event.by}" if event.by not in ("", "monitor") else ""
        why = f": {event.why}" if event.why and event.name != "diagnosed" else ""
        lines.append(markup.escape(f"#{event.ticket} {event.text}{by}{why}"))
        if event.name == "diagnosed" and incident.diagnosis is not None:
            found = incident.diagnosis
            lines.append(markup.escape(found.cause or found.summary or found.error))
    return cut(
        markup.line_end.join(_distinct(lines)), limits.body, incident.url, markup
    )


def _distinct(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(line for line in lines if line))
