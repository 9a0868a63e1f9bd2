"""The markup of services: how text from outside stays text in each, and how a message is cut (pure).

Values are escaped where a template shows them; what a template itself says is markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

from midwatch.text import code_span, markdown_escape, one_line

_ADDRESS = re.compile(r"(?<!\S)\S*(?:://|(?i:www)\.)\S*")
_SLACK_MARKS = re.compile(r"(?<![^\W_])[*_~`]|[*_~`](?![^\W_])")
_MENTION = re.compile(r"@(?=everyone\b|here\b|channel\b|all\b)", re.IGNORECASE)
_BROKEN = "\u200b"
"""Not seen; with it a mark is no mark, and a mention calls no one."""


class Safe(str):
    """Text that is markup already."""


@dataclass(frozen=True, slots=True)
class Format:
    """The markup of a service. Each function takes text from outside; `link` takes a URL and a text."""

    name: str
    escape: Callable[[str], str]
    bold: Callable[[str], str]
    code: Callable[[str], str]
    link: Callable[[str, str], str]
    line_end: str = "\n"


def _unmentioned(text: str) -> str:
    return _MENTION.sub(f"@{_BROKEN}", text)


def _same(text: str) -> str:
    return text


# ------------------------------------------------------------------ Slack


def _slack_entities(text: str) -> str:
    # https://docs.slack.dev/messaging/formatting-message-text#escaping
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _slack_text(text: str) -> str:
    parts, position = [], 0
    for match in _ADDRESS.finditer(text):
        parts += [_slack_marks(text[position : match.start()]), _slack_code(match[0])]
        position = match.end()
    return "".join([*parts, _slack_marks(text[position:])])


def _slack_marks(text: str) -> str:
    shown = _SLACK_MARKS.sub(rf"\g<0>{_BROKEN}", _unmentioned(text))
    return _slack_entities(shown)


def _slack_code(text: str) -> str:
    return f"`{_slack_entities(text).replace('`', chr(0x2CB))}`" if text else ""


def _slack_link(url: str, text: str) -> str:
    return f"<{_slack_entities(url)}|{_slack_text(text)}>" if url else _slack_text(text)


# ------------------------------------------------------------------ the formats

TEXT = Format(
    "text",
    _unmentioned,
    _unmentioned,
    _same,
    lambda url, text: f"{_unmentioned(text)} ({url})" if url else _unmentioned(text),
)
HTML = Format(
    "html",
    html.escape,
    lambda text: f"<b>{html.escape(text)}</b>",
    lambda text: f"<code>{html.escape(text)}</code>",
    lambda url, text: (
        f'<a href="{html.escape(url)}">{html.escape(text)}</a>'
        if url
        else html.escape(text)
    ),
    "<br>\n",
)


def _markdown(text: str) -> str:
    return _unmentioned(markdown_escape(text))


MARKDOWN = Format(
    "markdown",
    _markdown,
    lambda text: f"**{_markdown(text)}**" if text.strip() else "",
    lambda text: _unmentioned(code_span(one_line(text, 1000))) if text else "",
    lambda url, text: f"[{_markdown(text)}](<{url}>)" if url else _markdown(text),
)
SLACK = Format(
    "slack",
    _slack_text,
    lambda text: f"*{_slack_text(text)}*" if text.strip() else "",
    _slack_code,
    _slack_link,
)
PLAIN = Format("plain", _same, _same, _same, lambda url, text: text)
"""That of a title, which is one line and is escaped as a whole where it is shown."""
FORMATS = {one.name: one for one in (TEXT, HTML, MARKDOWN, SLACK)}


def cut(text: str, limit: int, url: str, format: Format) -> str:
    """Return `text` with at most `limit` characters: whole lines, and then where the rest is.

    Args:
        text: Markup of the format.
        limit: Characters; below that of the link itself only a part of the first line stays.
        url: Where all of it is; empty for nowhere.
        format: The markup.
    """
    if len(text) <= limit:
        return text
    more = format.link(url, "… the rest is on the ticket") if url else "…"
    end = format.line_end
    room = limit - len(more) - len(end)
    if room <= 0:  # such as a pager: the beginning says more than a link
        return _trimmed(text, limit)
    kept: list[str] = []
    for line in text.split(end):
        used = sum(map(len, kept)) + len(end) * len(kept)
        if used + len(line) > room:
            if not kept:
                kept.append(_trimmed(line, room))
            break
        kept.append(line)
    return end.join([*kept, more])


def _trimmed(line: str, room: int) -> str:
    """Return the beginning of a line of markup, without half of an entity, a tag or a link at its end."""
    shown = line[: max(room - 1, 0)]
    for opening, closing in (("<", ">"), ("&", ";")):
        at = shown.rfind(opening)
        if at >= 0 and closing not in shown[at:] and closing in line[at:]:
            shown = shown[:at]
    return f"{shown}…"
