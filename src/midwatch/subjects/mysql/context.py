"""What the checks of one observation share: its snapshot, the state before, and counters within the window. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midwatch.model import Invariant, Json
from midwatch.subjects.findings import EnabledInvariants, NotObservable
from midwatch.subjects.mysql.settings import MysqlSettings
from midwatch.subjects.mysql.snapshot import Snapshot
from midwatch.subjects.series import Series, add_step, read_series, series_until

SERVER = "server"


@dataclass(slots=True)
class MysqlContext(EnabledInvariants):
    """What the checks share.

    `at` is the time in epoch seconds. `previous` is the state of the last observation, `state` the one that this
    observation leaves for the next. `invariants` are the enabled ones by id. `ignored` counts what their `ignore` left out.
    """

    seen: Snapshot
    settings: MysqlSettings
    at: float
    previous: Json
    state: Json
    invariants: Mapping[str, Invariant] = field(default_factory=dict)
    ignored: dict[str, Counter[str]] = field(default_factory=dict)

    def growth(self, **values: float) -> dict[str, float] | None:
        """Return by how much counters grew within event_window; None where there is nothing to compare with yet.

        A counter that is lower than before was reset, by a restart or FLUSH STATUS, and counts from 0 on.
        """
        before = self.previous.get("counters")
        before = before if isinstance(before, dict) else {}
        kept: dict[str, Any] = self.state.setdefault("counters", {})
        grown: dict[str, float] = {}
        for name, value in values.items():
            old = series_until(read_series(before.get(name)), self.at)
            if old and value < old[-1][1]:
                old = [[at, counted - old[-1][1]] for at, counted in old]
            series: Series = add_step(old, self.at, value, self.settings.event_window)
            kept[name] = series
            if old:
                grown[name] = value - series[0][1]
        return grown if len(grown) == len(values) else None

    def growth_or_wait(self, **values: float) -> dict[str, float]:
        """Return `growth`. Raises NotObservable on the first observation."""
        grown = self.growth(**values)
        if grown is None:
            raise NotObservable(
                "the first observation: counters are compared from the next on"
            )
        return grown

    @property
    def within(self) -> str:
        """Return `within 5m` or `since the last observation`."""
        from midwatch.units import format_duration

        window = self.settings.event_window
        return (
            f"within {format_duration(window)}"
            if window
            else "since the last observation"
        )
