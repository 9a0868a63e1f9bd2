"""Turn what people, programs and webhooks report of a change into what is stored: clean, redacted and bounded."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from midwatch.errors import PermanentError
from midwatch.model import ChangeKind, Json
from midwatch.redaction import Sanitizer
from midwatch.system_changes import (
    LONGEST_TEXT,
    LONGEST_TITLE,
    MOST_FILES,
    MOST_LABELS,
    NewChange,
)
from midwatch.units import check_url

_AHEAD = timedelta(minutes=5)
"""How far the clock of who reports a change may be ahead."""


class InvalidChange(PermanentError):
    """A reported change makes no sense."""

    hint = "docs/changes.md says what a change has"


@dataclass(frozen=True, slots=True)
class ReportedChange:
    """A change as somebody reports it.

    Attributes:
        key: What makes it one, with `source`: the id of a delivery, or of a commit.
        title: One line about it.
        source: Who reports it, such as "api ann".
        kind: What was changed.
        at: When; None for now.
        subject: The subject that was changed; empty for what has the labels.
        labels: What it is about.
        version_from: The version before.
        version_to: The version after.
        link: A URL for people; anything but http or https is left out.
        author: Who made it.
        files: Files that it changed.
        details: More of it, in words of Midwatch.
    """

    key: str
    title: str
    source: str
    kind: ChangeKind = ChangeKind.DEPLOY
    at: datetime | None = None
    subject: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    version_from: str = ""
    version_to: str = ""
    link: str = ""
    author: str = ""
    files: tuple[str, ...] = ()
    details: Json = field(default_factory=dict)


def new_change(
    reported: ReportedChange, sanitizer: Sanitizer, now: datetime
) -> NewChange:
    """Return a change to store. A time of the future becomes that of now."""

    def text(value: str, limit: int = LONGEST_TEXT) -> str:
        return sanitizer.sanitize(value, limit)

    labels = list(reported.labels.items())[:MOST_LABELS]
    details = dict(reported.details)
    if reported.files:
        details["files"] = [text(one, 200) for one in reported.files[:MOST_FILES]]
        if (more := len(reported.files) - MOST_FILES) > 0:
            details["more_files"] = more
    return NewChange(
        dedup_key=bounded_key(f"{reported.key} {reported.subject}"),
        at=min(reported.at or now, now),
        kind=reported.kind,
        title=text(reported.title, LONGEST_TITLE) or reported.kind.value,
        source=text(reported.source, 100),
        subject=reported.subject,
        labels={text(name, 100): text(value, 200) for name, value in labels},
        version_from=text(reported.version_from, 200),
        version_to=text(reported.version_to, 200),
        link=_link(text(reported.link)),
        author=text(reported.author, 100),
        details=details,
    )


def bounded_key(key: str) -> str:
    """Return a key that fits an index entry; two long ones stay different."""
    if len(key) <= 300 and key.isascii() and key.isprintable():
        return key
    return hashlib.sha256(key.encode(errors="backslashreplace")).hexdigest()


def _link(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        return ""
    try:
        return check_url(text)
    except ValueError:
        return ""


def check_report(
    title: str,
    at: datetime | None,
    subject: str | None,
    labels: Mapping[str, str],
    known: Collection[str],
    now: datetime,
    keep_for: float,
) -> None:
    """Check what a person or a program reports. Raises InvalidChange.

    Args:
        title: Its title.
        at: When it happened; None for now.
        subject: The subject that was changed, if one is named.
        labels: What it is about.
        known: The names of the subjects of the settings.
        now: The time.
        keep_for: Seconds for which changes are kept.
    """
    if not title.strip():
        raise InvalidChange("a change needs a title")
    if not subject and not labels:
        raise InvalidChange("a change needs a subject, or labels")
    if subject and subject not in known:
        close = difflib.get_close_matches(subject, sorted(known), n=1)
        raise InvalidChange(
            f"there is no subject {subject:.80}",
            hint=f"did you mean {close[0]}?" if close else "see the setting subjects",
        )
    if len(labels) > MOST_LABELS:
        raise InvalidChange(f"a change has at most {MOST_LABELS} labels")
    if at is not None and at > now + _AHEAD:
        raise InvalidChange(
            "the change is in the future",
            hint="report it when it has happened; check the clock of the machine",
        )
    if at is not None and at < now - timedelta(seconds=keep_for):
        raise InvalidChange(
            "the change is older than changes are kept", hint="see changes.keep_for"
        )
