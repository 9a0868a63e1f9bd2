"""First aid for the kind `host`: how a process ended, by the kernel, its log and its unit."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    line_starting,
    own_line,
    playbook,
    text_fact,
    titled_lines,
    write_note,
)
from midwatch.playbooks.symptoms import Told, ranked, ties

_LAST = 15  # lines of a log: what is further back did not end the process
NO_SPACE, NO_MEMORY = "no space is left on a file system", "memory ran out"


@playbook("host", "process")
def host_process(tickets: Tickets, context: Context) -> Note:
    """A required process does not run: how it ended, by the kernel, its log and its unit."""
    ticket = tickets[0]
    name = ticket.key.component
    unit = text_fact(ticket, "unit")
    if any(
        ": not known, " in text for _, text in titled_lines(context, f"Unit of {name}")
    ):
        unit = ""  # no systemd here, so no command for it
    counted = line_starting(context, "Processes that must run", f"{name}:") or own_line(
        context, ticket, "message: "
    )
    told = ties(_told(context, ticket))
    state = _state(context, name)
    port = _port_holder(context, told)
    unit_says = _unit_says(state)
    causes = [one.text for one in told]
    cited = [one.citation for one in told]
    if port is not None:
        causes.append(port.quote)
        cited.append(port)
    if unit_says is not None and (not told or unit_says[2]):
        causes.insert(0, unit_says[0])
        cited.insert(0, unit_says[1])
    zombie = _zombie(context, name)
    if zombie is not None:
        causes.append(
            "it has ended, and the process that started it does not collect it"
        )
        cited.append(zombie)
    also = " or ".join(causes) if len(told) > 1 else "; ".join(causes)
    return write_note(
        [ticket],
        summary=f"{ticket.message}"
        + (f": {also}." if also else ". Why is not known yet."),
        cause=(
            f"{name} does not run: {also}"
            if also
            else f"{name} does not run; why it ended is not known yet"
        ),
        cited=cited or [counted],
        confidence="low" if not cited or len(told) > 1 else "medium",
        reason=(
            "it is what its unit, its log or the kernel says last"
            if cited
            else "the processes were counted; why they ended is not known"
        ),
        findings=[
            finding("how many run", counted),
            finding("how it ended", unit_says[1] if unit_says else None),
        ],
        actions=[
            *_reading_actions(ticket, unit),
            *(one.symptom.advice() for one in told),
            *_starting(unit, bool(cited), unit_says is not None and unit_says[3]),
        ],
        missing=[] if cited else ["The end of its log."],
    )


def _zombie(context: Context, name: str) -> Citation | None:
    """Return the line about a process of this name that is a zombie."""
    below = False
    for number, text in titled_lines(context, "Processes that must run"):
        if not text.startswith("pid "):
            below = text.startswith(f"{name}:")
        elif below and " zombie, " in text:
            return Citation(evidence_id=number, quote=bounded(text))
    return None


def _reading_actions(ticket: Ticket, unit: str) -> list[Action]:
    logs = re.split(r", (?=/)", text_fact(ticket, "log_files"))
    commands = [f"tail -n 100 {shlex.quote(path)}" for path in logs if path]
    if unit:
        quoted = shlex.quote(unit)
        commands = [
            f"systemctl status -- {quoted}",
            f"journalctl -u {quoted} -n 100 --no-pager",
            *commands,
        ]
    if commands:
        return [action("See how it ended", *commands)]
    return [
        action(
            "See how it is started here (its unit, container or supervisor), and the end of its log: Midwatch has seen "
            "neither. `unit` and `log_files` in the settings name them"
        )
    ]


def _starting(unit: str, known: bool, stopped: bool) -> list[Action]:
    if stopped:
        return [
            action(
                "Ask who stopped it, and why, before it is started again",
                f"journalctl -u {shlex.quote(unit)} -n 20 --no-pager",
            )
        ]
    what = "Start it once that is fixed" if known else "Start it again"
    commands = [f"systemctl start -- {shlex.quote(unit)}"] if unit else []
    return [action(what, *commands, risk="it may fail again for the same reason")]


def _told(context: Context, ticket: Ticket) -> list[Told]:
    """Return what the kernel and the log say of the end of a process, ranked."""
    name, pid = ticket.key.component.strip("/"), text_fact(ticket, "last_pid")
    short, number = re.escape(name[:15]), pid or r"\d+"
    of_it = re.compile(
        rf"Killed process {number} \({short}\)|\b{short}\[{number}\]|traps: {short}\b"
    )
    kernel = [
        line
        for line in evidence_lines(context, "The kernel's log")
        if of_it.search(line[1])
    ]
    if kernel and (found := ranked(kernel[-3:], [name])):
        return found[:1]
    lines = [
        (number, text)
        for number, text in titled_lines(context, f"Log of {ticket.key.component}")
        if text.startswith("| ")
    ]
    return ranked(lines[-_LAST:])


def ended_for(context: Context, ticket: Ticket, symptom: str) -> Told | None:
    """Return the line that says that a process ended for this reason, or None."""
    told = _told(context, ticket)
    return told[0] if told and told[0].symptom.name == symptom else None


def _port_holder(context: Context, told: Sequence[Told]) -> Citation | None:
    """Return who listens on the port that a log calls taken."""
    for one in told:
        if "port is taken" not in one.symptom.name:
            continue
        for port in re.findall(r"[:\s](\d{2,5})\b", one.quote):
            found = line_starting(context, "Listening processes", f"port {port} on ")
            if found is not None:
                return found
    return None


def _state(context: Context, name: str) -> dict[str, Citation]:
    """Return the lines of the state of its unit, by property."""
    return {
        text.partition("=")[0]: Citation(evidence_id=number, quote=bounded(text))
        for number, text in titled_lines(context, f"Unit of {name}")
        if "=" in text
    }


_RESULTS = {
    "oom-kill": "the kernel killed it for memory",
    "core-dump": "it crashed and dumped core",
    "signal": "a signal ended it",
    "timeout": "it did not start or stop in time",
    "watchdog": "it no longer answered its watchdog",
    "start-limit-hit": "it failed so often that systemd does not start it any more",
    "exec-condition": "its condition does not hold",
    "resources": "systemd had no resources to start it",
    "protocol": "it did not report as its unit expects",
    "exit-code": "it ended with an error",
}


def _status(result: str, status: str) -> str:
    if result == "exit-code":
        return f"status {status}"
    try:
        name = signal.Signals(int(status)).name
    except ValueError:
        return f"signal {status}"
    if name == "SIGKILL":
        return "SIGKILL, sent by someone, or by the kernel for memory"
    return name


def _unit_says(state: dict[str, Citation]) -> tuple[str, Citation, bool, bool] | None:
    """Return what a unit says of its end, the line, whether it counts more than a log, and whether it was stopped."""

    def value(name: str) -> str:
        return state[name].quote.partition("=")[2] if name in state else ""

    if value("LoadState") in ("not-found", "masked", "bad-setting", "error"):
        what = "is masked" if value("LoadState") == "masked" else "cannot be loaded"
        return f"its unit {what}", state["LoadState"], True, False
    if value("ActiveState") == "inactive" and value("Result") == "success":
        disabled = (
            ", and its unit is disabled" if value("UnitFileState") == "disabled" else ""
        )
        text = f"it was stopped, or ended by itself without an error{disabled}"
        return text, state["ActiveState"], True, True
    result = value("Result")
    if result in _RESULTS:
        more = ""
        if result in ("exit-code", "signal"):
            more = f" ({_status(result, value('ExecMainStatus'))})"
        return f"{_RESULTS[result]}{more}", state["Result"], result == "oom-kill", False
    return None
