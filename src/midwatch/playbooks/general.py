"""First aid for the kinds `host`, `http`, `prometheus` and `command`.

What these subjects see is mostly the symptom: a note names the line that shows it, the first
suspect where the evidence has one, and what to look at next.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from midwatch.diagnosis_schema import Citation, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Playbook,
    bounded,
    finding,
    line,
    lines,
    measured,
    starting,
    step,
    word,
    write,
)
from midwatch.units import parse_duration

# ------------------------------------------------------------ host
# First aid for the kind `host` (pure).


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


# ------------------------------------------------------------ http
# First aid for the kind `http` (pure).

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


class HttpOutage:
    """No answer."""

    kind = "http"
    invariants: Sequence[str] = ("reachable",)

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        url = word(tickets[0], "url", tickets[0].key.component)
        kind = word(tickets[0], "cause")
        told, look = _CAUSES.get(kind, ("it does not answer", "curl -sv -m 20 {url}"))
        host = re.sub(r"^\w+://|[:/].*$", "", url)
        now = line(context, f"{url} now", lambda text: text.startswith("message: "))
        recovered = starting(context, f"{url} now", "status: ")
        if now is None and recovered is not None:
            told = "it did not answer for a while, and does now"
        return write(
            tickets,
            summary=f"{url} is not reachable: {told}.",
            cause=f"{url}: {told}",
            cited=[now or recovered],
            verdict="suspected",
            confidence="medium" if now else "low",
            reason="the failure is seen from here only; its cause is on the other side",
            findings=[
                finding(
                    "what the name resolves to",
                    line(
                        context,
                        "Addresses of",
                        lambda text: "address" in text or "failed" in text,
                    ),
                )
            ],
            actions=[
                step(
                    "Look from here",
                    look.format(host=shlex.quote(host), url=shlex.quote(url)),
                ),
                step("Look at the service and its log on its own machine"),
            ],
            missing=["Whether others reach it.", "The log of the service."],
        )


class HttpCertificate:
    """A certificate that is refused, or about to be."""

    kind = "http"
    invariants: Sequence[str] = ("certificate_valid", "certificate_expiry")

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        verdict = starting(context, "Certificate of", "verification: ")
        end = starting(context, "Certificate of", "not after: ")
        refused = verdict is not None and "not accepted" in verdict.quote
        what = verdict.quote.partition(": ")[2] if verdict and refused else "ends soon"
        return write(
            tickets,
            summary=f"{tickets[0].message}.",
            cause=f"the certificate: {what}",
            cited=[verdict, end] if refused else [end],
            confidence="high",
            reason="the certificate itself was read",
            findings=[
                finding(
                    "whom it names and who signed it",
                    starting(context, "Certificate of", "names: "),
                    starting(context, "Certificate of", "issuer: "),
                )
            ],
            actions=[
                step(
                    "See why its renewal did not run",
                    "systemctl list-timers '*certbot*' '*acme*'",
                    "certbot certificates",
                ),
                step(
                    "Renew it and let the server load it",
                    risk="the reload may drop connections",
                ),
            ],
            risks=["Clients refuse to connect."],
        )


class HttpAnswer:
    """A wrong status, or a wrong body."""

    kind = "http"
    invariants: Sequence[str] = ("status", "body")

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        url = word(tickets[0], "url", tickets[0].key.component)
        now = starting(context, f"{url} now", "status: ")
        status = word(tickets[0], "status")
        whose = (
            "the server or something behind it fails"
            if status.startswith("5")
            else "the server does not accept this request"
        )
        if not status.startswith(("4", "5")):
            whose = "it answers, but not with what is expected"
        return write(
            tickets,
            summary=f"{tickets[0].message}.",
            cause=f"{url}: {whose}",
            cited=[now],
            verdict="suspected",
            confidence="low",
            reason="the answer is seen; what led to it is in the server's own log",
            actions=[
                step("Ask it by hand", f"curl -sv -m 20 {shlex.quote(url)}"),
                step("Read the log of the service at the time of the ticket"),
                step("See what was deployed or configured shortly before"),
            ],
            missing=["The log of the service."],
        )


class HttpLatency:
    """A slow answer: which phase takes the time."""

    kind = "http"
    invariants: Sequence[str] = ("latency",)
    _phases = {
        "connect": "making the connection: name look-up, network or a full listen queue",
        "tls": "the TLS handshake",
        "send": "sending the request",
        "first byte": "the server, before the first byte of its answer",
    }

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        url = word(tickets[0], "url", tickets[0].key.component)
        spent: list[tuple[float, str, Citation]] = []
        for phase in self._phases:
            found = starting(context, f"{url} now", f"{phase}: ")
            seconds = _seconds(found.quote.partition(": ")[2]) if found else None
            if found is not None and seconds is not None:
                spent.append((seconds, phase, found))
        if not spent:
            return None
        _, phase, cited = max(spent, key=lambda item: item[0])
        return write(
            tickets,
            summary=f"{tickets[0].message}; most of it now goes to: {self._phases[phase]}.",
            cause=f"most of the time goes to {self._phases[phase]}",
            cited=[cited],
            verdict="suspected",
            confidence="low",
            reason="one request was measured, after the fact",
            readings=[measured(context, f"{url} now", "total")],
            actions=[
                step(
                    "Measure again",
                    f"curl -s -o /dev/null -w '%{{time_connect}} %{{time_starttransfer}} %{{time_total}}\\n' {shlex.quote(url)}",
                ),
                step("Look at the load and the slow queries of the service"),
            ],
            missing=["What the server does meanwhile."],
        )


def _seconds(text: str) -> float | None:
    try:
        return parse_duration(text)
    except ValueError:
        return None


# ------------------------------------------------------------ named
# First aid for the kinds `prometheus` and `command`, whose invariants have names of their own (pure).


class Every(tuple[str, ...]):
    """Stands for all invariants of a kind whose subject names them itself."""

    def __contains__(self, invariant: object) -> bool:
        return isinstance(invariant, str)


class PrometheusAlert:
    """An alert or a rule of ours: the series that broke it, and targets that are down."""

    kind = "prometheus"
    invariants: Sequence[str] = Every()

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        shown = [self._series(ticket, context) for ticket in tickets[:5]]
        down = next(filter(None, (self._down(one, context) for one in tickets)), None)
        title = f"Definition of {tickets[0].key.invariant}"
        rule = starting(context, title, "expr: ")
        about = tickets[0].message
        cause = (
            f"a target cannot be scraped: {down.quote}"
            if down
            else f"the expression of {tickets[0].key.invariant} holds for "
            f"{tickets[0].key.component}; what lies behind it is not seen"
        )
        return write(
            tickets,
            summary=f"{about}." + (f" {down.quote}" if down else ""),
            cause=cause,
            cited=[down] if down else [*shown, rule],
            verdict="suspected",
            confidence="medium" if down else "low",
            reason="the series are seen, the system behind them is not",
            findings=[
                finding("what is broken", *shown),
                finding("what the rule asks", rule),
            ],
            actions=[
                step("Look at the series over a longer time in Prometheus"),
                step("Look at the component that the labels name, and its log"),
            ],
            missing=["The log of the component."],
        )

    def _series(self, ticket: Ticket, context: Context) -> Citation | None:
        name = ticket.key.invariant
        labels = ticket.key.component.split(", ")

        def names(text: str) -> bool:
            return all(label in text for label in labels)

        if not name.startswith("alert:"):
            return line(context, f"{name}: values now", names)
        alert = word(ticket, "alertname", name.removeprefix("alert:"))
        return line(
            context,
            "Firing and pending alerts",
            lambda text: f" {alert} since " in text
            and (names(text) or alert in labels),
        )

    def _down(self, ticket: Ticket, context: Context) -> Citation | None:
        instance = word(ticket, "label_instance")
        if not instance:
            return None
        wanted = re.compile(rf"(?:^|[ ,])instance={re.escape(instance)}(?:[,:]|$)")
        return line(
            context,
            "Scrape targets that are down",
            lambda text: text.startswith("down ") and wanted.search(text) is not None,
        )


class CommandSays:
    """What the user's own command said."""

    kind = "command"
    invariants: Sequence[str] = Every()

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        cited = [self._said(ticket, context) for ticket in tickets[:5]]
        return write(
            tickets,
            summary=f"{tickets[0].message}.",
            cause=f"the command reports {tickets[0].key.invariant} for {tickets[0].key.component}; it "
            "does not say what lies behind it",
            cited=cited,
            verdict="suspected",
            confidence="low",
            reason="the command was run again and says the same",
            actions=[step("Run the command by hand and follow what it names")],
            missing=["What lies behind the report."],
        )

    def _said(self, ticket: Ticket, context: Context) -> Citation | None:
        wanted = f" {ticket.key.invariant} {ticket.key.component}: "
        return line(context, "reports now", lambda text: wanted in text)


PLAYBOOKS: tuple[Playbook, ...] = (
    HostSpace(),
    HostPressure(),
    HostProcess(),
    HttpOutage(),
    HttpCertificate(),
    HttpAnswer(),
    HttpLatency(),
    PrometheusAlert(),
    CommandSays(),
)
