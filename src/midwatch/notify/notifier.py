"""The daemon that tells people: it follows the changes of tickets and sends what the routes ask for.

Any number of them share one store. Each target has a lane of its own: what is slow or dead delays nothing but itself.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from midwatch.errors import MidwatchError, SettingsError, TemporaryError
from midwatch.lifecycle import Backoff, Clock, StopEvent, SystemClock, cancel, first
from midwatch.logs import Log, quiet_log
from midwatch.model import Diagnosis, Ticket
from midwatch.notification_settings import NotificationSettings
from midwatch.notify.callbacks import Callbacks
from midwatch.notify.incident import IncidentViews
from midwatch.notify.message import Message, Writer
from midwatch.notify.routes import DIGEST, EVENT_OF, Routes, plan
from midwatch.notify.sender import Sender, SendFailed, SendRefused
from midwatch.redaction import Redactor
from midwatch.store.deliveries import CALLBACK
from midwatch.store.on_call import (
    Delivery,
    DeliveryClaim,
    DeliveryEnd,
    NewDelivery,
)
from midwatch.store.protocol import Store
from midwatch.text import one_line

CURSOR = "notifier"
"""Its name as a reader of the feed."""
_PAGE = 500
_SLACK = 30.0
"""Seconds that a claim outlasts the longest request."""
_REQUESTS = 3
"""The most requests that one message takes."""
_SILENT = 60.0
"""Seconds until it is seen again whether a silence holds."""
_PRUNE = 3600.0
_GRACE = 2.0
"""Seconds that a request in flight gets after a stop."""


class Notifier:
    """Plans and sends deliveries until it is stopped.

    Args:
        store: The store.
        routes: The routes, with the settings of notifications.
        senders: What sends to each target, by its name.
        redactor: Removes secrets from all that is sent.
        base_url: Where people reach the server; None for messages without links.
        clock: The source of time; tests inject one.
        log: Where events are logged; the default drops them.
        random: Returns a number from 0 to 1 for the jitter of a back-off.
        name: Its name in the history of tickets.
    """

    def __init__(
        self,
        store: Store,
        routes: Routes,
        senders: Mapping[str, Sender],
        *,
        redactor: Redactor | None = None,
        base_url: str | None = None,
        clock: Clock | None = None,
        log: Log | None = None,
        random: Callable[[], float] = random.random,
        name: str = "notifier",
    ) -> None:
        self.store = store
        self.routes = routes
        self.settings: NotificationSettings = routes.settings
        self.results: Counter[tuple[str, str]] = Counter()
        self.failing: dict[str, str] = {}
        self.name = name
        self._senders = dict(senders)
        self._redactor = redactor or Redactor()
        self._views = IncidentViews(self._redactor, base_url)
        self._clock = clock or SystemClock()
        self._log = log or quiet_log()
        self._callbacks = Callbacks(store, self.settings, self._redactor, self._clock)
        self._writer = Writer(self.settings.templates, self._log)
        self._random = random
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        store.on_change(self._changed.set)

    @property
    def targets(self) -> list[str]:
        """The names of the targets, as metrics and logs have them."""
        callbacks = [CALLBACK] if self.settings.callback_hosts else []
        return [*self._senders, *callbacks]

    async def check(self) -> None:
        """Raise SettingsError for a target that cannot be used, and for a wrong template."""
        self._writer.check()
        for sender in self._senders.values():
            with suppress(TemporaryError):
                await sender.limits()

    async def run(self, stop: StopEvent) -> None:
        """Follow and send until `stop` is set. Errors of targets and of the store are logged, never raised."""
        backoff, failing, pruned = (
            Backoff(self.settings.poll_interval, 30.0),
            False,
            0.0,
        )
        try:
            while not stop:
                self._changed.clear()
                wait = self.settings.poll_interval
                try:
                    await self.follow()
                    await self._dispatch()
                    if self._clock.monotonic() - pruned > _PRUNE:
                        keep_for = self.settings.keep_for
                        if not await self.store.prune_deliveries(keep_for):
                            pruned = self._clock.monotonic()
                    failing = False
                    backoff.reset()
                except MidwatchError as error:
                    if not failing:
                        self._log.warning("notifications wait", error=error.one_line())
                    failing, wait = True, backoff.next()
                except Exception:  # a bug here must not end monitor and agent
                    self._log.exception("notifications failed")
                    wait = backoff.next()
                await first(self._clock.sleep(wait), stop.wait(), self._changed.wait())
        finally:
            self._stopping = True
            await self._end()

    async def _end(self) -> None:
        lanes = list(self._lanes.values())
        if lanes:
            await asyncio.wait(lanes, timeout=_GRACE)
        await cancel(*lanes)
        for sender in self._senders.values():
            await sender.close()

    # -------------------------------------------------- following

    async def follow(self) -> int:
        """Plan deliveries for all changes up to now. Return how many changes were read.

        Raises MidwatchError if the store cannot be read or written.
        """
        read = 0
        place = await self.store.cursor(CURSOR)
        if place is None:  # what happened before it was set up is sent to no one
            last = await self.store.last_cursor()
            await self.store.save_deliveries(CURSOR, None, last, ())
            return 0
        while changes := await self.store.changes(place, _PAGE):
            ids = {one.ticket_id for one in changes if one.action in EVENT_OF}
            tickets = await self.store.tickets_by_id(ids)
            told = await self.store.told(ids)
            new = plan(changes, tickets, told, self.routes, self._clock.now())
            last = changes[-1].cursor
            if not await self.store.save_deliveries(CURSOR, place, last, new):
                return read  # another notifier was faster
            read += len(changes)
            self._log_planned(new)
            place = last
        return read

    def _log_planned(self, new: list[NewDelivery]) -> None:
        for one in new:
            self._log.info(
                "notification planned",
                event_name=one.event,
                ticket=one.ticket_id,
                target=one.target,
                route=one.route,
            )

    # -------------------------------------------------- sending

    async def _dispatch(self) -> None:
        """Give each target that something is due for a lane, unless it has one."""
        for name, lane in list(self._lanes.items()):
            if lane.done():
                del self._lanes[name]
        for target in await self.store.targets_due():
            if target not in self._lanes:
                task = asyncio.create_task(self._lane(target), name=f"notify {target}")
                self._lanes[target] = task
        # While a target fails, its lane waits. Each callback may be a target of its own.
        for target in self._backoffs.keys() - self._lanes:
            del self._backoffs[target]

    async def _lane(self, target: str) -> None:
        """Send what is due for a target, one thing after another, until nothing is or it fails."""
        backoff = self._backoffs.setdefault(
            target, Backoff(self.settings.backoff, self.settings.backoff_max)
        )
        try:
            while not self._stopping:
                pause = await self.deliver(target, backoff)
                if pause is None:
                    return
                if pause:
                    await self._clock.sleep(pause)
                    return
        except MidwatchError as error:
            self._log.warning(
                "notifications wait", target=target_name(target), error=error.one_line()
            )
        except Exception:  # a bug here must not end the other lanes
            self._log.exception("notifications failed", target=target_name(target))
            await self._clock.sleep(backoff.next())

    async def deliver(self, target: str, backoff: Backoff) -> float | None:
        """Send what waits longest for a target.

        Args:
            target: Its name.
            backoff: Gives the waits after failures.

        Returns:
            Seconds to wait before the next; None if nothing is due.
        """
        lease = _REQUESTS * self.settings.timeout + _SLACK
        claim = await self.store.claim_delivery(target, lease=lease)
        if claim is None:
            return None
        end, pause = await self._attempt(claim, backoff)
        if not await self.store.finish_delivery(claim, end):
            self._log.warning(
                "a notification took longer than its lease", target=target_name(target)
            )
        if end.error is not None and not end.given_up:
            dropped = await self.store.give_up_deliveries(
                target, self.settings.give_up_after, end.error, self.name
            )
            self._count(target, "given_up", dropped)
        return pause

    async def _attempt(
        self, claim: DeliveryClaim, backoff: Backoff
    ) -> tuple[DeliveryEnd, float]:
        """Send a claim. Return how that ended, and the seconds to wait."""
        wanted, end = _sorted_out(claim)
        ids = tuple(one.id for one in wanted)
        self._count(claim.target, "dropped", sum(map(len, end.dropped.values())))
        if not wanted:
            return end, 0.0
        try:
            reference = await self._send(claim, wanted)
        except SendRefused as error:
            text = self._failed(claim, error)
            self._count(claim.target, "given_up", len(ids))
            return replace(end, error=text, given_up=True, actor=self.name), 0.0
        except (SendFailed, SettingsError) as error:
            text = self._failed(claim, error)
            self._count(claim.target, "failed")
            wait = self._wait(getattr(error, "retry_after", None), backoff)
            return replace(end, error=text, retry_in=wait), wait
        backoff.reset()
        name = target_name(claim.target)
        if self.failing.pop(name, None):
            self._log.info("notifications are sent again", target=name)
        if reference is None:
            self._count(claim.target, "dropped", len(ids))
            return replace(end, dropped={**end.dropped, "nothing new": ids}), 0.0
        self._count(claim.target, "sent", len(ids))
        self._log.info(
            "notification sent",
            target=name,
            thread=claim.thread,
            events=sorted({one.event for one in wanted}),
        )
        return replace(end, sent=ids, reference=reference), 0.0

    async def _send(
        self, claim: DeliveryClaim, wanted: list[Delivery]
    ) -> Mapping[str, object] | None:
        """Send what is wanted of a claim. Raises SendFailed, SendRefused, SettingsError."""
        if wanted[0].route == CALLBACK:
            await self._callbacks.send(wanted[0], claim.tickets[0])
            return {}
        sender = self._senders.get(claim.target)
        if sender is None:
            raise SendRefused(f"there is no target {claim.target} in the settings")
        message = await self._message(claim, wanted, sender)
        digest = claim.thread.startswith(DIGEST)
        return await sender.send(message, {} if digest else claim.reference)

    async def _message(
        self, claim: DeliveryClaim, wanted: list[Delivery], sender: Sender
    ) -> Message:
        told = {one.ticket_id for one in wanted}
        digest = claim.thread.startswith(DIGEST)
        shown = [
            ticket
            for ticket in claim.tickets
            if ticket.id in told or not (digest or ticket.silenced_at(claim.at))
        ]
        view = self._views.view(
            claim.thread, shown, wanted, await self._diagnoses(shown), claim.at
        )
        key = f"midwatch-{wanted[0].dedup_key}"
        message = self._writer.write(key, view, await sender.limits(), digest=digest)
        return replace(message, again=any(one.attempts > 1 for one in wanted))

    async def _diagnoses(self, tickets: list[Ticket]) -> dict[int, Diagnosis]:
        ids = dict.fromkeys(one.diagnosis_id for one in tickets if one.diagnosis_id)
        return {id_: await self.store.diagnosis(id_) for id_ in list(ids)[:3]}

    def _wait(self, least: float | None, backoff: Backoff) -> float:
        """Return the seconds until the next attempt: with jitter, and no less than the service asks for."""
        wait = backoff.next() * (0.75 + 0.5 * self._random())
        return max(wait, least or 0.0)

    def _failed(self, claim: DeliveryClaim, error: MidwatchError) -> str:
        """Log why a claim was not sent, and return it in one line without secrets."""
        text = one_line(self._redactor.text(error.one_line()), 300)
        name = target_name(claim.target)
        self.failing[name] = text
        self._log.warning(
            "notification not sent",
            target=name,
            thread=claim.thread,
            attempt=max(one.attempts for one in claim.deliveries),
            error=text,
        )
        return text

    def _count(self, target: str, result: str, number: int = 1) -> None:
        self.results[target_name(target), result] += number


def target_name(target: str) -> str:
    """Return what a target is called in logs and metrics: a callback is not shown with its whole address."""
    return CALLBACK if "://" in target else target


def _sorted_out(claim: DeliveryClaim) -> tuple[list[Delivery], DeliveryEnd]:
    """Return what of a claim is to be sent, and how the rest ends: it is not needed any more, or silent now."""
    tickets = {ticket.id: ticket for ticket in claim.tickets}
    dropped: dict[str, list[int]] = {}
    postponed: list[int] = []
    wanted: list[Delivery] = []
    for one in claim.deliveries:
        ticket = tickets.get(one.ticket_id or 0)
        why = "no ticket" if ticket is None else _outdated(one, ticket)
        if ticket is None or why:
            dropped.setdefault(why, []).append(one.id)
        elif one.route != CALLBACK and ticket.silenced_at(claim.at):
            postponed.append(one.id)
        else:
            wanted.append(one)
    end = DeliveryEnd(dropped=dropped, postponed=tuple(postponed), postpone_for=_SILENT)
    return wanted, end


def _outdated(delivery: Delivery, ticket: Ticket) -> str:
    """Return why what was planned for later need not be sent any more; empty if it has to be."""
    if delivery.event == "escalated":
        if ticket.resolved:
            return "resolved in time"
        return "acknowledged in time" if ticket.acknowledged_at else ""
    if delivery.event == "held_too_long":
        return "" if ticket.held and not ticket.resolved else "not held any more"
    return ""
