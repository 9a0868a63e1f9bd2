"""The check of replication, on both of its sides: this server's standbys, and this server as a standby.

A side that is cut off vanishes from the server's views. So the standbys that were connected are kept in
the observation's state: one without a row is unknown, and broken once it has been away for longer
than the limit.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from midwatch.model import Signal
from midwatch.subjects.findings import PartlyUnsupported, at_least
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import QueryFailed
from midwatch.subjects.postgres.observation import ObservationContext
from midwatch.subjects.rows import Row, number, text
from midwatch.units import format_count, format_duration, format_size

INVARIANT = "replication_lag"
OWN = "this server"
MOST_KNOWN = 200  # standbys that are remembered

# A connection that copies one table for a new subscription, and ends then.
_SYNC_WORKER = re.compile(r"pg_\d+_sync_\d+_")
# A receiver with a connection hears of the primary this often even if nothing happens (half of the
# default wal_sender_timeout is 30 s).
_SILENCE = 60.0
# A standby reports every 10 s (wal_receiver_status_interval): a connection that did not for longer than the
# other one of the same standby is a dead one that was not noticed yet.
_LINGERS = 15.0


@dataclass(frozen=True, slots=True)
class Standby:
    """A standby that was connected, as it is kept between observations.

    `count` connections have this name and client. `lsn` is the last position that it reported, and `since`
    the time (epoch seconds) from which on it has not moved though there is more; `flushed` is up to where it
    has the log itself; `away` is the time from which on connections are missing.
    """

    name: str
    client: str
    slot: str = ""
    lasting: bool = True
    count: int = 1
    lsn: str = ""
    flushed: str = ""
    since: float | None = None
    away: float | None = None

    @property
    def component(self) -> str:
        return f"{self.name} {self.client}"

    @property
    def attributes(self) -> dict[str, object]:
        return {"standby": self.name, "client": self.client, "slot": self.slot}

    @classmethod
    def of(cls, raw: Any) -> Standby | None:
        try:
            return cls(**raw)
        except TypeError:
            return None


async def check_lag(context: ObservationContext) -> list[Signal]:
    rows = context.counted(
        INVARIANT,
        await context.connection.rows(sql.STANDBYS),
        lambda row: _standby(row).attributes,
    )
    recovery = (await context.connection.rows(sql.RECOVERY))[0]
    standbys = await _known_standbys(context, rows, recovery)
    signals = [
        _standby_signal(row, standbys.get(_standby(row).component), context)
        for row in rows
    ]
    for standby in standbys.values():
        if standby.away is not None:
            signals.append(await _away_signal(standby, recovery, context))
    if not recovery["standby"]:
        context.state.pop("recovery", None)
        return signals
    if context.ignores(INVARIANT, {"standby": OWN, "client": "", "slot": ""}):
        return signals
    own = OwnReplay.of(context.previous.get("recovery")).after(recovery, context.at)
    context.state["recovery"] = asdict(own)
    if not own.streams and not recovery["has_primary"]:
        raise PartlyUnsupported(
            "this standby replays from an archive: how far its primary is cannot be seen",
            hint=f"watch its primary, or leave it out: ignore: [{{standby: {OWN}}}]",
            signals=signals,
        )
    return [*signals, _own_signal(recovery, own, context)]


# ------------------------------------------------------------------ the standbys of this server


def _standby(row: Row) -> Standby:
    name, slot = text(row["application_name"], 64) or "unnamed", text(row["slot"], 64)
    return Standby(
        name,
        text(row["client"], 64),
        slot,
        # A consumer of changes may come and go, and its slot is watched; a subscription should not.
        lasting=not row["logical"] or slot == name,
        lsn=text(row["lsn"], 40),
        flushed=text(row["flushed"], 40),
    )


def _is_standby(row: Row) -> bool:
    """Return whether the row is of a standby or subscriber that should stay."""
    return (
        row["state"] in ("streaming", "catchup")
        and row["replays"]
        and not row["temporary"]
        and not _SYNC_WORKER.match(str(row["application_name"]))
    )


async def _known_standbys(
    context: ObservationContext, rows: Iterable[Row], recovery: Row
) -> dict[str, Standby]:
    """Return the standbys that are or were connected, by component, and keep them in the state."""
    raw = context.previous.get("standbys")
    before: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
    written = before.get("known")
    known = {
        one.component: one
        for one in map(Standby.of, written if isinstance(written, list) else ())
        if one is not None
    }
    present = _present(rows)
    new_names = {
        _standby(group[0]).name for name, group in present.items() if name not in known
    }
    timeline = text(recovery["timeline"], 8)
    moved = before.get("timeline") not in (None, "", timeline)
    away = [
        replace(one, away=context.at if one.away is None else one.away)
        for name, one in known.items()
        # It came back with another address, or follows another server since a failover.
        if name not in present
        and one.name not in new_names
        and not (moved and one.away is None)
        and not context.ignores(INVARIANT, one.attributes)
    ]
    if any(one.slot for one in away):  # whose slot was dropped was removed on purpose
        found = await context.connection.rows(sql.slots(context.connection.version))
        slots = {"", *(text(row["slot_name"], 64) for row in found)}
        away = [one for one in away if one.slot in slots]
    result = {
        name: _updated(known.get(name), group, context.at)
        for name, group in present.items()
    } | {one.component: one for one in away}
    result = dict(list(result.items())[:MOST_KNOWN])
    context.state["standbys"] = {
        "timeline": timeline,
        "known": [asdict(one) for one in result.values()],
    }
    return result


def _present(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the connected standbys by component, without a connection that was replaced by a newer one."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in filter(_is_standby, rows):
        groups[_standby(row).component].append(row)
    for name, group in groups.items():
        newest = max(number(row["replied"]) for row in group)
        groups[name] = [
            row for row in group if newest - number(row["replied"]) < _LINGERS
        ]
    return groups


def _updated(old: Standby | None, rows: list[Row], at: float) -> Standby:
    """Return a standby with its current rows, the furthest behind first."""
    row = rows[0]
    now = _standby(row)
    if old is not None and len(rows) < old.count:
        return replace(old, since=None, away=at if old.away is None else old.away)
    since: float | None = None
    if number(row["behind"]):
        since = at
        if old is not None and old.lsn == now.lsn:
            # Back, but not a step further: as if it had been away all the time.
            since = min(at if t is None else t for t in (old.since, old.away))
    return replace(now, count=len(rows), since=since)


def _standby_signal(
    row: Row, known: Standby | None, context: ObservationContext
) -> Signal:
    standby = _standby(row)
    behind: float | None = row["behind"]
    seconds: float | None = None
    if behind is not None and behind <= 0:
        seconds = 0.0
    elif row["replay_lag"] is not None:
        seconds = number(row["replay_lag"])
    signal = Signal(
        INVARIANT,
        standby.component,
        f"standby {standby.name} at {standby.client} ({text(row['state'], 40)}) is "
        f"{_duration(seconds)} and {format_size(number(behind))} behind",
        seconds,
        facts={
            "standby": standby.name,
            "client": standby.client,
            "state": text(row["state"], 40),
            "lag_seconds": None if seconds is None else round(seconds, 1),
            "lag_bytes": int(number(behind)),
        },
    )
    if known is not None and known.since is not None:
        signal = _stuck(signal, context.at - known.since, context)
    return _too_far(signal, number(behind), context)


def _duration(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else format_duration(seconds)


def _stuck(signal: Signal, stuck: float, context: ObservationContext) -> Signal:
    """Return the signal of a standby that has not moved for `stuck` seconds though there is more.

    That is its lag at least, also where it sends no message any more or none with a time.
    """
    if stuck <= (signal.value or 0.0):
        return signal
    message = f"{signal.message}; it has not moved for {format_duration(stuck)}"
    signal = replace(signal, message=message, facts={**signal.facts, "stuck": stuck})
    if signal.value is None:
        return at_least(replace(signal, value=stuck), context.limit(INVARIANT))
    return replace(signal, value=stuck)


def _too_far(signal: Signal, behind: float, context: ObservationContext) -> Signal:
    far = behind > context.settings.replication_lag_bytes
    return replace(signal, holds=False) if far else signal


async def _away_signal(
    standby: Standby, recovery: Row, context: ObservationContext
) -> Signal:
    """Return the signal of a standby without a connection: unknown until it is away for the limit."""
    away = context.at - (context.at if standby.away is None else standby.away)
    behind = float(max(0, _position(recovery["lsn"]) - _position(standby.lsn)))
    missing = (
        f"{standby.name} at {standby.client} has no connection"
        if standby.count == 1
        else f"one of {format_count(standby.count, 'standby')} {standby.name} at "
        f"{standby.client} has no connection"
    )
    message = f"standby {missing} for {format_duration(away)}"
    gone = not await _is_kept(standby, recovery, context)
    if gone:
        message += (
            "; the write-ahead log that it needs is gone: rebuild it, or let it restore "
            "from the archive"
        )
    how = "drop its slot" if standby.slot else f"ignore standby {standby.name}"
    message += (
        f"; {format_size(behind)} behind by its last report (if it was removed: {how})"
    )
    signal = Signal(
        INVARIANT,
        standby.component,
        message,
        away,
        hold_for=0.0 if gone or away > context.limit(INVARIANT) else None,
        facts={
            "standby": standby.name,
            "client": standby.client,
            "state": "disconnected",
            "slot": standby.slot,
            "lag_seconds": round(away, 1),
            "lag_bytes": int(behind),
            "wal_gone": gone,
        },
    )
    if standby.lasting and (gone or behind > context.settings.replication_lag_bytes):
        return replace(signal, holds=False)
    return at_least(signal, context.limit(INVARIANT) if standby.lasting else away)


async def _is_kept(
    standby: Standby, recovery: Row, context: ObservationContext
) -> bool:
    """Return whether this server still has the log that the standby needs; true where that is unknown."""
    needed = standby.flushed or standby.lsn
    if recovery["standby"] or not needed or standby.count > 1:
        return True
    try:
        rows = await context.connection.rows(sql.WAL_KEPT, {"lsn": needed})
    except QueryFailed:
        return True
    return rows[0]["kept"] is not False


def _position(lsn: object) -> int:
    """Return a position of the write-ahead log (`16/B374D848`) as a number; 0 for none."""
    high, _, low = str(lsn or "0/0").partition("/")
    try:
        return (int(high, 16) << 32) + int(low, 16)
    except ValueError:
        return 0


# ------------------------------------------------------------------ this server as a standby


@dataclass(frozen=True, slots=True)
class OwnReplay:
    """The replay of this standby between observations. Times are in epoch seconds.

    `streams` tells whether it ever had a connection to its primary, `cut` since when it has none, `pid` is
    that of the receiver. `lsn` is
    what it has replayed, `since` the time from which on that has not moved though there is more, and
    `caught_up` the last time when there was no more.
    """

    streams: bool = False
    cut: float | None = None
    pid: int = 0
    lsn: str = ""
    since: float | None = None
    caught_up: float | None = None

    @classmethod
    def of(cls, raw: Any) -> OwnReplay:
        try:
            return cls(**raw)
        except TypeError:
            return cls()

    def after(self, row: Row, at: float) -> OwnReplay:
        """Return the state after an observation at `at`."""
        streams = row["receiver"] == "streaming"
        pid = int(row["receiver_pid"] or 0)
        # A receiver that is refused starts again every few seconds: connected is only the one that stays.
        stays = streams and (self.cut is None or pid == self.pid)
        cut = None if stays else self.cut
        if not streams and cut is None:  # as late as its last message, if that is known
            age = row["message_age"]
            cut = at if age is None else at - number(age)
        lsn = text(row["replay_lsn"], 40)
        more = number(row["behind"]) > 0
        since = None
        if more:
            since = self.since if self.lsn == lsn and self.since is not None else at
        caught_up = self.caught_up if more else at
        return OwnReplay(self.streams or stays, cut, pid, lsn, since, caught_up)


def _own_signal(row: Row, own: OwnReplay, context: ObservationContext) -> Signal:
    behind = number(row["behind"])
    limit = context.limit(INVARIANT)
    age = number(row["message_age"])
    if own.cut is not None:
        cut = context.at - own.cut
        receiver = text(row["receiver"], 40) or "none"
        message = (
            f"this standby has no connection to its primary for {format_duration(cut)} "
            f"(receiver: {receiver}); its log tells why: after `requested WAL segment … has "
            "already been removed` rebuild it, or let it restore from the archive"
        )
        signal = _own(message, cut, behind)
        facts = {**signal.facts, "state": "disconnected", "receiver": receiver}
        return at_least(replace(signal, hold_for=0.0, facts=facts), limit)
    if age > max(_SILENCE, number(row["patience"]), limit):
        message = (
            f"this standby has heard nothing of its primary for {format_duration(age)}"
        )
        return _own(message, age, behind)
    delay = number(row["delay"])  # a standby that is late on purpose
    seconds: float | None = 0.0
    if behind:
        seconds = None if row["replayed"] is None else number(row["replayed"])
        if seconds is not None and own.caught_up is not None:
            # After a quiet time the last transaction is old, but the standby is not that late.
            seconds = min(seconds, context.at - own.caught_up)
        if seconds is not None:
            seconds = max(0.0, seconds - delay)
    paused = "; its replay is paused" if row["paused"] else ""
    signal = _own(
        f"this standby is {_duration(seconds)} and {format_size(behind)} behind what it has "
        f"received{paused}",
        seconds,
        behind,
    )
    if own.since is not None:
        signal = _stuck(signal, context.at - own.since - delay, context)
    return signal if delay else _too_far(signal, behind, context)


def _own(message: str, seconds: float | None, behind: float) -> Signal:
    return Signal(
        INVARIANT,
        OWN,
        message,
        seconds,
        facts={
            "standby": OWN,
            "lag_seconds": None if seconds is None else round(seconds, 1),
            "lag_bytes": int(behind),
        },
    )
