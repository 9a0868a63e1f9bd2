"""Checks of pushed alerts: which tickets a push opens and resolves, whatever comes late, twice or never."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from midwatch.errors import StaleWatch
from midwatch.model import Key, Severity, Ticket, TicketStatus
from midwatch.received import KeptAlert, Push, PushRules
from midwatch.silences import Matcher
from midwatch.store.protocol import Changes, TicketFilter
from midwatch.testing.store_conformance.fixture import (
    Check,
    StoreFixture,
    opening,
    raises,
)

BEGAN = datetime(2026, 3, 1, 11, tzinfo=UTC)
ENDED = BEGAN + timedelta(minutes=30)
RULES = PushRules(group_wait=10.0)


def alert(component: str = "a", firing: bool = True, **more: Any) -> KeptAlert:
    """Return an alert whose fingerprint is its component's."""
    return KeptAlert(
        fingerprint=more.pop("fingerprint", f"fp-{component}"),
        firing=firing,
        invariant="alert:Down",
        component=component,
        severity=more.pop("severity", Severity.CRITICAL),
        message=f"{component} is down",
        facts={"alertname": "Down", "label_instance": component},
        starts_at=more.pop("starts_at", BEGAN),
        ends_at=more.pop("ends_at", None if firing else ENDED),
        **more,
    )


def push(*alerts: KeptAlert, **more: Any) -> Push:
    return Push("team", "alerts", "alertmanager", alerts, **more)


async def _send(at: StoreFixture, *alerts: KeptAlert, **more: Any) -> None:
    await at.store.receive([push(*alerts, **more)], RULES)


async def _tickets(at: StoreFixture) -> list[Ticket]:
    found = await at.store.tickets(TicketFilter(subject="team", limit=1000))
    return sorted(found, key=lambda ticket: ticket.id)


async def _open(at: StoreFixture) -> list[str]:
    return [one.key.component for one in await _tickets(at) if not one.resolved]


async def a_pushed_alert_is_one_ticket_until_it_is_resolved(at: StoreFixture) -> None:
    """Repeats change nothing, in one push or in several; the history names the sender."""
    await at.store.receive([push(alert(), alert("b")), push(alert())], RULES)
    await _send(at, alert())
    first, second = await _tickets(at)
    assert (first.key, first.message) == (Key("team", "alert:Down", "a"), "a is down")
    assert first.batch == second.batch, "one push is one incident"
    assert first.facts["label_instance"] == "a"
    await _send(at, alert(firing=False))
    await _send(at, alert(firing=False))
    assert await _open(at) == ["b"]
    history = await at.store.history(first.id)
    assert [(row.action, row.actor) for row in history] == [
        ("open", "alertmanager"),
        ("resolve", "alertmanager"),
    ]
    await _send(at, alert(starts_at=ENDED + timedelta(minutes=1)))
    assert (await _tickets(at))[-1].previous_id == first.id


async def a_late_report_of_firing_opens_nothing(at: StoreFixture) -> None:
    """It is late within a minute of the resolution; after that the alert fires again."""
    await _send(at, alert(firing=False))
    assert await _tickets(at) == [], "a resolution of what was never seen"
    await _send(at, alert())
    assert await _tickets(at) == []
    at.clock.move(61)
    await _send(at, alert())
    assert await _open(at) == ["a"]


async def a_late_resolution_leaves_what_began_after_it(at: StoreFixture) -> None:
    later = ENDED + timedelta(minutes=1)
    await _send(at, alert())
    await _send(at, alert(starts_at=later))
    await _send(at, alert(firing=False))
    assert await _open(at) == ["a"]
    ended = alert(firing=False, starts_at=later, ends_at=later + timedelta(minutes=1))
    await _send(at, ended)
    assert await _open(at) == []
    assert len(await _tickets(at)) == 1


async def the_sender_s_own_times_decide(at: StoreFixture) -> None:
    """Where it says when each state began, a later report of an earlier state changes nothing."""
    times = [BEGAN + timedelta(seconds=second) for second in range(4)]
    await _send(at, alert(changed_at=times[0]))
    await _send(at, alert(firing=False, changed_at=times[2], ends_at=times[2]))
    await _send(at, alert(changed_at=times[1]))
    assert await _open(at) == []
    await _send(at, alert(changed_at=times[3]))
    assert await _open(at) == ["a"]
    await _send(at, alert(firing=False, changed_at=times[2], ends_at=times[2]))
    assert await _open(at) == ["a"]


async def they_decide_without_a_start_too(at: StoreFixture) -> None:
    """Also when the report of firing comes long after; a time of the future decides nothing."""
    early, late = (at.clock.now - timedelta(seconds=ago) for ago in (60, 30))
    firing = alert(starts_at=None, changed_at=early)
    resolved = alert(firing=False, starts_at=None, ends_at=late, changed_at=late)
    await _send(at, resolved)
    at.clock.move(120)
    await _send(at, firing)
    assert await _open(at) == []
    now = at.clock.now
    await _send(at, replace(firing, changed_at=now + timedelta(days=900)))
    assert await _open(at) == ["a"]
    at.clock.move(5)
    await _send(at, replace(resolved, ends_at=at.clock.now, changed_at=at.clock.now))
    assert await _open(at) == []


async def what_is_reported_as_fine_again_and_again_is_kept_once(
    at: StoreFixture,
) -> None:
    """A program that reports the state of each check all the time does not fill the database."""
    fine = alert(firing=False, starts_at=None, ends_at=None)
    for _ in range(5):
        at.clock.move(90)
        await _send(at, fine, replace(fine, ends_at=at.clock.now))
    assert await at.store.forget_alerts(-1) <= 1


async def a_component_of_several_alerts_holds_when_all_are_resolved(
    at: StoreFixture,
) -> None:
    await _send(at, alert(fingerprint="1"), alert(fingerprint="2"))
    await _send(at, alert(fingerprint="1", firing=False))
    assert await _open(at) == ["a"]
    await _send(at, alert(fingerprint="2", firing=False))
    assert await _open(at) == []


async def times_of_the_future_end_like_others(at: StoreFixture) -> None:
    future = at.clock.now + timedelta(days=30)
    await _send(at, alert(starts_at=future))
    await _send(at, alert(starts_at=future))
    assert await _open(at) == ["a"]
    resolved = alert(firing=False, starts_at=future, ends_at=future)
    await _send(at, replace(resolved, ends_at=future + timedelta(days=1)))
    assert await _open(at) == []
    assert len(await _tickets(at)) == 1


async def an_alert_without_a_start_is_the_one_that_fires(at: StoreFixture) -> None:
    await _send(at, alert(starts_at=None))
    await _send(at, alert(starts_at=None))
    assert len((await at.store.pushed_alerts("team")).alerts) == 1
    await _send(at, alert(firing=False, starts_at=None, ends_at=None))
    assert await _open(at) == []


async def a_held_ticket_stays(at: StoreFixture) -> None:
    await _send(at, alert())
    [ticket] = await _tickets(at)
    await at.store.hold(ticket.id, True, actor="ada")
    await _send(at, alert(firing=False))
    assert (await at.store.ticket(ticket.id)).status is TicketStatus.OPEN


async def an_overdue_heartbeat_resolves_nothing(at: StoreFixture) -> None:
    """A sender that does not hear of alerts any more reports them as resolved."""
    await _send(at, alert(), heartbeat=True, heartbeat_within=60.0)
    at.clock.move(61)
    await _send(at, alert(firing=False), heartbeat_within=60.0)
    assert await _open(at) == ["a"]
    pushed = await at.store.pushed_alerts("team")
    assert (pushed.alerts, pushed.heartbeat_age) == ((), 61.0)
    assert ("alert:Down", "a") in pushed.ticketed
    await _send(at, alert("b"), heartbeat=True, heartbeat_within=60.0)
    await _send(at, alert("b", firing=False), heartbeat_within=60.0)
    assert await _open(at) == ["a"], "the monitor resolves what was left"


async def a_doubted_resolution_counts_when_it_is_repeated(at: StoreFixture) -> None:
    """What was resolved while the heartbeat was overdue is doubted, and a report of firing after that is not late."""
    await _send(at, alert(), alert("b"), heartbeat=True, heartbeat_within=60.0)
    at.clock.move(61)
    gone = alert(firing=False), alert("b", firing=False)
    await _send(at, *gone, heartbeat_within=60.0)
    at.clock.move(1)
    doubted = await at.store.pushed_alerts("team")
    assert [one.component for one in doubted.doubted] == ["a", "b"]
    assert (doubted.alerts, doubted.doubted_for) == ((), 1.0)
    assert not any(one.firing for one in doubted.doubted)
    await _send(at, alert(), heartbeat=True, heartbeat_within=60.0)
    found = await at.store.pushed_alerts("team")
    assert [one.component for one in found.alerts] == ["a"], "it fires"
    assert [one.component for one in found.doubted] == ["b"]
    await _send(at, alert("b", firing=False), heartbeat_within=60.0)
    assert await _open(at) == ["a"]
    assert (await at.store.pushed_alerts("team")).doubted == ()


async def a_push_makes_the_monitor_read_again(at: StoreFixture) -> None:
    """A cycle that was computed before a push is refused; a push that changes no ticket refuses none."""
    watch = await at.store.watch("team")
    await _send(at, alert())
    await raises(StaleWatch, at.store.save_cycle("team", watch.revision, Changes()))
    watch = await at.store.watch("team")
    assert [one.key.component for one in watch.tickets] == ["a"]
    await _send(at, alert())
    await at.store.save_cycle("team", watch.revision, Changes())


async def what_fires_again_is_not_resolved_by_an_older_look(at: StoreFixture) -> None:
    """The alert was resolved while that counted for nothing, and fires again while the monitor is about to save."""
    await _send(at, alert())
    await _send(at, alert(firing=False), resolves=False)
    watch = await at.store.watch("team")
    gone = Changes(resolved=(watch.tickets[0].id,))
    await _send(at, alert(starts_at=ENDED), resolves=False)
    await raises(StaleWatch, at.store.save_cycle("team", watch.revision, gone))


async def what_has_a_ticket_gets_no_second_one(at: StoreFixture) -> None:
    """A push adds nothing to what a monitor opened."""
    polled = opening("a", subject="team", invariant="alert:Down")
    await at.cycle(Changes((polled,)), "team")
    await _send(at, alert())
    assert len(await _tickets(at)) == 1
    await _send(at, alert(firing=False))
    assert await _open(at) == []


async def pushes_join_the_incident_of_linked_subjects(at: StoreFixture) -> None:
    [other] = await at.open("db", subject="db", group_wait=10.0)
    await _send(at, alert(), linked=frozenset({"db"}))
    [ticket] = await _tickets(at)
    assert ticket.batch == other.batch


async def a_silence_records_and_opens_nothing(at: StoreFixture) -> None:
    await at.store.add_silence(
        [Matcher("instance", "=", "a")], author="ada", reason="work", seconds=600
    )
    await _send(at, alert(), alert("b"))
    await _send(at, alert("c", silenced_by="the sender's silence"))
    assert await _open(at) == ["b"]
    silent = await at.store.silenced("team")
    assert {(one.key.component, one.by) for one in silent} == {
        ("a", "silence 1"),
        ("c", "the sender's silence"),
    }
    await _send(at, alert())
    assert len(await at.store.silenced("team")) == 2


async def what_opens_after_a_silence_is_not_silent(at: StoreFixture) -> None:
    """The silence was ended before its time: an agent gets the ticket at once, and its time to detect does not count."""
    made = await at.store.add_silence(
        [Matcher("instance", "=", "a")], author="ada", reason="work", seconds=600
    )
    await _send(at, alert())
    await at.store.expire_silence(made.id, "ada")
    at.clock.move(60)
    await _send(at, alert())
    [ticket] = await _tickets(at)
    assert ticket.silenced_by is None
    [past] = await at.store.silenced(within=3600)
    assert (past.ticket_id, past.ended_at) == (ticket.id, ticket.opened_at)
    assert [row.action for row in await at.store.history(ticket.id)] == [
        "open",
        "unsilence",
    ]
    assert (await at.store.stats(3600)).to_detect is None


async def a_storm_opens_the_most_urgent(at: StoreFixture) -> None:
    info = [alert(f"i{number}", severity=Severity.INFO) for number in range(5)]
    await _send(at, *info, alert("z"), most_tickets=3)
    assert sorted(await _open(at)) == ["i0", "i1", "z"]
    assert len((await at.store.pushed_alerts("team")).alerts) == 6


async def alerts_that_were_left_out_are_known_by_group(at: StoreFixture) -> None:
    await _send(at, alert(), group="g", truncated=7)
    await _send(at, alert("b"), group="h", truncated=2)
    at.clock.move(5)
    pushed = await at.store.pushed_alerts("team")
    assert pushed.truncated == {"g": (7, 5.0), "h": (2, 5.0)}
    await _send(at, alert(), group="g")
    assert list((await at.store.pushed_alerts("team")).truncated) == ["h"]
    at.clock.move(25 * 3600)
    assert (await at.store.pushed_alerts("team")).truncated == {}


async def what_was_resolved_long_ago_is_forgotten(at: StoreFixture) -> None:
    await _send(at, alert(), alert("b"))
    await _send(at, alert(firing=False))
    at.clock.move(3600)
    assert await at.store.forget_alerts(7200) == 0
    assert await at.store.forget_alerts(60) == 1
    [left] = (await at.store.pushed_alerts("team")).alerts
    assert left.component == "b"


CHECKS: tuple[Check, ...] = (
    a_pushed_alert_is_one_ticket_until_it_is_resolved,
    a_late_report_of_firing_opens_nothing,
    a_late_resolution_leaves_what_began_after_it,
    the_sender_s_own_times_decide,
    they_decide_without_a_start_too,
    what_is_reported_as_fine_again_and_again_is_kept_once,
    a_component_of_several_alerts_holds_when_all_are_resolved,
    times_of_the_future_end_like_others,
    an_alert_without_a_start_is_the_one_that_fires,
    a_held_ticket_stays,
    an_overdue_heartbeat_resolves_nothing,
    a_doubted_resolution_counts_when_it_is_repeated,
    a_push_makes_the_monitor_read_again,
    what_fires_again_is_not_resolved_by_an_older_look,
    what_has_a_ticket_gets_no_second_one,
    pushes_join_the_incident_of_linked_subjects,
    a_silence_records_and_opens_nothing,
    what_opens_after_a_silence_is_not_silent,
    a_storm_opens_the_most_urgent,
    alerts_that_were_left_out_are_known_by_group,
    what_was_resolved_long_ago_is_forgotten,
)
