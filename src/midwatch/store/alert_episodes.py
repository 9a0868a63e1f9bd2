"""What a report of a sender changes in the episodes of an alert (pure).

An episode is one time that an alert fired, from its start to its end. Reports of one alert come late, twice and in any order:

- A report of what is known already changes nothing.
- A resolution ends every episode of the alert that began before its end, and none that began later.
- Of an alert that fires, one episode is open: a later start ends the one before it, an earlier start is the same one.
- What is reported as firing just after it was reported as resolved is late, and fires no more. Where the sender says when each
  state began, that decides; else it is late within `LATE` of the resolution, and has begun to fire again after that.
- A resolution of what was never seen is kept, so that its report of firing is late. One without a start is kept once.
- While the heartbeat of the sender is overdue, what it reports as resolved is doubted: a report of firing is never late after that, and
  the same resolution counts once the heartbeat is back.
- A time that is more than `SKEW` in the future is not known: clocks differ, and some senders have no good one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from midwatch.model import Key
from midwatch.received import KeptAlert

UNKNOWN_START = datetime(1970, 1, 1, tzinfo=UTC)
"""The start of the last resolution of an alert that did not say when the alert began."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One time that an alert fired, and when it was last reported.

    `doubted`: it was reported as resolved while the heartbeat of its sender was overdue.
    """

    alert: KeptAlert
    starts_at: datetime
    received_at: datetime
    doubted: bool = False


class Episodes:
    """The episodes of some alerts of one subject, and what reports change in them.

    Attributes:
        changed: Episodes to save.
        began: Alerts that fire, as last reported.
        begun_keys: Invariant and component of those that did not fire before.
    """

    LATE: ClassVar[timedelta] = timedelta(seconds=60)
    SKEW: ClassVar[timedelta] = timedelta(minutes=5)

    def __init__(
        self, now: datetime, known: Iterable[Episode], *, alive: bool = True
    ) -> None:
        self._alive = alive
        # As exact as a database stores it, or a start would not be found again.
        self._now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._of: dict[str, dict[datetime, Episode]] = {}
        for episode in known:
            own = self._of.setdefault(episode.alert.fingerprint, {})
            own[episode.starts_at] = episode
        self._changed: dict[tuple[str, datetime], Episode] = {}
        self._ended: dict[tuple[str, str], None] = {}
        self.begun_keys: set[tuple[str, str]] = set()

    @property
    def changed(self) -> list[Episode]:
        return list(self._changed.values())

    @property
    def began(self) -> list[KeptAlert]:
        return [one.alert for one in self._changed.values() if one.alert.firing]

    def ended_keys(self, subject: str) -> list[Key]:
        """Return the keys of which an episode ended."""
        return [Key(subject, *names) for names in self._ended]

    def apply(self, alert: KeptAlert) -> None:
        """Take the next report."""
        alert = self._without_future(alert)
        own = self._of.setdefault(alert.fingerprint, {})
        if alert.firing:
            self._fire(alert, own)
        else:
            self._resolve(alert, own)

    def _without_future(self, alert: KeptAlert) -> KeptAlert:
        latest = self._now + self.SKEW
        if alert.starts_at is not None and alert.starts_at > latest:
            alert = replace(alert, starts_at=None)
        if alert.ends_at is not None and alert.ends_at > latest:
            alert = replace(alert, ends_at=None)
        if alert.changed_at is not None and alert.changed_at > latest:
            alert = replace(alert, changed_at=None)
        return alert

    def _fire(self, alert: KeptAlert, own: dict[datetime, Episode]) -> None:
        open_ = [one for one in own.values() if one.alert.firing]
        latest = max((one.starts_at for one in open_), default=None)
        start = alert.starts_at or latest or alert.changed_at or self._now
        if any(self._is_late(alert, start, one) for one in own.values()):
            return
        if latest is None:
            self.begun_keys.add((alert.invariant, alert.component))
        elif start <= latest:
            start = latest
        for one in open_:
            if one.starts_at < start:
                self._end(one, own, start, alert.changed_at)
        self._put(Episode(alert, start, self._now), own)

    def _is_late(self, alert: KeptAlert, start: datetime, known: Episode) -> bool:
        """Return whether an alert reported the end of an episode that `known` reports as ended."""
        ended = known.alert
        if ended.firing or known.doubted:
            return False
        if known.starts_at != start and (
            ended.ends_at is None or start >= ended.ends_at
        ):
            return False
        changed, known_at = alert.changed_at, ended.changed_at
        if changed is not None and known_at is not None and changed != known_at:
            return changed < known_at
        return self._now - known.received_at < self.LATE

    def _resolve(self, alert: KeptAlert, own: dict[datetime, Episode]) -> None:
        end = alert.ends_at or self._now
        until = max(end, alert.starts_at or self._now + self.SKEW)
        for one in list(own.values()):
            if (one.alert.firing or one.doubted) and one.starts_at <= until:
                if not _is_older(alert, one.alert):
                    self._end(one, own, end, alert.changed_at)
        start = alert.starts_at or UNKNOWN_START
        if start not in own or start == UNKNOWN_START:
            ended = replace(alert, ends_at=end)
            self._put(Episode(ended, start, self._now), own)

    def _end(
        self,
        episode: Episode,
        own: dict[datetime, Episode],
        at: datetime,
        changed_at: datetime | None,
    ) -> None:
        alert = replace(episode.alert, firing=False, ends_at=at, changed_at=changed_at)
        self._ended[alert.invariant, alert.component] = None
        ended = Episode(alert, episode.starts_at, self._now, doubted=not self._alive)
        self._put(ended, own)

    def _put(self, episode: Episode, own: dict[datetime, Episode]) -> None:
        own[episode.starts_at] = episode
        self._changed[episode.alert.fingerprint, episode.starts_at] = episode


def _is_older(resolution: KeptAlert, firing: KeptAlert) -> bool:
    """Return whether the sender says that an alert fired again after this resolution."""
    if resolution.changed_at is None or firing.changed_at is None:
        return False
    return resolution.changed_at < firing.changed_at
