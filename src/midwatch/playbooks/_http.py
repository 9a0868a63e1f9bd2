"""First aid for the kind `http` (pure)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from midwatch.answer import Citation, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks._lines import line, measured, starting
from midwatch.playbooks.drafting import finding, step, word, write
from midwatch.units import parse_duration

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
