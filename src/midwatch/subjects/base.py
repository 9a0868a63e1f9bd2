"""The protocol of watched systems, the registry of their kinds, and the settings of their invariants.

A kind of subject is a class that satisfies `SubjectKind`, named in the entry-point group
``midwatch.subjects``. `midwatch.testing.subject_conformance` checks one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from pydantic import ValidationError

from midwatch.config import explain
from midwatch.errors import SettingsError
from midwatch.model import (
    Invariant,
    Json,
    Observation,
    Origin,
    Severity,
    Ticket,
    Unit,
)
from midwatch.settings import InvariantSettings
from midwatch.units import parse_duration, parse_limit


@dataclass(frozen=True, slots=True)
class EvidenceSource:
    """A source of evidence.

    `fetch` returns plain text, which the gatherer cleans, redacts, shortens and numbers. It may raise
    any `MidwatchError`, and is cancelled after `timeout` seconds. A lower `rank` matters more: when the
    token budget is short, the highest ranks are left out first. `origin` says who wrote the text. What clients
    wrote in it matches `reported` (its group, if it has one): such a pattern must not end before their text does,
    whatever it contains. With `log` it is lines of a log, oldest first: those of one shape become one, and the time around
    the onset counts.
    """

    title: str
    source: str
    fetch: Callable[[], Awaitable[str]]
    rank: int = 50
    timeout: float = 5.0
    origin: Origin = Origin.SYSTEM
    reported: Sequence[re.Pattern[str]] = ()
    log: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """A place at which a subject answers. `port` None stands for the whole machine.

    `host` is a name, an IP address or the folder of a unix socket.
    """

    host: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class Subject(Protocol):
    """A watched system. `midwatch.testing.subject_conformance` checks an implementation.

    It may have two more properties, from which links between subjects come: `addresses`, a sequence of `Address`,
    and `uses`, a text without secrets that names what it uses, such as its command line.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def timeout(self) -> float:
        """Seconds that one observation may take."""
        ...

    @property
    def invariants(self) -> Sequence[Invariant]:
        """The enabled invariants, with the limits that this subject's settings give them."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """Secret values that must never leave the process (passwords of a DSN, tokens)."""
        ...

    async def observe(self, previous: Json) -> Observation:
        """Observe the system once.

        It must end by itself within the subject's `timeout`; the monitor cancels it after that.

        Args:
            previous: The `state` of the last successful observation, or empty.

        Raises:
            ObservationFailed: Nothing could be observed.
        """
        ...

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        """Return the sources of evidence for these tickets, which are all of this subject.

        Without tickets they show the state of the subject, on which a broken one depends.
        """
        ...

    async def close(self) -> None:
        """Close connections. Never raises."""
        ...


class SubjectKind(Protocol):
    """The class that an entry point of the group ``midwatch.subjects`` names.

    `settings_model` is a subclass of `midwatch.settings.SubjectSettings`; `default_invariants` are the
    kind's own with their defaults (for `midwatch invariants`).
    """

    kind: str
    settings_model: type[Any]
    default_invariants: Sequence[Invariant]

    def __call__(self, settings: Any) -> Subject: ...


# ------------------------------------------------------------------ the registry

GROUP = "midwatch.subjects"


def kinds() -> dict[str, EntryPoint]:
    """Return the entry points by kind; loading one imports its module."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_kind(point: EntryPoint, path: str = "") -> SubjectKind:
    """Return the kind that an entry point names. Raises SettingsError when its module cannot be imported."""
    try:
        kind: SubjectKind = point.load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"the kind {point.name} cannot be loaded: {error}",
            path=path,
            hint=f"reinstall the package that provides {point.value}",
        ) from error
    return kind


def build_subjects(written: Sequence[Mapping[str, Any]]) -> list[Subject]:
    """Return the subjects of the settings. Raises SettingsError for the first setting that is wrong."""
    known = kinds()
    subjects: list[Subject] = []
    names: dict[str, int] = {}
    for index, one in enumerate(written):
        path = f"subjects[{index}]"
        subject = _build(one, path, known)
        if subject.name in names:
            raise SettingsError(
                f"{subject.name} is also the name of subjects[{names[subject.name]}]",
                path=f"{path}.name",
                hint="give each subject a name of its own",
            )
        names[subject.name] = index
        subjects.append(subject)
    _check_names(dependencies(written), names)
    return subjects


def dependencies(written: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return what each subject of the settings depends on, by name."""
    return {one["name"]: list(one.get("depends_on") or ()) for one in written}


def intervals(written: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the interval of each subject of the settings that has one of its own, in seconds, by name."""
    return {
        one["name"]: parse_duration(one["interval"])
        for one in written
        if one.get("interval") is not None
    }


def _check_names(
    depends_on: Mapping[str, Sequence[str]], names: Mapping[str, int]
) -> None:
    for name, others in depends_on.items():
        for at, other in enumerate(others):
            if other not in names:
                close = difflib.get_close_matches(other, sorted(names), n=1)
                raise SettingsError(
                    f"there is no subject {other}",
                    path=f"subjects[{names[name]}].depends_on[{at}]",
                    hint=(
                        f"did you mean {close[0]}?"
                        if close
                        else f"one of {', '.join(sorted(names))}"
                    ),
                )


def _build(
    one: Mapping[str, Any], path: str, known: Mapping[str, EntryPoint]
) -> Subject:
    kind = one.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise SettingsError(
            f"{kind!r} is not a kind of subject" if kind else "a subject needs a kind",
            path=f"{path}.kind",
            hint=f"known kinds: {', '.join(sorted(known))}",
        )
    built_by = load_kind(known[kind], f"{path}.kind")
    try:
        settings = built_by.settings_model.model_validate(dict(one))
    except ValidationError as error:
        raise explain(error, built_by.settings_model, path) from None
    try:
        return built_by(settings)
    except SettingsError as error:
        raise SettingsError(
            error.message, path=path if not error.path else "", hint=error.hint
        ) from error


# ------------------------------------------------------------------ invariants


def configure(
    invariants: Sequence[Invariant],
    overrides: Mapping[str, InvariantSettings],
    path: str,
) -> tuple[Invariant, ...]:
    """Return the enabled invariants, with the limits, durations and severities of the settings.

    Args:
        invariants: The kind's own invariants.
        overrides: The subject's settings for them, by id.
        path: The subject's path in the settings (`subjects.orders-db`), for errors.

    Raises:
        SettingsError: The kind has no invariant with this id, or a limit does not fit its unit.
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
        ignore=_ignore(invariant, override.ignore, f"{where}.ignore"),
    )


def _ignore(
    invariant: Invariant, entries: Sequence[Mapping[str, str]] | None, path: str
) -> tuple[Mapping[str, str], ...]:
    if entries is None:
        return invariant.ignore
    for index, entry in enumerate(entries):
        if not entry:
            raise SettingsError(
                "an empty entry would leave out everything",
                path=f"{path}[{index}]",
                hint="give it an attribute, or disable the invariant: enabled: false",
            )
        for name in entry:
            if name not in invariant.about and "*" not in invariant.about:
                raise SettingsError(
                    f"{invariant.id} has no attribute {name}",
                    path=f"{path}[{index}]",
                    hint=(
                        f"one of {', '.join(invariant.about)}"
                        if invariant.about
                        else "this invariant leaves nothing out"
                    ),
                )
    return tuple(entries)


def _limit(invariant: Invariant, value: str | float | None, path: str) -> float | None:
    if value is None:
        return invariant.limit
    if invariant.unit is Unit.NONE:
        raise SettingsError(
            "this invariant has no limit",
            path=path,
            hint="remove the limit: this invariant either holds or not",
        )
    try:
        limit = parse_limit(value, invariant.unit)
    except ValueError as error:
        raise SettingsError(
            str(error), path=path, hint=f"its unit is {invariant.unit.value}"
        ) from None
    if not math.isfinite(limit) or limit < 0:
        raise SettingsError(
            f"{value!r:.60} is not a limit; use a finite number of 0 or more",
            path=path,
            hint=f"its unit is {invariant.unit.value}",
        )
    if invariant.unit is Unit.RATIO and limit > 1:
        raise SettingsError(
            f"{value!r:.60} is more than 100%, which no share exceeds",
            path=path,
            hint="use a share such as 90% or 0.9",
        )
    return limit
