"""First aid for the kinds `host`, `http`, `prometheus` and `command`.

These subjects mostly observe a symptom: a note cites the line that shows it, names the first suspect
where the evidence has one, and says what to check next.
"""

from __future__ import annotations

import re
import shlex

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Playbook,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    line_starting,
    matching_line,
    measured,
    playbook,
    text_fact,
    write_note,
)
from midwatch.units import parse_duration

# ------------------------------------------------------------------ host


@playbook("host", "disk", "inodes")
def host_space(tickets: Tickets, context: Context) -> Note:
    """A file system runs out of space or inodes."""
    mounts = list(dict.fromkeys(text_fact(ticket, "mount") for ticket in tickets))
    rows = [line_starting(context, "File systems", f"{mount}  ") for mount in mounts]
    inodes = tickets[0].key.invariant == "inodes"
    what = "inodes" if inodes else "space"
    quoted = shlex.quote(mounts[0])
    usage = "du -x --inodes" if inodes else "du -xm"
    return write_note(
        tickets,
        summary=f"{', '.join(mounts)} runs out of {what}.",
        cause=f"{', '.join(mounts)} has hardly any {what} left; what fills it is not known yet",
        cited=rows,
        reason="the use is measured, its owner is not",
        actions=[
            action(
                "See which directories hold the most",
                f"{usage} {quoted} 2>/dev/null | sort -n | tail -20",
            ),
            action("See deleted files that are still held open", "lsof -nP +L1"),
            action(
                "Shrink the systemd journal if it takes the space",
                "journalctl --vacuum-size=200M",
                risk="older log lines are gone",
                undo=False,
            ),
        ],
        risks=["Writes fail once nothing is left; databases may stop."],
        missing=["Which files grow."],
    )


@playbook("host", "memory", "swap", "load")
def host_pressure(tickets: Tickets, context: Context) -> Note:
    """Memory, swap or processors: the process that uses most is the first suspect."""
    busy = all(ticket.key.invariant == "load" for ticket in tickets)
    top = _first_of(context, "by processor:" if busy else "by memory:")
    if top is None:
        return None
    pid, name, *_ = top.quote.split()
    uses = top.quote.split()[-3] if busy else " ".join(top.quote.split()[-2:])
    what = "processor time" if busy else "memory"
    return write_note(
        tickets,
        summary=f"{tickets[0].message}. {name} (pid {pid}) uses most {what}: {uses}.",
        cause=f"{name} (pid {pid}) uses more {what} than any other process: {uses}",
        cited=[top],
        confidence="low",
        reason="the largest user is known; whether it grew is not",
        readings=[
            measured(context, "Memory", "available share"),
            measured(context, "Load", "processors"),
        ],
        actions=[
            action(
                "See what it is and when it started",
                f"ps -o pid,ppid,user,lstart,rss,pcpu,args -p {int(pid)}",
            ),
            action(
                "See whether the kernel killed something for memory",
                "journalctl -k --since '-1h' | grep -i 'out of memory'",
            ),
            action(
                "Restart it if it is a service that can be restarted",
                risk="its work in progress is lost",
                undo=False,
            ),
        ],
        risks=["The kernel may kill a process to get memory."] if not busy else [],
        missing=["How its use changed over time."],
    )


@playbook("host", "process")
def host_process(tickets: Tickets, context: Context) -> Note:
    """A required process does not run."""
    names = [ticket.key.component for ticket in tickets]
    cited = [
        line_starting(context, "Processes that must run", f"{name}:") for name in names
    ]
    service = shlex.quote(names[0].strip("/"))
    return write_note(
        tickets,
        summary=f"Too few processes run: {', '.join(names)}.",
        cause=f"too few processes {', '.join(names)} run; why they ended is not known yet",
        cited=cited,
        reason="the processes were counted; why they ended is not known",
        actions=[
            action(
                "See how its service ended",
                f"systemctl status -- {service}",
                f"journalctl -u {service} -n 100",
            ),
            action(
                "Start it again",
                f"systemctl restart -- {service}",
                risk="it may fail again for the same reason",
            ),
        ],
        missing=["The end of its log."],
    )


def _first_of(context: Context, heading: str) -> Citation | None:
    """Return the first row of the table of processes under a heading."""
    below = False
    for evidence_id, text in evidence_lines(context, "Top processes"):
        if below and text.split()[:1] and text.split()[0].isdigit():
            return Citation(evidence_id=evidence_id, quote=bounded(text))
        below = text == heading or (below and text.startswith("pid "))
    return None


# ------------------------------------------------------------------ http

_CAUSES = {
    "dns": ("its host name has no address", "dig +short {host}"),
    "refused": ("nothing listens on its port", "ss -ltnp"),
    "timeout": ("it does not answer in time", "curl -sv -m 20 -o /dev/null {url}"),
    "tls": ("the TLS handshake fails", "openssl s_client -connect {host}:443"),
    "network": ("the connection cannot be made or breaks", "mtr -rwc 5 {host}"),
    "protocol": (
        "what answers does not speak HTTP",
        "curl -sv -m 20 -o /dev/null {url}",
    ),
}


@playbook("http", "reachable")
def http_outage(tickets: Tickets, context: Context) -> Note:
    """A server that does not answer."""
    url = text_fact(tickets[0], "url", tickets[0].key.component)
    kind = text_fact(tickets[0], "cause")
    problem, command = _CAUSES.get(kind, ("it does not answer", "curl -sv -m 20 {url}"))
    host = re.sub(r"^\w+://|[:/].*$", "", url)
    now = line_starting(context, f"{url} now", "message: ")
    recovered = line_starting(context, f"{url} now", "status: ")
    if now is None and recovered is not None:
        problem = "it did not answer for a while, and does now"
    return write_note(
        tickets,
        summary=f"{url} is not reachable: {problem}.",
        cause=f"{url}: {problem}",
        cited=[now or recovered],
        confidence="medium" if now else "low",
        reason="the failure is observed from here only; its cause is on the server's side",
        findings=[
            finding(
                "what the name resolves to",
                matching_line(
                    context,
                    "Addresses of",
                    lambda text: "address" in text or "failed" in text,
                ),
            )
        ],
        actions=[
            action(
                "Send a request from this machine",
                command.format(host=shlex.quote(host), url=shlex.quote(url)),
            ),
            action("Check the service and its log on its own machine"),
        ],
        missing=["Whether others reach it.", "The log of the service."],
    )


_CERTIFICATE_ACTIONS = {
    "certificate_expiry": (
        action(
            "See why its renewal did not run",
            "systemctl list-timers '*certbot*' '*acme*'",
            "certbot certificates",
        ),
        action(
            "Renew it and let the server load it",
            risk="the reload may drop connections",
        ),
    ),
    "certificate_name": (
        action("See which name the clients use, and where it points to"),
        action(
            "Have the server show the certificate for this name, or issue one with it",
            risk="the reload may drop connections",
        ),
    ),
    "certificate_valid": (
        action(
            "See which certificates the server sends: an intermediate one may be missing",
            "openssl s_client -showcerts -connect {place} </dev/null",
        ),
        action(
            "Have the server send its whole chain, signed by an authority that the clients trust",
            risk="the reload may drop connections",
        ),
    ),
}


@playbook("http", *_CERTIFICATE_ACTIONS)
def http_certificate(tickets: Tickets, context: Context) -> Note:
    """A certificate that is refused, or expires soon."""
    title = "Certificates of"
    verdict = line_starting(context, title, "verification: ")
    at = text_fact(tickets[0], "not_after").replace("T", " ")[:19]
    end = line_starting(context, title, f"not after: {at}")
    refused = verdict is not None and "not accepted" in verdict.quote
    what = verdict.quote.partition(": ")[2] if verdict and refused else "ends soon"
    actions = _CERTIFICATE_ACTIONS[tickets[0].key.invariant]
    place = re.sub(r"^\w+://|/.*$", "", tickets[0].key.component)
    place = place if re.search(r":\d+$", place) else f"{place}:443"
    return write_note(
        tickets,
        summary=f"{tickets[0].message}.",
        cause=f"the certificate: {what}",
        cited=[verdict, end] if refused else [end],
        verdict="identified",
        confidence="high",
        reason="the certificate itself was read",
        findings=[
            finding(
                "the names in it and its issuer",
                line_starting(context, title, "names: "),
                line_starting(context, title, "issuer: "),
            )
        ],
        actions=[
            one.model_copy(
                update={
                    "commands": [
                        command.replace("{place}", shlex.quote(place))
                        for command in one.commands
                    ]
                }
            )
            for one in actions
        ],
        risks=["Clients refuse to connect."],
    )


@playbook("http", "status", "body")
def http_answer(tickets: Tickets, context: Context) -> Note:
    """A wrong status, or a wrong body."""
    url = text_fact(tickets[0], "url", tickets[0].key.component)
    now = line_starting(context, f"{url} now", "status: ")
    status = text_fact(tickets[0], "status")
    problem = (
        "the server or something behind it fails"
        if status.startswith("5")
        else "the server does not accept this request"
    )
    if not status.startswith(("4", "5")):
        problem = "it answers, but not with what is expected"
    return write_note(
        tickets,
        summary=f"{tickets[0].message}.",
        cause=f"{url}: {problem}",
        cited=[now],
        confidence="low",
        reason="the answer is known; its cause is in the server's own log",
        actions=[
            action("Send the request by hand", f"curl -sv -m 20 {shlex.quote(url)}"),
            action("Read the log of the service at the time of the ticket"),
            action("See what was deployed or configured shortly before"),
        ],
        missing=["The log of the service."],
    )


_PHASES = {
    "connect": "making the connection: DNS lookup, network or a full listen queue",
    "tls": "the TLS handshake",
    "send": "sending the request",
    "first byte": "the server, before the first byte of its answer",
}


@playbook("http", "latency")
def http_latency(tickets: Tickets, context: Context) -> Note:
    """A slow answer: which phase takes the time."""
    url = text_fact(tickets[0], "url", tickets[0].key.component)
    spent: list[tuple[float, str, Citation]] = []
    for phase in _PHASES:
        found = line_starting(context, f"{url} now", f"{phase}: ")
        seconds = _seconds(found.quote.partition(": ")[2]) if found else None
        if found is not None and seconds is not None:
            spent.append((seconds, phase, found))
    if not spent:
        return None
    _, phase, cited = max(spent, key=lambda item: item[0])
    return write_note(
        tickets,
        summary=f"{tickets[0].message}; most of it now goes to: {_PHASES[phase]}.",
        cause=f"most of the time goes to {_PHASES[phase]}",
        cited=[cited],
        confidence="low",
        reason="one request was measured, after the fact",
        readings=[measured(context, f"{url} now", "total")],
        actions=[
            action(
                "Measure again",
                f"curl -s -o /dev/null -w '%{{time_connect}} %{{time_starttransfer}} %{{time_total}}\\n' {shlex.quote(url)}",
            ),
            action("Check the load and the slow queries of the service"),
        ],
        missing=["What the server does in that time."],
    )


def _seconds(text: str) -> float | None:
    try:
        return parse_duration(text)
    except ValueError:
        return None


# ------------------------------------------------------------------ prometheus and command


@playbook("prometheus")
def prometheus_alert(tickets: Tickets, context: Context) -> Note:
    """An alert, or a rule of the settings: the series that broke it, and targets that are down."""
    # The one that counts the rest of a storm has neither labels nor a rule.
    named = [one for one in tickets if one.key.invariant != "alert"] or tickets
    first = named[0]
    shown = [_series(ticket, context) for ticket in named[:5]]
    down = next(filter(None, (_down(one, context) for one in tickets)), None)
    title = f"Definition of {first.key.invariant}"
    rule = line_starting(context, title, "expr: ")
    about = first.message
    cause = (
        f"a target cannot be scraped: {down.quote}"
        if down
        else f"the expression of {first.key.invariant} holds for "
        f"{first.key.component}; its cause is not known"
    )
    return write_note(
        tickets,
        summary=f"{about}." + (f" {down.quote}" if down else ""),
        cause=cause,
        cited=[down] if down else [*shown, rule],
        confidence="medium" if down else "low",
        reason="the series are known, the system behind them is not",
        findings=[
            finding("what is broken", *shown),
            finding("the expression of the rule", rule),
        ],
        actions=[
            action("Check the series over a longer time in Prometheus"),
            action("Check the component that the labels name, and its log"),
        ],
        missing=["The log of the component."],
    )


def _series(ticket: Ticket, context: Context) -> Citation | None:
    name = ticket.key.invariant
    labels = ticket.key.component.split(", ")

    def names(text: str) -> bool:
        return all(label in text for label in labels)

    if not name.startswith("alert:"):
        return matching_line(context, f"{name}: values now", names)
    alert = text_fact(ticket, "alertname", name.removeprefix("alert:"))
    return matching_line(
        context,
        "Firing and pending alerts",
        lambda text: f" {alert} since " in text and (names(text) or alert in labels),
    )


def _down(ticket: Ticket, context: Context) -> Citation | None:
    instance = text_fact(ticket, "label_instance")
    if not instance:
        return None
    wanted = re.compile(rf"(?:^|[ ,])instance={re.escape(instance)}(?:[,:]|$)")
    return matching_line(
        context,
        "Scrape targets that are down",
        lambda text: text.startswith("down ") and wanted.search(text) is not None,
    )


@playbook("command")
def command_report(tickets: Tickets, context: Context) -> Note:
    """A violation that the user's own command reports."""
    cited = [_report(ticket, context) for ticket in tickets[:5]]
    return write_note(
        tickets,
        summary=f"{tickets[0].message}.",
        cause=f"the command reports {tickets[0].key.invariant} for {tickets[0].key.component}; it "
        "does not report the cause",
        cited=cited,
        confidence="low",
        reason="the command was run again and reports the same",
        actions=[action("Run the command by hand and follow what it names")],
        missing=["The cause of what it reports."],
    )


def _report(ticket: Ticket, context: Context) -> Citation | None:
    wanted = f" {ticket.key.invariant} {ticket.key.component}: "
    return matching_line(context, "reports now", lambda text: wanted in text)


PLAYBOOKS: tuple[Playbook, ...] = (
    host_space,
    host_pressure,
    host_process,
    http_outage,
    http_certificate,
    http_answer,
    http_latency,
    prometheus_alert,
    command_report,
)
