"""The subject kind `host`: space, memory, load and processes of the machine that Midwatch runs on."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import ClassVar

from midwatch.errors import ObservationFailed, Unsupported
from midwatch.model import Facts, Invariant, Json, Observation, Origin, Signal, Ticket
from midwatch.subjects.actionable import (
    ActionCheck,
    ActionKind,
    ActionResult,
    ActionSettings,
)
from midwatch.subjects.actionable import Findings as FindingsOfDiagnosis
from midwatch.subjects.actionable import ProposedAction
from midwatch.subjects.base import Address, EvidenceSource, configure
from midwatch.subjects.host_actions import KINDS, HostActions, propose
from midwatch.subjects.host_disk_usage import open_on, what_fills
from midwatch.subjects.host_evidence import TABLES
from midwatch.subjects.host_mounts import (
    MEASURES,
    Measured,
    Mount,
    MountProbes,
    OffLoop,
    attributes,
    file_systems,
    mount_table,
    reasons,
)
from midwatch.subjects.host_processes import (
    ORIGIN_FACTS,
    hidden_processes,
    listeners,
    matches,
    origin_facts,
    running,
)
from midwatch.subjects.host_settings import INVARIANTS, HostSettings, ProcessSettings
from midwatch.subjects.host_units import (
    CGROUPS,
    control_groups,
    journal,
    kernel,
    log_tail,
    unit_state,
)
from midwatch.subjects.tools import Tool
from midwatch.text import component_name, ticket_line
from midwatch.units import format_size

# ------------------------------------------------------------------ the subject

_MOST_WALKED = 2  # mounts
_MOST_ENDED = 3  # processes
_MOST_REMEMBERED = 100  # processes
_SHARE_OF_WALK = 0.5
_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report that it took too long


@dataclass(slots=True)
class Findings:
    """What a part of an observation found; see `Observation`."""

    signals: list[Signal] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, tuple[str, ...]] = field(default_factory=dict)
    state: Json = field(default_factory=dict)


class HostSubject:
    """This machine, observed through psutil.

    In a container: its own file systems and processes, but the memory and load of the whole machine.
    """

    kind: ClassVar[str] = "host"
    settings_model: ClassVar[type[HostSettings]] = HostSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS
    addresses: ClassVar[Sequence[Address]] = (Address("localhost", None),)

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.invariants = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        self.secrets: Sequence[str] = ()
        self._mounts = MountProbes(settings.mounts)
        self._checks = {name: OffLoop() for name in CHECKS}
        self._evidence: dict[str, OffLoop] = {}

    async def observe(self, previous: Json) -> Observation:
        """Observe the machine. What hangs, as a dead mount does, is unavailable; the rest is observed."""
        wanted = {invariant.id: invariant for invariant in self.invariants}
        parts = await asyncio.gather(
            self._file_systems(wanted, previous),
            *(self._check(wanted[name], previous) for name in wanted if name in CHECKS),
        )
        whole = Findings()
        for part in parts:
            whole.signals += part.signals
            for name in ("unavailable", "unsupported", "ignored", "state"):
                getattr(whole, name).update(getattr(part, name))
        unseen = whole.unavailable.keys() | whole.unsupported.keys()
        return Observation(
            tuple(whole.signals),
            frozenset(wanted) - unseen,
            whole.unavailable,
            whole.state,
            unsupported=whole.unsupported,
            ignored=whole.ignored,
        )

    async def _check(self, invariant: Invariant, previous: Json) -> Findings:
        name, found = invariant.id, Findings()
        settings = self.settings
        if name == "process":
            labels = [one.label for one in settings.processes]
            left_out = [one for one in labels if invariant.ignores({name: one})]
            if left_out:
                found.ignored[name] = tuple(ticket_line(one, 100) for one in left_out)
                kept = [one for one in settings.processes if one.label not in left_out]
                settings = settings.model_copy(update={"processes": kept})
        try:
            await self._checks[name].run(
                partial(_collect, CHECKS[name](settings), found.signals),
                self._limit,
                name,
            )
        except Unsupported as error:
            found.unsupported[name] = error.one_line()
        except ObservationFailed as error:
            found.unavailable[name] = error.message
        except _unreadable() as error:
            found.unavailable[name] = ticket_line(f"{name} cannot be read: {error}")
        if name == "process":
            _remember(found, previous)
        return found

    async def _file_systems(
        self, wanted: Mapping[str, Invariant], previous: Json
    ) -> Findings:
        """Observe the space and the inodes of all mounts."""
        chosen = [wanted[name] for name in MEASURES if name in wanted]
        known, full = previous.get("mounted", []), previous.get("full", {})
        found = Findings(state={"mounted": known, "full": full})
        if not chosen:
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limit
        try:
            mounted, mounts = await self._mounts.mounts(self._limit)
        except ObservationFailed as error:
            found.unavailable = {one.id: error.message for one in chosen}
            return found
        left = max(0.01, deadline - loop.time())
        asked = _of_interest(mounts, chosen)
        spaces = await self._mounts.ask(asked, mounted, left, known)
        found.state = {"mounted": sorted(spaces.mounted), "full": {}}
        for invariant in chosen:
            part = Measured(invariant, mounts, spaces, full.get(invariant.id, ()))
            found.signals += part.signals
            found.state["full"][invariant.id] = part.full
            if part.unavailable:
                found.unavailable[invariant.id] = reasons(part.unavailable)
            elif part.unsupported:
                found.unsupported[invariant.id] = reasons(part.unsupported)
            if part.ignored:
                found.ignored[invariant.id] = part.ignored
        return found

    # -------------------------------------------------- approved actions

    action_kinds: ClassVar[Sequence[ActionKind]] = KINDS

    @property
    def allowed_actions(self) -> Sequence[str]:
        return tuple(self.settings.actions.allow)

    @property
    def action_settings(self) -> ActionSettings:
        return self.settings.actions

    def propose_actions(
        self, findings: FindingsOfDiagnosis
    ) -> Sequence[ProposedAction]:
        return tuple(propose(findings, self.settings.actions))

    async def check_action(self, action: ProposedAction) -> ActionCheck:
        return await self._actions().check(action)

    async def run_action(self, action: ProposedAction) -> ActionResult:
        return await self._actions().run(action)

    async def probe_actions(self) -> str:
        return await self._actions().probe()

    def _actions(self) -> HostActions:
        return HostActions(self.settings.actions, partial(self.observe, {}))

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        broken = {ticket.key.invariant for ticket in tickets}
        found = [
            EvidenceSource(
                title,
                "psutil on this machine",
                (
                    self._fetch_file_systems
                    if describe is None
                    else self._fetch(name, title, partial(describe, self.settings))
                ),
                rank=10 if broken & matters_to else 40,
                timeout=self.settings.timeout,
            )
            for name, (title, describe, matters_to) in TABLES.items()
            if name != "processes" or self.settings.processes
        ]
        mounts = [one for one in tickets if one.key.invariant in MEASURES]
        for mount in islice(dict.fromkeys(map(_mount_of, mounts)), _MOST_WALKED):
            found += self._space_sources(mount, "inodes" in broken)
        down = [one for one in tickets if one.key.invariant == "process"]
        for ticket in down[:_MOST_ENDED]:
            found += self._end_sources(ticket)
        if down:
            ports = "Listening processes"
            fetch = self._fetch(ports, ports, listeners)
            found.append(self._source(ports, "psutil on this machine", fetch, 45))
        if broken & {"process", "memory", "swap"}:
            found += self._kernel_sources()
        return found

    def _source(
        self,
        title: str,
        source: str,
        fetch: Callable[[], Awaitable[str]],
        rank: int,
        origin: Origin = Origin.SYSTEM,
    ) -> EvidenceSource:
        limit = self.settings.timeout
        return EvidenceSource(title, source, fetch, rank, limit, origin)

    def _space_sources(self, mount: str, inodes: bool) -> list[EvidenceSource]:
        """Return what holds the space of a mount: open files at once, and a walk that may take longer."""

        def held() -> str:
            return open_on(mount, mount_table())

        walk = partial(what_fills, mount, inodes, self._limit * _SHARE_OF_WALK)
        shown = ticket_line(mount, 100)
        held_title, walk_title = f"Open files on {shown}", f"What fills {shown}"
        return [
            self._source(
                held_title, "/proc", self._fetch(held_title, held_title, held), 12
            ),
            self._source(
                walk_title, "a walk", self._fetch(walk_title, walk_title, walk), 14
            ),
        ]

    def _end_sources(self, ticket: Ticket) -> list[EvidenceSource]:
        """Return how a process ended, as its unit and its logs tell it."""
        name = ticket.key.component
        unit = str(ticket.facts.get("unit") or "")
        logs = re.split(r", (?=/)", str(ticket.facts.get("log_files") or ""))
        limit = self._limit / 2

        async def log() -> str:
            title = f"Log of {name}"
            parts = [
                await self._fetch(f"{title} {path}", title, partial(log_tail, path))()
                for path in filter(None, logs)
            ]
            if unit:
                parts.append(await journal(unit, limit))
            return "\n".join(parts)

        found = []
        if unit:
            found.append(
                self._source(
                    f"Unit of {name}", "systemctl", lambda: unit_state(unit, limit), 11
                )
            )
        if unit or any(logs):
            found.append(
                self._source(f"Log of {name}", "its log", log, 13, Origin.REPORTED)
            )
        return found

    def _kernel_sources(self) -> list[EvidenceSource]:
        groups = "Memory of control groups"
        return [
            self._source(
                "The kernel's log", "journalctl", lambda: kernel(self._limit), 16
            ),
            self._source(
                groups, str(CGROUPS), self._fetch(groups, groups, control_groups), 30
            ),
        ]

    def tools(self) -> Sequence[Tool]:
        from midwatch.subjects.host_tools import HostTools

        return HostTools(self.settings.timeout).tools()

    async def close(self) -> None:
        """Do nothing: nothing is kept open."""

    @property
    def _limit(self) -> float:
        return self.settings.timeout * _SHARE_OF_TIMEOUT

    def _fetch(
        self, name: str, title: str, describe: Callable[[], str]
    ) -> Callable[[], Awaitable[str]]:
        async def fetch() -> str:
            running = self._evidence.setdefault(name, OffLoop())
            try:
                return await running.run(describe, self._limit, title)
            except _unreadable() as error:
                raise ObservationFailed(
                    f"{title} cannot be read: {ticket_line(str(error))}"
                ) from None
            finally:
                if running.is_idle:  # what hangs is remembered, and not asked again
                    self._evidence.pop(name, None)

        return fetch

    async def _fetch_file_systems(self) -> str:
        mounted, mounts = await self._mounts.mounts(self._limit / 4)
        chosen = [one for one in self.invariants if one.id in MEASURES]
        asked = _of_interest(mounts, chosen) if chosen else mounts
        return file_systems(await self._mounts.ask(asked, mounted, self._limit / 2))


def _mount_of(ticket: Ticket) -> str:
    return str(ticket.facts.get("mount") or ticket.key.component)


def _remember(found: Findings, previous: Json) -> None:
    """Keep what is known of each process that runs, and add it to the facts of one that does not."""
    known = previous.get("processes")
    kept: Json = dict(known) if isinstance(known, dict) else {}
    for number, one in enumerate(found.signals):
        facts = {name: one.facts[name] for name in ORIGIN_FACTS if name in one.facts}
        before = kept.get(one.component)
        if isinstance(before, dict) and one.holds is False:
            facts = {**before, **facts}
            found.signals[number] = replace(one, facts={**one.facts, **facts})
        kept[one.component] = facts
    found.state["processes"] = dict(list(kept.items())[-_MOST_REMEMBERED:])


def _of_interest(mounts: Sequence[Mount], chosen: Sequence[Invariant]) -> list[Mount]:
    """Return the mounts that not all of these invariants leave out."""
    return [
        one
        for one in mounts
        if not all(each.ignores(attributes(one.path, one.fstype)) for each in chosen)
    ]


def _unreadable() -> tuple[type[Exception], ...]:
    """Return what psutil raises where the system does not show what it should."""
    import psutil

    return (OSError, psutil.Error, ValueError, LookupError, ArithmeticError)


# ------------------------------------------------------------------ checks (blocking)

Check = Callable[[HostSettings], Iterator[Signal]]


def _collect(signals: Iterator[Signal], into: list[Signal]) -> None:
    """Append the signals one by one: those before an error are valid."""
    for signal in signals:
        into.append(signal)


def memory(settings: HostSettings) -> Iterator[Signal]:
    import psutil

    found = psutil.virtual_memory()
    share = found.available / found.total
    yield Signal(
        "memory",
        "memory",
        f"{share:.0%} of memory is available: {format_size(found.available)} of {format_size(found.total)}",
        value=share,
        facts={"available_bytes": found.available, "total_bytes": found.total},
    )


def swap(settings: HostSettings) -> Iterator[Signal]:
    import psutil

    found = psutil.swap_memory()
    if found.total:
        share = found.used / found.total
        yield Signal(
            "swap",
            "swap",
            f"swap is {share:.0%} full: {format_size(found.used)} of {format_size(found.total)}",
            value=share,
            facts={"used_bytes": found.used, "total_bytes": found.total},
        )


def load(settings: HostSettings) -> Iterator[Signal]:
    average, cores = os.getloadavg()[1], os.cpu_count() or 1
    yield Signal(
        "load",
        "cpu",
        f"the load of five minutes is {average:.1f} on {cores} processors",
        value=average / cores,
        facts={"load5": round(average, 2), "processors": cores},
    )


def process(settings: HostSettings) -> Iterator[Signal]:
    """Yield the state of each required process. Raises Unsupported at the end where that is unknown of one."""
    if not settings.processes:
        return
    alive, hidden = running(), hidden_processes()
    unknown: list[str] = []
    for wanted in settings.processes:
        found = [matches(wanted, name, line) for _, name, line in alive]
        count = found.count(True)
        if count < wanted.min and (hidden or count + found.count(None) >= wanted.min):
            unknown.append(ticket_line(wanted.label, 100))
            continue
        yield Signal(
            "process",
            component_name(wanted.label),
            f"{count} of at least {wanted.min} processes {ticket_line(wanted.label, 100)} run",
            value=float(count),
            holds=count >= wanted.min,
            facts={
                "process": ticket_line(wanted.label),
                "count": count,
                "min": wanted.min,
                **(origin_facts(alive[found.index(True)][0]) if count else {}),
                **_given(wanted),
            },
        )
    if unknown:
        raise Unsupported(
            f"{', '.join(unknown)}: {hidden or 'processes of other users cannot be read'}",
            hint="run Midwatch as root, or as a user in the group that /proc is mounted with (gid=)",
        )


def _given(wanted: ProcessSettings) -> Facts:
    """Return what the settings say of a process, which counts more than what was seen."""
    logs = ", ".join(map(str, wanted.log_files))
    return {
        name: value
        for name, value in (("unit", wanted.unit), ("log_files", logs))
        if value
    }


CHECKS: dict[str, Check] = {
    "memory": memory,
    "swap": swap,
    "load": load,
    "process": process,
}
