"""Decide which target is notified of a change (pure).

The first route that matches a ticket tells of it, and those after it only where it says `continue`. A target that was
notified of a ticket hears of its later events whatever the time of day, from the same route and in the same thread. Each
delivery has a key made of the change, the target and the event, so that planning a change twice writes it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from midwatch.errors import PermanentError, SettingsError
from midwatch.matchers import Matcher, check_matchers, match_all, parse_matcher_groups
from midwatch.model import INVESTIGATION, Ticket
from midwatch.notification_settings import DAYS, NotificationSettings, RouteSettings
from midwatch.silences import labels_of_ticket
from midwatch.store.on_call import Change, NewDelivery, Told

EVENT_OF = {
    "open": "opened",
    "first_aid": "first_aid",
    "diagnose": "diagnosed",
    "give up": "diagnosed",
    "acknowledge": "acknowledged",
    "resolve": "resolved",
    "hold": "held_too_long",
    "join": "joined",
}
"""The event that a change of a ticket is, by its action. Other changes are not sent."""
_ASKED_FOR = INVESTIGATION
"""The invariant of tickets that somebody asked for: who asked is called back, and no one else is notified."""
DIGEST = "digest "
"""What the thread of a digest begins with; the name of its route follows."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route, with its matchers read."""

    settings: RouteSettings
    matchers: tuple[Matcher, ...]

    @property
    def name(self) -> str:
        return self.settings.name

    def open_at(self, now: datetime) -> bool:
        """Return whether it begins to tell of tickets at this time of day, on this day of the week."""
        local = now.astimezone(ZoneInfo(self.settings.timezone))
        if self.settings.hours is None:
            return DAYS[local.weekday()] in self.settings.days
        start, end = (
            time.fromisoformat(part) for part in self.settings.hours.split("-")
        )
        at = local.time().replace(tzinfo=None)
        day = local
        if start < end:
            inside = start <= at < end
        else:  # over midnight: the hours after it belong to the day before
            inside = at >= start or at < end
            if at < end:
                day -= timedelta(days=1)
        return inside and DAYS[day.weekday()] in self.settings.days

    def next_digest(self, now: datetime) -> float:
        """Return the seconds until its next digest is sent."""
        assert self.settings.digest is not None
        zone = ZoneInfo(self.settings.timezone)
        local = now.astimezone(zone)
        day = datetime.combine(
            local.date(), time.fromisoformat(self.settings.digest_at), zone
        )
        since = (now - day).total_seconds() % self.settings.digest
        return self.settings.digest - since


@dataclass(frozen=True, slots=True)
class Routes:
    """All routes, in order, and what they need to know to match a ticket.

    Attributes:
        routes: The routes.
        settings: The group `notifications` of the settings.
        kinds: The kind of each subject, by its name.
    """

    routes: tuple[Route, ...]
    settings: NotificationSettings
    kinds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_settings(
        cls, settings: NotificationSettings, kinds: Mapping[str, str]
    ) -> Routes:
        """Read the matchers of the routes. Raises SettingsError for a wrong one."""
        routes = []
        for number, route in enumerate(settings.routes):
            try:
                parsed = parse_matcher_groups(route.match)
                check_matchers(parsed)
            except PermanentError as error:
                path = f"notifications.routes[{number}].match"
                raise SettingsError(error.message, path=path, hint=error.hint) from None
            routes.append(Route(route, parsed))
        return cls(tuple(routes), settings, kinds)

    def matching(
        self, ticket: Ticket, now: datetime, *, after: str | None = None
    ) -> Iterator[Route]:
        """Yield the routes that tell of a ticket, if no one was notified of it yet.

        Args:
            ticket: The ticket.
            now: The time.
            after: Name of a route: only those behind it.
        """
        labels = labels_of_ticket(ticket, self.kinds.get(ticket.key.subject, ""))
        skipping = after is not None
        for route in self.routes:
            if skipping:
                skipping = route.name != after
            elif match_all(route.matchers, labels) and route.open_at(now):
                yield route
                if not route.settings.goes_on:
                    return

    def named(self, name: str) -> Route | None:
        """Return the route with this name, or None: the settings may have changed."""
        return next((one for one in self.routes if one.name == name), None)


def plan(
    changes: Sequence[Change],
    tickets: Mapping[int, Ticket],
    earlier: Sequence[Told],
    routes: Routes,
    now: datetime,
) -> list[NewDelivery]:
    """Return the deliveries that changes ask for.

    Args:
        changes: The changes, in order.
        tickets: Their tickets as they are now, by id.
        earlier: Where these tickets were notified of before.
        routes: The routes.
        now: The time.
    """
    known = list(earlier)
    found: list[NewDelivery] = []
    for change in changes:
        event = EVENT_OF.get(change.action)
        ticket = tickets.get(change.ticket_id)
        if event is None or ticket is None or ticket.key.invariant == _ASKED_FOR:
            continue
        new = list(_of_change(change, event, ticket, known, routes, now))
        known += [
            Told(ticket.id, one.route, one.target, one.thread)
            for one in new
            if one.event in (event, "added") and event != "held_too_long"
        ]
        found += new
    return found


def _of_change(
    change: Change,
    event: str,
    ticket: Ticket,
    told: Sequence[Told],
    routes: Routes,
    now: datetime,
) -> Iterator[NewDelivery]:
    mine = [one for one in told if one.ticket_id == ticket.id]
    content = {"at": change.at.isoformat(), "by": change.actor, "why": change.why}
    if event == "joined":
        yield from _joined(change, ticket, mine, routes, content)
        return
    if mine:
        # The last one first: an incident may have joined another since.
        pairs = [
            (one.target, one.thread, routes.named(one.route)) for one in reversed(mine)
        ]
        chosen = [(target, thread, route) for target, thread, route in pairs if route]
    else:
        chosen = [
            (target, _thread(route, ticket), route)
            for route in routes.matching(ticket, now)
            for target in route.settings.to
        ]
    told_now: set[str] = set()
    for target, thread, route in chosen:
        if target in told_now or event not in route.settings.events:
            continue
        told_now.add(target)
        yield NewDelivery(
            f"{change.cursor}/{target}/{event}",
            route.name,
            target,
            event,
            thread,
            ticket.id,
            content,
            _due_in(event, route, routes.settings, now),
        )
    if event == "opened" and not mine:
        for first in dict.fromkeys(one.name for _, _, one in chosen):
            yield from _escalations(change, ticket, first, routes, now, told_now)


def _joined(
    change: Change,
    ticket: Ticket,
    mine: Sequence[Told],
    routes: Routes,
    content: Mapping[str, object],
) -> Iterator[NewDelivery]:
    """Yield, where targets were notified of a ticket, that its thread ends, and that the one of its incident has it now."""
    last = {one.target: one for one in mine}
    for target, told in last.items():
        route = routes.named(told.route)
        if route is None or told.thread.startswith(DIGEST):
            continue
        thread = _thread(route, ticket)
        if thread == told.thread:
            continue
        for event, where in (("joined", told.thread), ("added", thread)):
            yield NewDelivery(
                f"{change.cursor}/{target}/{event}",
                route.name,
                target,
                event,
                where,
                ticket.id,
                content,
                routes.settings.group_wait,
            )


def _thread(route: Route, ticket: Ticket) -> str:
    if route.settings.digest is not None:
        return f"{DIGEST}{route.name}"
    return f"incident-{ticket.batch}"


def _due_in(
    event: str, route: Route, settings: NotificationSettings, now: datetime
) -> float:
    if event == "held_too_long":
        return settings.held_after
    if route.settings.digest is not None:
        return route.next_digest(now)
    return settings.group_wait


def _escalations(
    change: Change,
    ticket: Ticket,
    first: str,
    routes: Routes,
    now: datetime,
    told: set[str],
) -> Iterator[NewDelivery]:
    """Yield what is due at later routes if no one acknowledges the ticket; whether anyone did is seen then."""
    delay, name = 0.0, first
    while route := routes.named(name):
        if route.settings.escalate_after is None or route.settings.digest is not None:
            return
        delay += route.settings.escalate_after
        later = routes.matching(ticket, now + timedelta(seconds=delay), after=name)
        following = next(later, None)
        if following is None:
            return
        for target in following.settings.to:
            if target not in told:
                told.add(target)
                yield NewDelivery(
                    f"{change.cursor}/{target}/escalated",
                    following.name,
                    target,
                    "escalated",
                    _thread(following, ticket),
                    ticket.id,
                    {"from": route.name, "after": delay},
                    delay,
                )
        name = following.name
