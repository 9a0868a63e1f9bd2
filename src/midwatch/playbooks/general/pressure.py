"""First aid for the kind `host`: who uses the memory or the processors."""

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
    evidence_lines,
    finding,
    line_starting,
    measured,
    playbook,
    tickets_of,
    write_note,
)
from midwatch.playbooks.general.process_end import NO_MEMORY, ended_for
from midwatch.units import parse_size


@playbook("host", "memory", "swap", "load", "process")
def host_pressure(tickets: Tickets, context: Context) -> Note:
    """Memory, swap or processors: what uses most. A process that was killed for memory is explained as well."""
    own = tickets_of(tickets, "memory", "swap", "load")
    if not own:
        return None
    if all(one.key.invariant == "load" for one in own):
        return _load(own, context)
    first = tickets_of(own, "memory", "swap")
    victims = [
        one
        for one in tickets_of(tickets, "process")
        if ended_for(context, one, NO_MEMORY) is not None
    ]
    users = _memory_users(context)
    if not users:
        return None
    named, tie = _named(users)
    killed = line_starting(context, "Memory of control groups", "processes killed")
    return write_note(
        [*own, *victims],
        summary=f"{first[0].message}. Most is used by {named}.",
        cause=f"{named} uses most of the memory{tie}",
        cited=[one.citation for one in users],
        confidence="low" if tie else "medium",
        reason="the largest users are measured now, and their growth only over a moment",
        findings=[finding("the kernel killed processes for memory", killed)],
        readings=[measured(context, "Memory", "available share")],
        actions=[
            *(one.action for one in users if one.action is not None),
            action(
                "See whether the kernel killed something for memory",
                "journalctl -k --since '-1h' | grep -i 'out of memory'",
            ),
            action(
                "Ask the owner of what uses most whether that is expected, and limit it there",
                risk="at its limit it slows down or fails",
            ),
        ],
        risks=["The kernel may kill a process to get memory."],
        missing=["How the use changed over time."],
    )


@dataclass(frozen=True, slots=True)
class User:
    """What uses memory (in bytes) or processor time (in percent)."""

    text: str
    amount: float
    citation: Citation
    action: Action | None = None


def _memory_users(context: Context) -> list[User]:
    """Return the largest user of memory, with what is alike: programs, and what belongs to no process."""
    found = list(_programs(context, "by memory:"))
    for name in (
        "shared memory and files in tmpfs",
        "kernel memory that cannot be freed",
        "reserved huge pages",
    ):
        line = line_starting(context, "Memory", f"{name}: ")
        if line is not None:
            command = (
                "df -h -t tmpfs"
                if "tmpfs" in name
                else "grep -E 'Slab|Huge' /proc/meminfo"
            )
            found.append(
                User(
                    line.quote.replace(": ", " with "),
                    parse_size(line.quote.partition(": ")[2]),
                    line,
                    action(f"See what holds {name}", command),
                )
            )
    return _largest(found)


def _programs(context: Context, heading: str) -> Iterator[User]:
    """Yield the rows of a table of programs: pid, name, user, cpu, resident, processes, growth, age."""
    below = False
    for evidence_id, text in evidence_lines(context, "Top processes"):
        cells = re.split(r"\s{2,}", text)
        if below and len(cells) == 8 and cells[0].isdigit():
            pid, name, _, cpu, resident, count, grows, age = cells
            many = f" in {count} processes" if count != "1" else f" (pid {pid})"
            grown = f", growing {grows}" if grows != "-" else ""
            busy = heading == "by processor:"
            yield User(
                f"{name}{many} with {cpu if busy else resident}{grown}, started {age} ago",
                float(cpu.rstrip("%")) if busy else parse_size(resident),
                Citation(evidence_id=evidence_id, quote=bounded(text)),
                action(
                    f"See what {name} is, and when it started",
                    (
                        f"ps -o pid,ppid,user,lstart,rss,pcpu,args -p {pid}"
                        if count == "1"
                        else f"ps -o pid,ppid,user,lstart,rss,pcpu,args -C {shlex.quote(name)}"
                    ),
                ),
            )
        below = text == heading or (below and text.startswith(("pid ", *"0123456789")))


def _largest(users: list[User]) -> list[User]:
    users.sort(key=lambda one: -one.amount)
    return [one for one in users if one.amount >= users[0].amount * ALIKE][:3]


def _named(users: Sequence[User]) -> tuple[str, str]:
    tie = " (alike: nothing tells which is the first)" if len(users) > 1 else ""
    return "; ".join(one.text for one in users), tie


def _load(own: Sequence[Ticket], context: Context) -> Note:
    """Load is made by what runs, and by what waits for a device: that needs other advice."""
    title = "Load and processors"
    waiting = [
        Citation(evidence_id=number, quote=bounded(text))
        for number, text in evidence_lines(context, title)
        if text.startswith("waits for a device: ")
    ]
    users = _largest(list(_programs(context, "by processor:")))
    idle = line_starting(context, title, "cpu user ")
    if len(waiting) > 2 or not users or not users[0].amount:
        names = ", ".join(
            one.quote.removeprefix("waits for a device: ") for one in waiting[:3]
        )
        return write_note(
            own,
            summary=f"{own[0].message}: processes wait for a disk or another device.",
            cause=(
                f"{len(waiting)} processes wait for a device, among them {names}"
                if waiting
                else "nothing that runs now explains the load; it may have passed"
            ),
            cited=waiting[:3] or [idle],
            confidence="medium" if waiting else "low",
            reason="the state of the processes is measured now",
            findings=[finding("how busy the processors are", idle)],
            actions=[
                action(
                    "See which disk is slow or gone",
                    "iostat -xz 1 3",
                    "journalctl -k --since '-1h'",
                ),
                action(
                    "See whether a network file system lost its server",
                    "findmnt -t nfs,nfs4,cifs,fuse",
                ),
            ],
            missing=["Which device they wait for."],
        )
    named, tie = _named(users)
    return write_note(
        own,
        summary=f"{own[0].message}. {named} uses most processor time.",
        cause=f"{named} uses more processor time than any other program{tie}",
        cited=[one.citation for one in users],
        confidence="low" if tie else "medium",
        reason="the use is measured now; the load is an average of five minutes",
        findings=[finding("how busy the processors are", idle)],
        readings=[measured(context, title, "processors")],
        actions=[
            *(one.action for one in users if one.action is not None),
            action(
                "Ask its owner whether that work is expected now, and whether it can wait"
            ),
        ],
        missing=["How its use changed over time."],
    )
