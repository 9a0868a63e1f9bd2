"""First aid for the kind `host`: what fills a file system."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    ALIKE,
    Note,
    Tickets,
    action,
    bounded,
    finding,
    line_starting,
    number_fact,
    own_line,
    playbook,
    text_fact,
    tickets_of,
    titled_lines,
    write_note,
)
from midwatch.playbooks.general.process_end import NO_SPACE, ended_for
from midwatch.units import parse_size

_SIZE = r"(?P<size>[\d.]+ [kMGTP]?B)"
_HOLDER = r"pid (?P<pid>\d+) \((?P<program>.*)\)"
_DELETED = re.compile(
    rf"deleted but open: {_SIZE} (?P<path>.+), held by {_HOLDER}, descriptor (?P<fd>\d+)$"
)
_GROWS = re.compile(
    rf"grows: (?P<rate>[\d.]+ [kMGTP]?B)/s (?P<path>.+), now {_SIZE}, written by {_HOLDER}$"
)
_OPEN = re.compile(rf"open for writing: {_SIZE} (?P<path>.+), by {_HOLDER}$")
_FILE = re.compile(rf"file: {_SIZE} (?P<path>.+), changed (?P<age>.+) ago$")
_FOLDER = re.compile(rf"folder: {_SIZE} (?P<path>.+)$")
_ENTRIES = re.compile(r"entries: (?P<count>[\d,]+) in (?P<path>.+)$")


@dataclass(frozen=True, slots=True)
class Filler:
    """Something that takes space. `weight` is in bytes, bytes a second or files: as all of its kind."""

    kind: str
    path: str
    weight: float
    text: str
    citation: Citation
    pid: int = 0
    program: str = ""
    descriptor: int = 0

    @property
    def actions(self) -> list[Action]:
        path = shlex.quote(self.path)
        if self.kind == "deleted":
            return [
                action(
                    f"See what pid {self.pid} ({self.program}) keeps open",
                    f"ls -l /proc/{self.pid}/fd/{self.descriptor}",
                    f"ps -o pid,user,lstart,args -p {self.pid}",
                ),
                action(
                    f"Have {self.program} close it: reload it or let it reopen its files; the space returns only then. "
                    "What is in the file is lost then: copy it first if it is needed",
                    f"stat -L /proc/{self.pid}/fd/{self.descriptor}",
                    risk=f"{self.program} may need a restart for it, which interrupts its work",
                    undo=False,
                ),
            ]
        if self.kind in ("grows", "file") and self.pid:
            return [
                action(
                    f"See what pid {self.pid} ({self.program}) writes",
                    f"tail -c 2000 {path}",
                    f"ps -o pid,user,lstart,args -p {self.pid}",
                ),
                action(
                    f"Have {self.program} write less (its log level, the job that writes), and make room by moving or "
                    "compressing what its owner does not need here",
                    risk="what is moved must not be in use",
                ),
            ]
        if self.kind == "file":
            return [
                action(
                    "See whose it is, and what it holds",
                    f"ls -l {path}",
                    f"file {path}",
                ),
                action(
                    "Make room with its owner: move or compress it",
                    risk="what is moved must not be in use",
                ),
            ]
        count = "-x --inodes" if self.kind == "entries" else "-xm"
        return [
            action(
                "See what is in it, and since when",
                f"du {count} -d 2 {path} 2>/dev/null | sort -n | tail -20",
                f"ls -lt {path} | head -20",
            ),
            action(
                "Make room with the owner of what is not needed there",
                risk="what is moved must not be in use",
            ),
        ]


@playbook("host", "disk", "inodes", "process")
def host_space(tickets: Tickets, context: Context) -> Note:
    """A file system runs out of space or inodes: what fills it. A process that ended for it is explained as well."""
    full = tickets_of(tickets, "disk", "inodes")
    if not full:
        return None
    mount = text_fact(full[0], "mount", full[0].key.component)
    own = [one for one in full if text_fact(one, "mount", one.key.component) == mount]
    victims = [
        (one, told)
        for one in tickets_of(tickets, "process")
        if (told := ended_for(context, one, NO_SPACE)) is not None
    ]
    inodes = all(one.key.invariant == "inodes" for one in own)
    what = "inodes" if inodes else "space"
    row = line_starting(context, "File systems", f"{mount}  ")
    fillers = _fillers(context, mount, own, inodes)
    if not fillers:
        return _full_of_unknown(own, context, mount, what, row)
    first, shown = fillers[0], "; ".join(one.text for one in fillers)
    tie = " (alike: nothing tells which is the first)" if len(fillers) > 1 else ""
    return write_note(
        [*own, *(one for one, _ in victims)],
        summary=f"{mount} runs out of {what}: {shown}.",
        cause=f"the {what} of {mount} goes to {shown}{tie}",
        cited=[*(one.citation for one in fillers), row],
        verdict="identified" if first.kind in ("grows", "deleted") else "suspected",
        confidence=(
            "high" if first.kind in ("grows", "deleted") and not tie else "medium"
        ),
        reason="what takes the most is measured now; why it does is not known",
        findings=[
            *(
                finding(f"{one.key.component} ended for it", told.citation)
                for one, told in victims
            ),
            *(
                finding("what else is large", line)
                for line in _others(context, mount, fillers)
            ),
        ],
        actions=[one for filler in fillers for one in filler.actions],
        risks=["Writes fail once nothing is left; databases may stop."],
        missing=["Why it is written, and whether its owner needs it."],
    )


def _full_of_unknown(
    own: Sequence[Ticket],
    context: Context,
    mount: str,
    what: str,
    row: Citation | None,
) -> Note:
    count = "-x --inodes" if what == "inodes" else "-xm"
    gap = next(
        (
            Citation(evidence_id=number, quote=bounded(text))
            for number, text in titled_lines(context, f"What fills {mount}")
            if text.startswith("unaccounted: ")
        ),
        None,
    )
    return write_note(
        own,
        summary=f"{mount} runs out of {what}; no single file or folder stands out.",
        cause=f"{mount} has hardly any {what} left; what fills it is not known yet",
        cited=[row or own_line(context, own[0], "message: "), gap],
        confidence="low",
        reason="the use is measured, its owner is not",
        actions=[
            action(
                "See which folders hold the most",
                f"du {count} {shlex.quote(mount)} 2>/dev/null | sort -n | tail -20",
            ),
            action("See deleted files that are still held open", "lsof -nP +L1"),
        ],
        risks=["Writes fail once nothing is left; databases may stop."],
        missing=["Which files grow."],
    )


def _fillers(
    context: Context, mount: str, own: Sequence[Ticket], inodes: bool
) -> list[Filler]:
    """Return what fills a mount most, with what is alike: what grows or is held first, then what is large."""
    if inodes:
        return _alike(list(_entries(context, mount)))
    used = next(filter(None, (number_fact(one, "used_bytes") for one in own)), 0.0)
    free = number_fact(own[0], "free_bytes") or 0.0
    deleted = [
        one for one in _held(context, mount, _DELETED) if one.weight > used * 0.2
    ]
    growing = [
        one
        for one in _held(context, mount, _GROWS)
        if one.weight * 3600 > free or _size(one.citation.quote, ", now ") > used * 0.1
    ]
    files = [one for one in _large(context, mount) if one.weight > used * 0.25]
    kinds = [deleted, growing, files, _folders(context, mount, used)]
    return next((_alike(kind) for kind in kinds if kind), [])


def _alike(fillers: list[Filler]) -> list[Filler]:
    fillers.sort(key=lambda one: -one.weight)
    return [one for one in fillers if one.weight >= fillers[0].weight * ALIKE][:3]


def _held(context: Context, mount: str, pattern: re.Pattern[str]) -> Iterator[Filler]:
    for evidence_id, line in titled_lines(context, f"Open files on {mount}"):
        match = pattern.fullmatch(line)
        if match is None:
            continue
        who = f"{match['program']} (pid {match['pid']})"
        deleted = pattern is _DELETED
        text = (
            f"{who} holds a deleted file open, {match['path']} of {match['size']}"
            if deleted
            else f"{who} writes {match['rate']}/s to {match['path']}, {match['size']} so far"
        )
        yield Filler(
            "deleted" if deleted else "grows",
            match["path"],
            parse_size(match["size"] if deleted else match["rate"]),
            text,
            Citation(evidence_id=evidence_id, quote=bounded(line)),
            int(match["pid"]),
            match["program"],
            int(match["fd"]) if deleted else 0,
        )


def _large(context: Context, mount: str) -> Iterator[Filler]:
    """Yield the large files, with who writes to them."""
    writers = {
        match["path"]: match
        for _, line in titled_lines(context, f"Open files on {mount}")
        if (match := _OPEN.fullmatch(line))
    }
    seen = set()
    for title, pattern in (("What fills", _FILE), ("Open files on", _OPEN)):
        for evidence_id, line in titled_lines(context, f"{title} {mount}"):
            match = pattern.fullmatch(line)
            if match is None or match["path"] in seen:
                continue
            seen.add(match["path"])
            writer = writers.get(match["path"])
            by = (
                f", open in {writer['program']} (pid {writer['pid']})" if writer else ""
            )
            yield Filler(
                "file",
                match["path"],
                parse_size(match["size"]),
                f"the file {match['path']} of {match['size']}{by}",
                Citation(evidence_id=evidence_id, quote=bounded(line)),
                int(writer["pid"]) if writer else 0,
                writer["program"] if writer else "",
            )


def _folders(context: Context, mount: str, used: float) -> list[Filler]:
    """Return the deepest folder that holds a third of what is used, at least."""
    found = [
        Filler(
            "folder",
            match["path"],
            parse_size(match["size"]),
            f"the folder {match['path']} with {match['size']}",
            Citation(evidence_id=evidence_id, quote=bounded(line)),
        )
        for evidence_id, line in titled_lines(context, f"What fills {mount}")
        if (match := _FOLDER.fullmatch(line))
    ]
    large = [one for one in found if one.weight > used * 0.33]
    return [
        one
        for one in large
        if not any(other.path.startswith(one.path + "/") for other in large)
    ]


def _entries(context: Context, mount: str) -> Iterator[Filler]:
    for evidence_id, line in titled_lines(context, f"What fills {mount}"):
        if match := _ENTRIES.fullmatch(line):
            yield Filler(
                "entries",
                match["path"],
                float(match["count"].replace(",", "")),
                f"the folder {match['path']} with {match['count']} files",
                Citation(evidence_id=evidence_id, quote=bounded(line)),
            )


def _others(context: Context, mount: str, fillers: Sequence[Filler]) -> list[Citation]:
    """Return lines on what is large besides the first: a person may prefer to make room there."""
    known = {one.citation.quote for one in fillers}
    return [
        Citation(evidence_id=evidence_id, quote=bounded(line))
        for evidence_id, line in titled_lines(context, f"What fills {mount}")
        if line.startswith(("file: ", "unaccounted: ")) and bounded(line) not in known
    ][:2]


def _size(text: str, after: str) -> float:
    found = re.match(r"[\d.]+ [kMGTP]?B", text.partition(after)[2])
    return parse_size(found[0]) if found else 0.0
