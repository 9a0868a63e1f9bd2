"""First aid for the kind `command`: what the report and its evidence say, ranked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    matching_line,
    own_line,
    own_lines,
    playbook,
    write_note,
)
from midwatch.playbooks.symptoms import COMPLAINT, Told, ranked, symptom_of, ties

_MOST_LINES = 3
_HEADS = (
    *(
        "Ticket ",
        "message: ",
        "invariant: ",
        "limit: ",
        "first seen: ",
        "ticket opened: ",
        "last seen: ",
        "status: ",
    ),
    *("facts:", "flapping: ", "earlier opening: "),
)


@playbook("command")
def command_report(tickets: Tickets, context: Context) -> Note:
    """What the user's own command reports: the line that says why, with the violations that say the same."""
    first = min(tickets, key=_depth)
    told = ties(_told(first, tickets, context))
    if not told:
        return _unexplained(first, tickets, context)
    names = {one.symptom.name for one in told}
    explained = [one for one in tickets if one is first or _says(one, names, first)]
    cause = " or ".join(one.text for one in told)
    tie = "; nothing tells which of them came first" if len(told) > 1 else ""
    weak = told[0].symptom.weight == COMPLAINT or len(told) > 1
    return write_note(
        explained,
        summary=f"{first.message}: {cause}{tie}.",
        cause=f"{first.key.component}: {cause}{tie}",
        cited=[one.citation for one in told],
        confidence="low" if weak else "medium",
        reason="it is what the command's own evidence names; what is behind that was not looked at",
        findings=[
            finding("what is broken", own_line(context, first, "message: ")),
            finding("what it reports now", _now(first, context)),
            *(
                finding(f"it names {first.key.component}", line)
                for line in _about(first, context)
                if line.quote not in {one.quote for one in told}
            ),
        ],
        actions=[*(one.symptom.advice() for one in told), _by_hand(context)],
        missing=[] if not weak else ["The cause of what it reports."],
    )


def _unexplained(first: Ticket, tickets: Tickets, context: Context) -> Note:
    """The report names no cause: say so, and show what it says of the component."""
    now = _now(first, context)
    lines = _about(first, context)
    if (lead := _lead(first, tickets, context)) is not None:
        return _leading(first, *lead, now, context)
    gone = "" if now else " It is not reported any more, or the command gave no report."
    return write_note(
        [first],
        summary=f"{first.message}. The command names no cause.{gone}",
        cause="",
        cited=[own_line(context, first, "message: ") or now],
        verdict="insufficient_data",
        confidence="low",
        reason="neither the message nor the evidence of the command says why",
        findings=[
            finding("what it reports now", now),
            finding("what is broken", own_line(context, first, "message: ")),
            *(finding(f"it names {first.key.component}", line) for line in lines),
        ],
        actions=[_by_hand(context)],
        missing=[
            f"Why {first.key.component} is so: the command can print lines about it as `evidence`."
        ],
    )


_RANKED = re.compile(
    r"\b(?:largest|biggest|top|oldest|longest|slowest|most|worst|heaviest|busiest)\b",
    re.IGNORECASE,
)


def _lead(
    ticket: Ticket, tickets: Tickets, context: Context
) -> tuple[str, Citation] | None:
    """Return a line such as "biggest list …", or the first one under "Largest keys", with the heading.

    None where there are several violations.
    """
    if len(tickets) > 1:
        return None
    lines = [
        (heading, Citation(evidence_id=number, quote=bounded(text)))
        for number, text, heading in _evidence(context)
        if any(char.isdigit() for char in text)
    ]
    named = [one for one in lines if _RANKED.search(one[1].quote)]
    listed = [one for one in lines if _RANKED.search(one[0])]
    return named[-1] if named else next(iter(listed), None)


def _leading(
    first: Ticket,
    heading: str,
    line: Citation,
    now: Citation | None,
    context: Context,
) -> Note:
    """The report names no cause, but has a list whose first line is a suspect."""
    cause = f"{first.key.component}: what stands out in “{heading}” is “{bounded(line.quote, 160)}”"
    return write_note(
        [first],
        summary=f"{first.message}. {cause}.",
        cause=cause,
        cited=[line],
        confidence="low",
        reason="the command shows it so; whether it is the cause was not looked at",
        findings=[finding("what it reports now", now)],
        actions=[
            action(f"See what is behind that line of “{heading}”, and whether it grew"),
            _by_hand(context),
        ],
        missing=["Whether that is more than usual."],
    )


def _depth(ticket: Ticket) -> tuple[int, int, int]:
    """Return how deep a violation is: one whose message names a cause comes first."""
    symptom = symptom_of(ticket.message)
    return symptom.weight if symptom else COMPLAINT + 1, ticket.severity, ticket.id


def _told(ticket: Ticket, tickets: Tickets, context: Context) -> list[Told]:
    """Return what the facts and the message of a violation and the evidence of the command say, ranked."""
    own = [
        line for line in own_lines(context, ticket) if not line[1].startswith(_HEADS)
    ]
    message = own_line(context, ticket, "message: ")
    head = [(message.evidence_id, message.quote)] if message else []
    lines = list(_evidence(context))
    others = [one.key.component.casefold() for one in tickets if one is not ticket]
    mine = ticket.key.component.casefold()
    # A line or a heading that names another component only is about that one.
    usable = [
        (number, text)
        for number, text, heading in lines
        if mine in (context_text := f"{heading} {text}".casefold())
        or not any(name in context_text for name in others)
    ]
    if _reported(context) > 1 and any(
        mine in f"{h} {t}".casefold() for _, t, h in lines
    ):
        usable = [
            (number, text)
            for number, text, heading in lines
            if mine in f"{heading} {text}".casefold()
        ]
    return ranked([*head, *own, *usable], [ticket.key.component])


def _evidence(context: Context) -> list[tuple[str, str, str]]:
    """Return evidence id, text and heading of each line that the command printed besides its violations."""
    found, heading, body = [], "", False
    for number, text in evidence_lines(context, "reports now"):
        if text.startswith("== "):
            heading, body = text.removeprefix("== "), True
        elif text in ("stdout:", "stderr (its tail):"):
            heading, body = "", True
        elif body and text:
            found.append((number, text, heading))
    return found


def _reported(context: Context) -> int:
    for _, text in evidence_lines(context, "reports now"):
        if text.startswith("violations: ") and text[12:].isdigit():
            return int(text[12:])
    return 1


def _says(ticket: Ticket, names: set[str], first: Ticket) -> bool:
    """Return whether a violation says the same, or names what the first one is about."""
    symptom = symptom_of(ticket.message)
    if symptom is not None and symptom.name in names and symptom.weight < COMPLAINT:
        return True
    return len(first.key.component) > 3 and first.key.component in ticket.message


def _now(ticket: Ticket, context: Context) -> Citation | None:
    wanted = f" {ticket.key.invariant} {ticket.key.component}: "
    return matching_line(context, "reports now", lambda text: wanted in text)


def _about(ticket: Ticket, context: Context) -> Sequence[Citation]:
    """Return the lines of evidence that name the component, the last ones."""
    lines = [
        Citation(evidence_id=number, quote=bounded(text))
        for number, text, heading in _evidence(context)
        if ticket.key.component in text or ticket.key.component in heading
    ]
    return lines[-_MOST_LINES:]


def _by_hand(context: Context) -> Action:
    program = next(
        (
            one.title[5:].removesuffix(" reports now")
            for one in context.evidence
            if one.title.endswith(" reports now")
        ),
        "the command",
    )
    return action(
        f"Run {program} by hand, as the user of Midwatch, and follow what it names"
    )
