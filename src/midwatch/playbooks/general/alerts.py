"""First aid for the kinds `prometheus`, `alerts` and `alertmanager`: of several alerts the first link, and the series that shows since when.

What an alert is about is in its name, the metrics of its expression and its text: a full disk comes before the
process that ends for it, that before its errors, and these before slow answers. An alert that began clearly later than
the others cannot be their first link, whatever it is about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    NotePlaybook,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    line_starting,
    matching_line,
    own_line,
    playbook,
    text_fact,
    titled_lines,
    write_note,
)
from midwatch.playbooks.symptoms import symptom_of
from midwatch.units import parse_time

_LATER = timedelta(minutes=10)
"""An alert that began this much after the first of a group is not what began it."""
_SAME_MOMENT = timedelta(seconds=30)
_OTHER = 5
_KINDS = tuple(
    (rank, what, re.compile(pattern, re.IGNORECASE))
    for rank, what, pattern in (
        (
            0,
            "a disk or file system that runs full",
            r"filesystem|disk|inode|volume|\bpvc?\b|no.?space|storage.?(?:full|space)|\bmount",
        ),
        (0, "memory that runs out", r"\boom|oom.?kill|memory|\bswap"),
        (0, "a certificate that ends", r"cert|x509|(?:tls|ssl).{0,20}expir"),
        (
            0,
            "a machine or its network",
            r"node.?(?:down|not.?ready|unreachable)|host.?down|network|\bdns\b|coredns|clock|ntp",
        ),
        (
            1,
            "a process that is down or starts again and again",
            r"\bup\b|(?:is|are) down\b|down$|[a-z]Down|absent|unreachable|crash|restart|unhealthy|not.?ready|missing|probe_success",
        ),
        (
            2,
            "a queue, a pool or a limit that is full",
            r"queue|pool|connections|throttl|saturat|backlog|\blag\b|lag_|Lag|pending|file.?desc|\bfds?\b|cpu|load",
        ),
        (3, "errors", r"error|5xx|5\.\.|fail|exception|panic"),
        (
            4,
            "slow answers",
            r"latency|duration|slow|burn|\bslo\b|SLO|quantile|apdex|p9\d",
        ),
    )
)
_LINE = re.compile(
    r"(?P<state>firing|pending) (?P<name>.+?) since (?P<at>\S*): (?P<labels>.*)$"
)
_PLACE = re.compile(
    r"\b(?:instance|pod|node|host|hostname|nodename|container)=\"?([^,\"]+?)(?::\d+)?\"?(?=,|;|\}|$)"
)


@dataclass(frozen=True, slots=True)
class Link:
    """An alert that fires: what it is about (the less the deeper), since when, and its ticket, if it has one here."""

    name: str
    rank: int
    about: str
    at: datetime | None
    places: frozenset[str]
    citation: Citation | None
    ticket: Ticket | None = None


@playbook("prometheus")
def prometheus_alert(tickets: Tickets, context: Context) -> Note:
    """Alerts, or rules of the settings: the first link of those that belong together."""
    # The one that counts the rest of a storm has neither labels nor a rule.
    named = [one for one in tickets if one.key.invariant != "alert"]
    if not named:
        return _storm(tickets, context)
    own = [_own_link(one, context) for one in named]
    group = _together(own, _deepest(own))
    others = [
        one
        for one in _firing(context, group)
        if not one.places.isdisjoint(
            frozenset().union(*(each.places for each in group))
        )
    ]
    ordered = _ordered([*group, *others])
    first = ordered[0]
    alike = [one for one in ordered[1:] if _alike(first, one)]
    return _note(context, tickets, group, [first, *alike], ordered)


pushed_alerts = tuple(
    NotePlaybook(kind, prometheus_alert.invariants, prometheus_alert.write)
    for kind in ("alerts", "alertmanager")
)
"""The same for alerts that a sender pushes, and for those of Alertmanager."""


def _note(
    context: Context,
    tickets: Tickets,
    group: Sequence[Link],
    firsts: Sequence[Link],
    ordered: Sequence[Link],
) -> Note:
    first = firsts[0]
    own = [one.ticket for one in group if one.ticket is not None]
    down = next(filter(None, (_down(one, context) for one in own)), None)
    series = [line for one in firsts if (line := _over_time(one, context))]
    rest = [one for one in ordered if one not in firsts]
    shown = series[0].quote.partition(": ")[2] if series else ""
    part = None if len(firsts) > 1 else _part(first, context)
    missing = None if series or len(firsts) > 1 else _no_series(first, context)
    detail = _detail(first, down, shown, part, missing)
    explained = [*own, *(one for one in tickets if one.key.invariant == "alert")]
    cause = _cause(firsts, len(ordered) == 1, detail)
    follows = (
        f"; {_list([one.name for one in rest])} may follow from it" if rest else ""
    )
    definition = f"Definition of {first.ticket.key.invariant}" if first.ticket else ""
    return write_note(
        explained,
        summary=f"{cause}{follows}.",
        cause=cause,
        cited=[
            *(one.citation for one in firsts),
            *series[:2],
            down if down is not None and first.rank >= 1 else None,
            part,
            missing,
        ],
        confidence="low" if len(firsts) > 1 or not (detail or rest) else "medium",
        reason=(
            "of the alerts that belong together it is about the deepest part, and none began clearly before it"
            if rest
            else "the series are known, the system behind them is not"
        ),
        findings=[
            *(finding(f"{one.name} fires", one.citation) for one in rest[:6]),
            (
                finding(
                    "the expression of the rule",
                    line_starting(context, definition, "expr: "),
                )
                if definition
                else None
            ),
            finding("a target cannot be scraped", down),
            *(
                finding("what else changed on the same target", line)
                for line in _neighbours(context)
            ),
        ],
        actions=_actions(first, down),
        missing=["The log of the component."],
    )


def _cause(firsts: Sequence[Link], alone: bool, detail: str) -> str:
    first = _named(firsts[0])
    if alone:
        return f"{first}: {detail}" if detail else f"{first}; its cause is not known"
    if len(firsts) > 1:
        names = " or ".join(map(_named, firsts))
        return f"{names} began at the same time: nothing tells which is the first link"
    return f"the first link is {first}" + (f": {detail}" if detail else "")


def _named(link: Link) -> str:
    where = f" on {', '.join(sorted(link.places))}" if link.places else ""
    about = f" ({link.about})" if link.about else ""
    return f"{link.name}{where}{about}"


def _detail(
    first: Link,
    down: Citation | None,
    series: str,
    part: Citation | None,
    missing: Citation | None,
) -> str:
    """Return what is known beyond the alert itself: why the target cannot be scraped, its own text, the series."""
    parts = []
    if down is not None and first.rank >= 1:
        parts.append(f"a target cannot be scraped: {down.quote}")
    if first.ticket is not None:
        text = first.ticket.message.removeprefix(f"{first.name}: ")
        said = symptom_of(text)
        if text != "fires" and text not in first.ticket.key.component:
            parts.append(
                f"{text}" + (f" ({said.name})" if said and said.weight < 2 else "")
            )
    if series:
        parts.append(series.partition("; min ")[0])
    if part is not None:
        parts.append(f"most of it is {part.quote.rpartition(': ')[0]}")
    if missing is not None:
        parts.append(f"there is no series of {missing.quote.removeprefix('expr: ')}")
    return "; ".join(dict.fromkeys(parts))


def _list(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(shown[:5]) + more


# ------------------------------------------------------------------ links


def _own_link(ticket: Ticket, context: Context) -> Link:
    name = text_fact(ticket, "alertname", ticket.key.invariant.removeprefix("alert:"))
    expr = line_starting(context, f"Definition of {ticket.key.invariant}", "expr: ")
    text = " ".join((name, expr.quote if expr else text_fact(ticket, "expr")))
    rank, about = _kind(text) if _kind(text)[0] < _OTHER else _kind(ticket.message)
    places = _PLACE.findall(
        ", ".join(f"{_label(fact)}={value}" for fact, value in ticket.facts.items())
    )
    return Link(
        name,
        rank,
        about,
        parse_time(text_fact(ticket, "active_at")) or ticket.first_seen_at,
        frozenset(place.lower() for place in places),
        _series(ticket, context) or own_line(context, ticket, "message: "),
        ticket,
    )


def _label(fact: str) -> str:
    return fact.removeprefix("label_") if fact.startswith("label_") else f"fact_{fact}"


def _firing(context: Context, known: Sequence[Link]) -> list[Link]:
    """Return the other alerts that the server says fire."""
    found = []
    taken = {one.citation.quote for one in known if one.citation}
    for number, text in evidence_lines(context, "Firing and pending alerts"):
        match = _LINE.match(text)
        if match is None or match["state"] != "firing" or bounded(text) in taken:
            continue
        rank, about = _kind(f"{match['name']} {text.partition('; on ')[2]}")
        places = frozenset(place.lower() for place in _PLACE.findall(match["labels"]))
        cited = Citation(evidence_id=number, quote=bounded(text))
        found.append(
            Link(match["name"], rank, about, parse_time(match["at"]), places, cited)
        )
    return found


def _kind(text: str) -> tuple[int, str]:
    """Return what an alert is about, and how deep that is."""
    return next(
        ((rank, what) for rank, what, pattern in _KINDS if pattern.search(text)),
        (_OTHER, ""),
    )


def _deepest(links: Sequence[Link]) -> Link:
    return _ordered(links)[0]


def _together(links: Sequence[Link], first: Link) -> list[Link]:
    """Return the alerts that belong to the first one: of the same place, or shallower ones that name no place."""
    group, places = [first], set(first.places)
    changed = True
    while changed:
        changed = False
        for one in links:
            near = not places.isdisjoint(one.places)
            loose = not one.places and one.rank > first.rank
            same = one.name == first.name and one.places == first.places
            if one not in group and (near or loose or same):
                group.append(one)
                places |= one.places
                changed = True
    return group


def _ordered(links: Sequence[Link]) -> list[Link]:
    """Return the links, the deepest first; one that began clearly after the earliest comes behind."""
    times = [one.at for one in links if one.at is not None]
    earliest = min(times) if times else None

    def key(one: Link) -> tuple[bool, int, float, str]:
        late = (
            earliest is not None and one.at is not None and one.at > earliest + _LATER
        )
        return late, one.rank, one.at.timestamp() if one.at else 0.0, one.name

    return sorted(links, key=key)


def _alike(first: Link, other: Link) -> bool:
    """Return whether nothing tells which of two came first."""
    if other.rank != first.rank or other.name == first.name:
        return False
    return (
        first.at is None or other.at is None or abs(other.at - first.at) <= _SAME_MOMENT
    )


# ------------------------------------------------------------------ citations


def _series(ticket: Ticket, context: Context) -> Citation | None:
    name = ticket.key.invariant
    labels = ticket.key.component.split(", ")

    def names(text: str) -> bool:
        return all(label in text for label in labels)

    if not name.startswith("alert:"):
        return matching_line(context, f"{name}: values now", names)
    alert = text_fact(ticket, "alertname", name.removeprefix("alert:"))
    return matching_line(
        context,
        "Firing and pending alerts",
        lambda text: f" {alert} since " in text and (names(text) or alert in labels),
    )


def _over_time(link: Link, context: Context) -> Citation | None:
    """Return the series of an alert without its comparison; the first that is broken now."""
    if link.ticket is None:
        return None
    found = [
        Citation(evidence_id=number, quote=bounded(text))
        for number, text in titled_lines(
            context, f"{link.ticket.key.invariant}: over time"
        )
        if "; min " in text
    ]
    broken = [one for one in found if " since " in one.quote]
    return next(iter(broken or found), None)


def _part(link: Link, context: Context) -> Citation | None:
    """Return the series that makes up most of an aggregate, if one does."""
    if link.ticket is None:
        return None
    found = []
    for number, text in titled_lines(
        context, f"{link.ticket.key.invariant}: its largest parts"
    ):
        name, _, value = text.rpartition(": ")
        if name and name != "expr" and re.fullmatch(r"[\d.e+-]+", value):
            found.append(
                (float(value), Citation(evidence_id=number, quote=bounded(text)))
            )
    total = sum(value for value, _ in found)
    return found[0][1] if found and found[0][0] > total * 0.5 else None


def _no_series(link: Link, context: Context) -> Citation | None:
    """Return the expression of an alert that has no series at all, such as that of `absent`."""
    if link.ticket is None:
        return None
    lines = list(titled_lines(context, f"{link.ticket.key.invariant}: over time"))
    if not any(text == "0 series of these labels" for _, text in lines):
        return None
    return next(
        (
            Citation(evidence_id=number, quote=bounded(text))
            for number, text in lines
            if text.startswith("expr: ")
        ),
        None,
    )


def _neighbours(context: Context) -> list[Citation]:
    """Return the series of the target that changed most."""
    return [
        Citation(evidence_id=number, quote=bounded(text))
        for number, text in evidence_lines(context, "Other series of {")
        if text.endswith((" before", " an hour ago", "it was started again"))
    ][:3]


def _down(ticket: Ticket, context: Context) -> Citation | None:
    instance = text_fact(ticket, "label_instance")
    if not instance:
        return None
    wanted = re.compile(rf"(?:^|[ ,{{])instance={re.escape(instance)}(?:[,:}}]|$)")
    return matching_line(
        context,
        "Scrape targets that are down",
        lambda text: text.startswith("down ") and wanted.search(text) is not None,
    )


def _actions(first: Link, down: Citation | None) -> list[Action]:
    place = next(iter(sorted(first.places)), "")
    where = f"On {place}, see" if place else "See"
    found = []
    match first.about.split(" ")[1:2]:
        case ["disk"]:
            found.append(
                action(
                    f"{where} which file system is full, and what fills it",
                    "df -h",
                    "df -i",
                )
            )
        case _ if first.about.startswith("memory"):
            found.append(
                action(
                    f"{where} who uses the memory",
                    "ps -eo pid,rss,user,comm --sort=-rss | head -15",
                    "journalctl -k --since '-2h'",
                )
            )
        case _ if first.rank == 1:
            found.append(
                action(
                    f"{where} whether the process runs, and how it ended: its unit and the end of its log"
                )
            )
    if (
        down is not None
        and (said := symptom_of(down.quote)) is not None
        and first.rank >= 1
    ):
        found.append(said.advice())
    if not found:
        found.append(action("Check the component that the labels name, and its log"))
    return [
        *found,
        action(
            "Check the series over a longer time in Prometheus, from before it began"
        ),
    ]


def _storm(tickets: Tickets, context: Context) -> Note:
    """Many alerts, of which none has a ticket of its own here."""
    return write_note(
        tickets,
        summary=f"{tickets[0].message}.",
        cause="many alerts fire at once: the ones that are tickets, the earliest and deepest, come first",
        cited=[
            own_line(context, tickets[0], "message: ")
            or matching_line(
                context,
                "Firing and pending alerts",
                lambda text: text.startswith("firing "),
            )
        ],
        confidence="low",
        reason="they are counted, not examined",
        actions=[action("Begin with the tickets of the alerts that began first")],
    )
