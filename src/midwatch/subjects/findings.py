"""What an observation finds: signals, what is unknown and why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Fact, Invariant, Json, Observation, Signal
from midwatch.subjects.rows import Row, text


class NotObservable(ObservationFailed):
    """There is nothing to observe, or nothing to compare with yet: unknown, but not a failure."""


class PartlyUnsupported(Unsupported):
    """An invariant can be seen in part only. `signals` are those of what is seen."""

    def __init__(self, message: str, *, hint: str, signals: Sequence[Signal]) -> None:
        super().__init__(message, hint=hint)
        self.signals = signals


class EnabledInvariants:
    """What the enabled invariants, by id, say of what an observation sees.

    `ignored` counts what their `ignore` left out, by id and text.
    """

    __slots__ = ()
    invariants: Mapping[str, Invariant]
    ignored: dict[str, Counter[str]]

    def limit(self, invariant: str) -> float:
        """Return the limit of an enabled invariant; infinity without one."""
        found = self.invariants.get(invariant)
        return float("inf") if found is None or found.limit is None else found.limit

    def softened(self, signal: Signal) -> Signal:
        """Return the signal with the severity of its invariant where that is lower than its own."""
        found = self.invariants.get(signal.invariant)
        if found is None or signal.severity is None:
            return signal
        return replace(signal, severity=max(signal.severity, found.severity))

    def ignores(self, invariant: str, attributes: Mapping[str, object]) -> bool:
        """Return whether the settings leave out what has these attributes, and remember that they did."""
        found = self.invariants.get(invariant)
        forms = [attributes]
        if "." in str(attributes.get("table") or ""):  # with its schema, and without
            forms.append(
                {**attributes, "table": str(attributes["table"]).partition(".")[2]}
            )
        if found is None or not any(map(found.ignores, forms)):
            return False
        named = {name for entry in found.ignore for name in entry}
        left_out = ", ".join(
            f"{name} {text(value, 64)}"
            for name, value in attributes.items()
            if name in named and value
        )
        self.ignored.setdefault(invariant, Counter())[left_out or "without a name"] += 1
        return True

    def counted(
        self,
        invariant: str,
        rows: Iterable[Row],
        about: Callable[[Row], Mapping[str, object]],
    ) -> list[Row]:
        """Return the rows that the settings do not leave out."""
        return [row for row in rows if not self.ignores(invariant, about(row))]


_IGNORED = 10  # texts of one invariant that tell what was left out


class Findings:
    """What an observation has found so far, of the enabled invariants only."""

    def __init__(self, invariants: Sequence[Invariant], state: Json) -> None:
        self.enabled = {invariant.id for invariant in invariants}
        self.state = state
        self._signals: dict[str, Sequence[Signal]] = {}
        self._partial: list[Signal] = []
        self._unavailable: dict[str, str] = {}
        self._unsupported: dict[str, str] = {}
        self.ignored: dict[str, tuple[str, ...]] = {}
        self.background: dict[str, Fact] = {}
        self.configuration: dict[str, Fact] = {}

    def observed(self, invariant: str, signals: Sequence[Signal]) -> None:
        """Record the signals of an invariant that was observed completely."""
        if invariant in self.enabled:
            self._signals[invariant] = signals

    def mark_unavailable(self, invariant: str, why: str) -> None:
        """Record that an invariant could not be observed, and why."""
        if invariant in self.enabled:
            self._unavailable[invariant] = why

    def mark_unsupported(self, invariant: str, why: str) -> None:
        """Record that a setting or a permission makes an invariant impossible to see, with the remedy."""
        if invariant in self.enabled:
            self._unsupported[invariant] = why

    def add_ignored(self, ignored: Mapping[str, Counter[str]]) -> None:
        """Record what the settings left out, the most frequent first."""
        for invariant, counts in ignored.items():
            shown = counts.most_common(_IGNORED)
            parts = [name if n == 1 else f"{name} ({n} times)" for name, n in shown]
            if more := len(counts) - len(shown):
                parts.append(f"and {more} more")
            self.ignored[invariant] = tuple(parts)

    def partial(self, invariant: str, signal: Signal) -> None:
        """Record a violation on one component, while the other components stay unknown."""
        if invariant in self.enabled:
            self._partial.append(signal)

    async def check(
        self, invariant: str, run: Callable[[], Awaitable[Sequence[Signal]]]
    ) -> None:
        """Run a check and record its signals, or why it failed."""
        if invariant in self.enabled:
            try:
                self.observed(invariant, await run())
            except NotObservable:
                pass
            except Unsupported as error:
                self.mark_unsupported(invariant, error.one_line())
                if isinstance(error, PartlyUnsupported):
                    self._partial += error.signals
            except ObservationFailed as error:
                self.mark_unavailable(invariant, error.one_line())

    def answers(self, how: str = "") -> None:
        """Record that the server answers; `how` is added to that."""
        self._reachable(True, f"the server answers{how}")

    def unreachable(self, why: str) -> None:
        """Record that the server does not answer."""
        self._reachable(False, why)

    def _reachable(self, holds: bool, message: str) -> None:
        error = {"error": "" if holds else message}
        signal = Signal("reachable", "server", message, holds=holds, facts=error)
        self.observed("reachable", [signal])

    def mark_late(self, seconds: float) -> None:
        """Record that the time limit of the observation ended it."""
        self.mark_unobserved(f"the observation took longer than {seconds:g}s")

    def mark_unobserved(self, why: str) -> None:
        """Record for all invariants without a result that they are unknown, and why."""
        known = {*self._signals, *self._unavailable, *self._unsupported}
        for invariant in self.enabled - known:
            self._unavailable[invariant] = why

    def observation(self) -> Observation:
        """Return the observation. Raises ObservationFailed when nothing at all was observed."""
        signals = [one for found in self._signals.values() for one in found]
        signals += self._partial
        if not signals and not self._signals:
            why = next(iter(self._unavailable.values()), "the server does not answer")
            raise ObservationFailed(why)
        return Observation(
            tuple(signals),
            frozenset(self._signals),
            self._unavailable,
            self.state,
            self.background,
            self._unsupported,
            self.ignored,
            self.configuration,
        )


def at_least(signal: Signal, limit: float) -> Signal:
    """Return the signal of a value that may be higher in truth: below the limit it is unknown."""
    if signal.holds is False or (signal.value is not None and signal.value > limit):
        return signal
    return replace(signal, value=None, holds=None)
