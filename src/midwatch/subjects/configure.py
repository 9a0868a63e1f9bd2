"""A subject's settings applied to its kind's invariants."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import SettingsError
from ..model import Invariant, Severity, Unit
from ..settings import InvariantSettings
from ..units import parse_limit


def configure(
    invariants: Sequence[Invariant],
    overrides: Mapping[str, InvariantSettings],
    path: str,
) -> tuple[Invariant, ...]:
    """The enabled invariants, with the limits, durations and severities of the settings.

    `path` is where the subject stands in the settings (`subjects.orders-db`); it begins the
    path of an error. Raises SettingsError for an id the kind does not have and for a limit
    that does not fit the invariant's unit.
    """
    known = {invariant.id for invariant in invariants}
    for name in overrides:
        if name not in known:
            raise _unknown(name, known, path)
    return tuple(
        _configured(invariant, overrides.get(invariant.id), path)
        for invariant in invariants
        if invariant.id not in overrides or overrides[invariant.id].enabled
    )


def _unknown(name: str, known: set[str], path: str) -> SettingsError:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    hint = (
        f"did you mean {close[0]}?" if close else f"one of {', '.join(sorted(known))}"
    )
    return SettingsError(
        "there is no such invariant", path=f"{path}.invariants.{name}", hint=hint
    )


def _configured(
    invariant: Invariant, override: InvariantSettings | None, path: str
) -> Invariant:
    if override is None:
        return invariant
    where = f"{path}.invariants.{invariant.id}"
    return replace(
        invariant,
        limit=_limit(invariant, override.limit, f"{where}.limit"),
        hold_for=(
            invariant.hold_for if override.hold_for is None else override.hold_for
        ),
        severity=(
            invariant.severity
            if override.severity is None
            else Severity.parse(override.severity)
        ),
    )


def _limit(invariant: Invariant, value: str | float | None, path: str) -> float | None:
    if value is None:
        return invariant.limit
    if invariant.unit is Unit.NONE:
        raise SettingsError(
            "this invariant has no limit",
            path=path,
            hint="it either holds or not; remove the limit",
        )
    try:
        limit = parse_limit(value, invariant.unit)
    except ValueError as error:
        raise SettingsError(
            str(error), path=path, hint=f"its unit is {invariant.unit.value}"
        ) from None
    if not math.isfinite(limit) or limit < 0:
        raise SettingsError(
            f"{value!r} is no limit; it must be a finite number from 0 upwards",
            path=path,
            hint=f"its unit is {invariant.unit.value}",
        )
    return limit
