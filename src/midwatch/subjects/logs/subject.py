"""The subject kind `logs`: files, containers' logs, the journal of systemd and Loki."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from midwatch.errors import MidwatchError, ObservationFailed, Unsupported
from midwatch.model import Invariant, Json, Observation, Ticket
from midwatch.redaction import Redactor
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.host_mounts import OffLoop
from midwatch.subjects.logs.error_shapes import Shapes
from midwatch.subjects.logs.evidence import LogEvidence
from midwatch.subjects.logs.journal import read_journal
from midwatch.subjects.logs.log_tools import LogTools
from midwatch.subjects.logs.loki import LokiReader
from midwatch.subjects.logs.rotation import read_files
from midwatch.subjects.logs.rules import Judge, Past, Verdict, utc_text
from midwatch.subjects.logs.scanner import Scanner
from midwatch.subjects.logs.search import expression
from midwatch.subjects.logs.settings import (
    INVARIANTS,
    NEW,
    LogsSettings,
    SourceSettings,
)
from midwatch.subjects.logs.source_reading import Budget, Reading
from midwatch.subjects.logs.window import WindowReader
from midwatch.subjects.tools import Tool
from midwatch.text import ticket_line

# Of all sources together, so that the state stays small.
_SHAPES = 160
_FILES, _MOST_FILES = 600, 300  # in all, and of one source
_REMEMBERED = 2000  # shapes that were seen
_SHARE_OF_TIMEOUT = 0.85


class LogsSubject:
    """Logs of several sources, each read from where the last observation ended."""

    kind: ClassVar[str] = "logs"
    settings_model: ClassVar[type[LogsSettings]] = LogsSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS
    most_bytes: int = 2_000_000_000
    """Bytes that one observation reads of a source."""

    def __init__(self, settings: LogsSettings) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        path = f"subjects.{settings.name}"
        self.invariants = configure(INVARIANTS, settings.invariants, path)
        self._loki = {
            one.name: LokiReader(
                one.loki, one.name, settings.timeout, f"{path}.sources.{one.name}"
            )
            for one in settings.sources
            if one.loki is not None
        }
        self._named = {one.name: one for one in settings.sources}
        self._readers = {
            one.name: WindowReader(one, self._loki.get(one.name))
            for one in settings.sources
        }
        self._redactor = Redactor(self.secrets)
        self._threads = {one.name: OffLoop() for one in settings.sources}
        self._beats = {
            one.name: {beat.name: expression(beat.pattern) for beat in one.heartbeats}
            for one in settings.sources
        }

    @property
    def secrets(self) -> Sequence[str]:
        return [secret for one in self._loki.values() for secret in one.secrets]

    async def observe(self, previous: Json) -> Observation:
        """Read what is new in every source. Raises ObservationFailed when none can be read."""
        if not self.invariants:
            return Observation(signals=(), covered=frozenset())
        known = previous.get("sources")
        known = known if isinstance(known, dict) else {}
        found = await asyncio.gather(
            *(self._source(one, known.get(one.name)) for one in self.settings.sources)
        )
        sources = self.settings.sources
        state = {one.name: past for one, (_, past, _) in zip(sources, found)}
        if all(failure for _, _, failure in found):
            raise ObservationFailed("; ".join(one[2] for one in found)[:600])
        return self._observation([one for one, _, _ in found], state)

    def _observation(self, verdicts: Sequence[Verdict], state: Json) -> Observation:
        unavailable: dict[str, str] = {}
        unsupported: dict[str, str] = {}
        ignored: dict[str, tuple[str, ...]] = {}
        for one in verdicts:
            for target, texts in (
                (unavailable, one.unknown),
                (unsupported, one.unsupported),
            ):
                for name, why in texts.items():
                    target[name] = "; ".join(filter(None, (target.get(name), why)))
            for name, left in one.ignored.items():
                ignored[name] = (*ignored.get(name, ()), *left)
        wanted = {one.id for one in self.invariants}
        learning = [one.learning for one in verdicts if one.learning]
        if NEW.id in wanted and len(learning) == len(verdicts):
            unsupported[NEW.id] = (
                f"which shapes of errors are usual is learned until {utc_text(max(learning))} (hint: `learn` is shorter)"
            )
        for name in unavailable.keys() & unsupported.keys():
            unavailable[name] += f"; {unsupported.pop(name)}"
        return Observation(
            tuple(signal for one in verdicts for signal in one.signals),
            frozenset(wanted - unavailable.keys() - unsupported.keys()),
            {name: ticket_line(why, 600) for name, why in unavailable.items()},
            {"sources": state},
            unsupported={
                name: ticket_line(why, 600) for name, why in unsupported.items()
            },
            ignored=ignored,
        )

    async def _source(
        self, source: SourceSettings, raw: object
    ) -> tuple[Verdict, Json, str]:
        """Return what is known of a source, its state, and why it could not be read at all."""
        now = time.time()
        past = Past.of(raw, now)
        number = len(self.settings.sources)
        shapes = Shapes(
            past.shapes,
            past.known,
            max(8, _SHAPES // number),
            self._redactor.text,
            now,
            max(200, _REMEMBERED // number),
        )
        beats = self._beats[source.name]
        scanner = Scanner(shapes, beats, width=self.settings.moment)
        judge = Judge(
            self.settings,
            source,
            {one.id: one for one in self.invariants},
            past,
            shapes,
        )
        try:
            reading = await self._read(source, past, scanner)
        except MidwatchError as error:
            why = f"{source.name}: {error.one_line()}"
            before = raw if isinstance(raw, dict) else past.to_state()
            return judge.failed(why, isinstance(error, Unsupported)), before, why
        verdict = judge.verdict(reading, scanner)
        return verdict, past.to_state(), ""

    async def _read(
        self, source: SourceSettings, past: Past, scanner: Scanner
    ) -> Reading:
        limit = self.timeout * self.settings.read_share
        last = None if past.is_first else past.at
        since = self.settings.since
        if source.journal is not None:
            return await read_journal(
                source.journal, past.place, time.time(), since, limit, scanner
            )
        if source.loki is not None:
            reader = self._loki[source.name]
            return await reader.read(past.place, time.time(), since, limit, scanner)
        budget = Budget(time.monotonic() + limit, self.most_bytes)
        form = None if source.format == "auto" else source.format
        call = partial(
            read_files,
            source.files,
            form,
            past.place,
            last,
            since,
            budget,
            scanner.feed,
            min(_MOST_FILES, _FILES // len(self.settings.sources)),
        )
        limit = self.timeout * _SHARE_OF_TIMEOUT
        return await self._threads[source.name].run(call, limit, source.name)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        evidence = LogEvidence(
            self._named, self._readers, self._redactor.text, self.timeout
        )
        return [*evidence.pieces(tickets)]

    def tools(self) -> Sequence[Tool]:
        return LogTools(self._named, self._readers, self.timeout).tools()

    async def close(self) -> None:
        for one in self._loki.values():
            await one.close()
