"""The title and the description of a pull request: the ticket, what the session says, the diagnosis and its evidence.

Nothing in it acts at a forge: no mention, no reference, no keyword that closes an issue, no quick action, no link but to
the ticket's page, no HTML from outside. A person may write around the part of Midwatch, which stands between two comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midwatch.markdown import fenced, fold
from midwatch.model import Diagnosis, Evidence, Ticket
from midwatch.redaction import Redactor
from midwatch.text import code_span, markdown_escape, one_line, shorten

BEGIN, END = "<!-- midwatch:begin -->", "<!-- midwatch:end -->"
_LONGEST_TITLE = 180
_LONGEST_ANSWER = 2000
"""Tokens of what the session says."""

_GAP = "\u200b"
"""A space without width. Between a sign and a name it makes them plain text."""
# https://docs.github.com/en/get-started/writing-on-github/working-with-advanced-formatting/autolinked-references-and-urls
# https://docs.gitlab.com/user/markdown/#gitlab-specific-references
_REFERENCE = re.compile(
    r"(?<![\w.+-])@(?=\w)|[#!%$](?=\d)|&(?=\d)|~(?=\w)|\bGH-(?=\d)|(?<=:)(?=//)|\bwww(?=\.)",
    re.I,
)
# Commit messages are made of descriptions too, and there nothing is code.
_CLOSING = re.compile(
    r"(?i)\b(?:close[sd]?|closing|fix(?:e[sd]|ing)?|resolve[sd]?|resolving|implement(?:s|ed|ing)?)\b"
    r"[\s:]*(?:[\w./-]*#|GH-|https?:)(?=[\d/])"
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_QUICK_ACTION = re.compile(r"^(\s*)/(?=\w)")


def neutral(line: str) -> str:
    """Return one line in which nothing refers to a person, an issue or an address.

    Inline code too: a description may become a commit message, where nothing is code.
    """
    plain = _REFERENCE.sub(lambda found: f"{found[0]}{_GAP}", line)
    return _unclosing(_QUICK_ACTION.sub(r"\1\\/", plain))


def _unclosing(text: str) -> str:
    return _CLOSING.sub(lambda found: f"{found[0]}{_GAP}", text)


def neutral_page(page: str) -> str:
    """Return a page of Markdown in which nothing acts at a forge. Code fences keep all but keywords that close an issue."""
    lines, fence = [], ""
    for line in page.split("\n"):
        opening = _FENCE.match(line)
        if fence:
            lines.append(_unclosing(line))
            if opening and opening[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
        else:
            lines.append(line if opening else neutral(line))
            fence = opening[1] if opening else ""
    return "\n".join(lines)


def title_of(ticket: Ticket, redactor: Redactor, *, evidence: bool) -> str:
    """Return the title, which becomes the subject of a commit where a forge squashes.

    It has the message of the ticket if `evidence` may be in it.
    """
    key = ticket.key
    message = f": {ticket.message}" if evidence else ""
    text = f"Ticket {ticket.id}: {key.subject} {key.invariant}{message}"
    return neutral(redactor.text(one_line(text, _LONGEST_TITLE)))


@dataclass(frozen=True, slots=True)
class Description:
    """What the description says.

    Attributes:
        ticket: The ticket.
        diagnosis: The diagnosis that settled it, if there is one.
        answer: The answer of the session at its end.
        session: The session.
        page: The URL of the ticket's page; empty if the server has none.
        evidence: Whether diagnosis, evidence and the session's words may be in it: they quote the system.
        others: The URLs of the other pull requests of the ticket.
        noun: What the forge calls a pull request.
    """

    ticket: Ticket
    diagnosis: Diagnosis | None
    answer: str
    session: str
    page: str
    evidence: bool
    others: Sequence[str]
    noun: str

    def markdown(self, redactor: Redactor, longest: int) -> str:
        """Return the part of Midwatch, of at most `longest` bytes, with the comments around it."""
        head, foot = self._head(), self._foot()
        room = longest - _size(redactor.text(head)) - _size(foot) - 200
        parts = []
        left_out = 0
        for part in self._parts(room // 2) if self.evidence else ():
            shown = redactor.text(neutral_page(part))
            if _size(shown) + 2 > room:
                left_out += 1
                continue
            parts.append(shown)
            room -= _size(shown) + 2
        if left_out:
            parts.append(f"Left out, as the description would be too long: {left_out}")
        return "\n\n".join([BEGIN, redactor.text(head), *parts, foot, END])

    def _head(self) -> str:
        ticket, key = self.ticket, self.ticket.key
        name = f"ticket {ticket.id}"
        link = f"[{name}]({self.page})" if self.page else name
        facts = {
            "system": key.subject,
            "invariant": key.invariant,
            "component": key.component,
            "severity": ticket.severity.label,
            "opened": f"{ticket.opened_at:%Y-%m-%d %H:%M:%S} UTC",
            "session": self.session,
        }
        lines = [
            f"- {label}: {code_span(one_line(value, 200))}"
            for label, value in facts.items()
            if value
        ]
        if self.evidence:
            message = markdown_escape(one_line(ticket.message, 500))
            lines.insert(0, f"- observed: {message}")
        shown = "\n".join(map(neutral, lines))
        return f"A session of Claude Code made this change for {link} of Midwatch.\n\n{shown}"

    def _parts(self, longest: int) -> Iterator[str]:
        """Yield the parts by their worth."""
        if self.answer.strip():
            yield f"## What the session says\n\n{fenced(shorten(self.answer, _LONGEST_ANSWER))}"
        first_aid = (self.ticket.first_aid or {}).get("markdown")
        diagnosis = self.diagnosis
        page = "" if diagnosis is None else (diagnosis.markdown or "")
        page = page or (first_aid if isinstance(first_aid, str) else "")
        if _size(page) > longest:
            page = fenced(_cut(page, max(longest - 500, 0)))
        if page:
            yield page
        if diagnosis is not None:
            for piece in diagnosis.evidence:
                if piece.available:
                    yield _evidence(piece)

    def _foot(self) -> str:
        lines = []
        if self.others:
            lines.append("It belongs together with:\n")
            lines += [f"- {url}" for url in self.others]
            lines.append("")
        lines.append(
            f"Merging or closing this {self.noun} does not change the ticket: it resolves when its invariant is"
            " observed to hold again."
        )
        return "\n".join(lines)


def _evidence(piece: Evidence) -> str:
    title = f"Evidence {piece.id}: {one_line(piece.title, 200)}, {piece.at:%Y-%m-%d %H:%M:%S} UTC"
    return fold(title, fenced(piece.text))


def spliced(present: str, part: str) -> str | None:
    """Return a description with Midwatch's part replaced; None if there is nothing to change, or a person removed it."""
    begin, end = present.find(BEGIN), present.rfind(END)
    if begin < 0 or end < begin:
        return None
    changed = present[:begin] + part + present[end + len(END) :]
    return None if changed == present else changed


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")
