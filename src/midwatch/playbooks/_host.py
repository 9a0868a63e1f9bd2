"""First aid for the kind `host` (pure)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from midwatch.answer import Citation, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks._lines import lines, measured, starting
from midwatch.playbooks.base import bounded
from midwatch.playbooks.drafting import step, word, write


class HostSpace:
    """A file system runs out of space or inodes."""

    kind = "host"
    invariants: Sequence[str] = ("disk", "inodes")

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        mounts = list(dict.fromkeys(word(ticket, "mount") for ticket in tickets))
        rows = [starting(context, "File systems", f"{mount}  ") for mount in mounts]
        inodes = tickets[0].key.invariant == "inodes"
        what = "inodes" if inodes else "space"
        place = shlex.quote(mounts[0])
        biggest = (
            f"du -x --inodes {place} 2>/dev/null | sort -n | tail -20"
            if inodes
            else f"du -xm {place} 2>/dev/null | sort -n | tail -20"
        )
        return write(
            tickets,
            summary=f"{', '.join(mounts)} runs out of {what}.",
            cause=f"{', '.join(mounts)} has hardly any {what} left; what fills it is not seen yet",
            cited=rows,
            verdict="suspected",
            confidence="medium",
            reason="the use is measured, its owner is not",
            actions=[
                step("See which directories hold the most", biggest),
                step("See deleted files that are still held open", "lsof -nP +L1"),
                step(
                    "Let the journal keep less, if that is it",
                    "journalctl --vacuum-size=200M",
                    risk="older log lines are gone",
                    undo=False,
                ),
            ],
            risks=["Writes fail once nothing is left; databases may stop."],
            missing=["Which files grow."],
        )


class HostPressure:
    """Memory, swap or processors: the process that uses most is the first suspect."""

    kind = "host"
    invariants: Sequence[str] = ("memory", "swap", "load")

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        busy = all(ticket.key.invariant == "load" for ticket in tickets)
        top = _first_of(context, "by processor:" if busy else "by memory:")
        if top is None:
            return None
        pid, name, *_ = top.quote.split()
        uses = top.quote.split()[-3] if busy else " ".join(top.quote.split()[-2:])
        what = "processor time" if busy else "memory"
        return write(
            tickets,
            summary=f"{tickets[0].message}. {name} (pid {pid}) uses most {what}: {uses}.",
            cause=f"{name} (pid {pid}) uses more {what} than any other process: {uses}",
            cited=[top],
            verdict="suspected",
            confidence="low",
            reason="the largest user is seen; whether it grew is not",
            readings=[
                measured(context, "Memory", "available share"),
                measured(context, "Load", "processors"),
            ],
            actions=[
                step(
                    "See what it is and since when it runs",
                    f"ps -o pid,ppid,user,lstart,rss,pcpu,args -p {int(pid)}",
                ),
                step(
                    "See whether the kernel killed something for memory",
                    "journalctl -k --since '-1h' | grep -i 'out of memory'",
                ),
                step(
                    "Restart it if it is a service that can be",
                    risk="its work in progress is lost",
                    undo=False,
                ),
            ],
            risks=["The kernel may kill a process to get memory."] if not busy else [],
            missing=["How its use developed."],
        )


class HostProcess:
    """A process that must run does not."""

    kind = "host"
    invariants: Sequence[str] = ("process",)

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        names = [ticket.key.component for ticket in tickets]
        cited = [
            starting(context, "Processes that must run", f"{name}:") for name in names
        ]
        service = shlex.quote(names[0].strip("/"))
        return write(
            tickets,
            summary=f"Too few processes run: {', '.join(names)}.",
            cause=f"too few processes {', '.join(names)} run; why they ended is not seen yet",
            cited=cited,
            verdict="suspected",
            confidence="medium",
            reason="the processes were counted; why they ended is not known",
            actions=[
                step(
                    "See how its service ended",
                    f"systemctl status -- {service}",
                    f"journalctl -u {service} -n 100",
                ),
                step(
                    "Start it again",
                    f"systemctl restart -- {service}",
                    risk="it may fail again for the same reason",
                ),
            ],
            missing=["The end of its log."],
        )


def _first_of(context: Context, heading: str) -> Citation | None:
    """The first row of the table of processes under a heading."""
    below = False
    for evidence_id, text in lines(context, "Top processes"):
        if below and text.split()[:1] and text.split()[0].isdigit():
            return Citation(evidence_id=evidence_id, quote=bounded(text))
        below = text == heading or (below and text.startswith("pid "))
    return None
