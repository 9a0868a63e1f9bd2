"""First aid for the kind `http`: what answers, which phase takes the time, and what is behind a proxy's error page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation, Confidence
from midwatch.model import Context
from midwatch.playbooks.base import (
    ALIKE,
    Note,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    line_starting,
    matching_line,
    measured,
    number_fact,
    own_line,
    playbook,
    text_fact,
    titled_lines,
    write_note,
)
from midwatch.playbooks.symptoms import Told, ranked

_LAST_LINES = 15  # of a log

# ------------------------------------------------------------------ no answer

_CAUSES = {
    "dns": "its host name has no address",
    "refused": "nothing listens on its port",
    "timeout": "it does not answer in time",
    "tls": "the TLS handshake fails",
    "network": "the connection cannot be made or breaks",
    "protocol": "what answers does not speak HTTP",
}
_STOPPED_AT = {
    "dns": "the DNS lookup does not end",
    "connect": "the connection is not accepted: packets are dropped, or the queue of the listener is full",
    "tls": "it accepts connections, but the TLS handshake does not end",
    "send": "it accepts connections, but does not read the request",
    "first byte": "it accepts connections and takes the request, but sends no answer",
    "body": "the answer begins, but does not end",
}


@playbook("http", "reachable")
def http_outage(tickets: Tickets, context: Context) -> Note:
    """A server that does not answer: how far the request got."""
    ticket = tickets[0]
    url = text_fact(ticket, "url", ticket.key.component)
    kind, phase = text_fact(ticket, "cause"), text_fact(ticket, "phase")
    problem = _CAUSES.get(kind, "it does not answer")
    if kind == "timeout" and phase in _STOPPED_AT:
        problem = _STOPPED_AT[phase]
    now = line_starting(context, f"{url} now", "message: ")
    recovered = line_starting(context, f"{url} now", "status: ")
    if now is None and recovered is not None:
        problem += "; it answers now"
    seen = own_line(context, ticket, "message: ")
    host, port = _place(url)
    logged = _logged(context)
    if logged is not None:
        problem += f"; its log says: {_said(logged)}"
    bad, good = _reached(context, host)
    if bad and good:
        problem += f"; {len(bad)} of {len(bad) + len(good)} addresses fail"
    return write_note(
        tickets,
        summary=f"{url} is not reachable: {problem}.",
        cause=f"{url}: {problem}",
        cited=[now or seen or recovered, *bad[:2], logged.citation if logged else None],
        confidence="medium" if now else "low",
        reason="the failure is observed from here only; its cause is on the server's side",
        findings=[
            finding(
                "what the name resolves to",
                matching_line(
                    context,
                    "Addresses of",
                    lambda text: "has address" in text or "failed" in text,
                ),
            ),
            finding("the addresses that answer", *good[:2]),
            finding("where the request stopped", own_line(context, ticket, "phase: ")),
        ],
        actions=[
            *_outage_actions(kind, phase, url, host, port),
            logged.symptom.advice() if logged else _service_log(),
        ],
        missing=[
            "Whether others reach it.",
            *([] if logged else ["The log of the service (`log_files`)."]),
        ],
    )


def _outage_actions(
    kind: str, phase: str, url: str, host: str, port: int
) -> list[Action]:
    shown, place = shlex.quote(host), shlex.quote(f"{host}:{port}")
    request = f"curl -sv -m 20 -o /dev/null {shlex.quote(url)}"
    if kind == "dns" or phase == "dns":
        return [
            action(
                "Compare what the name servers say",
                f"getent ahosts {shown}",
                f"dig {shown}",
                "cat /etc/resolv.conf",
            ),
            action(
                "See whether the record or the delegation of the domain was changed"
            ),
        ]
    if kind == "refused":
        return [
            action(
                "On its machine, see what listens on the port",
                f"ss -ltnp 'sport = :{port}'",
            ),
            action(
                "See whether the service was stopped, failed, or listens on another address or port"
            ),
        ]
    if kind == "tls":
        name = shlex.quote(host)
        return [
            action(
                "See how the handshake ends",
                f"openssl s_client -connect {place} -servername {name} </dev/null",
            )
        ]
    if phase in ("first byte", "body", "send"):
        return [
            action("Send a request from this machine", request),
            action(
                "See what the service waits for: its workers, its database, its disk"
            ),
        ]
    return [
        action("Send a request from this machine", request),
        action("See where the way ends", f"mtr -rwc 5 {shown}"),
    ]


def _service_log() -> Action:
    return action("Check the service and its log on its own machine")


def _place(url: str) -> tuple[str, int]:
    """Return host and port of a URL as a ticket shows it."""
    match = re.match(r"(\w+)://(\[[^]]*\]|[^:/?#]*)(?::(\d+))?", url)
    if match is None:
        return url, 443
    port = match[3] or ("80" if match[1] == "http" else "443")
    return match[2].strip("[]"), int(port)


def _reached(context: Context, host: str) -> tuple[list[Citation], list[Citation]]:
    """Return the lines on addresses of the host that fail, and on those that connect."""
    bad: list[Citation] = []
    good: list[Citation] = []
    for number, text in evidence_lines(context, f"Addresses of {host}"):
        address, separator, what = text.partition(": ")
        if (
            separator
            and re.fullmatch(r"[0-9a-fA-F:.%\w]+", address)
            and address != host
        ):
            cited = Citation(evidence_id=number, quote=bounded(text))
            (good if what.startswith("connected") else bad).append(cited)
    return bad, good


# ------------------------------------------------------------------ a wrong answer

_PROXY = {
    502: "its upstream refuses the connection, breaks it or does not speak HTTP",
    503: "it has no upstream that it takes for healthy, or limits requests",
    504: "its upstream does not answer in time",
    500: "it fails itself: its own error log says why",
    413: "the request is larger than it allows",
    429: "it limits requests",
}
_STATUS = {
    400: "the server does not understand the request, or the proxy before it does not pass on what it needs",
    401: "the login is missing, wrong or expired",
    403: "the login is accepted, or none is asked for, but the access is not allowed",
    404: "there is nothing at this address: a route, a file or a deployment is missing",
    405: "this method is not allowed here",
    410: "what was at this address was removed",
    421: "the server does not serve this name on this connection",
    429: "the server limits requests",
    500: "the application fails",
    501: "the server does not know this method",
    502: "something before the application gets no valid answer from it",
    503: "the application says that it is not ready, or is overloaded",
    504: "something before the application gets no answer from it in time",
    520: "Cloudflare gets an answer that it does not understand from the origin",
    521: "the origin refuses connections from Cloudflare",
    522: "Cloudflare cannot connect to the origin in time",
    523: "Cloudflare has no way to the origin",
    524: "the origin does not answer Cloudflare in time",
    525: "the TLS handshake between Cloudflare and the origin fails",
    526: "the origin's certificate is not accepted by Cloudflare",
}


@playbook("http", "status", "body")
def http_answer(tickets: Tickets, context: Context) -> Note:
    """A wrong status, or a wrong body: who answers, and what the answer itself says."""
    ticket = tickets[0]
    url = text_fact(ticket, "url", ticket.key.component)
    now = line_starting(context, f"{url} now", "status: ")
    status = int(number_fact(ticket, "status") or 0)
    page = text_fact(ticket, "answered_by")
    by = line_starting(context, f"{url} now", "answered by: ") or own_line(
        context, ticket, "answered_by: "
    )
    body = [
        line
        for line in evidence_lines(context, f"{url} now")
        if line[1].startswith("| ")
    ]
    logged = _logged(context) if status >= 500 else None
    said = logged or (None if page else next(iter(ranked(body)), None))
    problem = _problem(status, page, text_fact(ticket, "cause"))
    plain = None if said or page else _plain(body)
    if said is not None:
        problem += f"; {'its log' if logged else 'the answer'} says: {_said(said)}"
    elif plain is not None:
        problem += f"; the answer says: “{plain.quote[2:162]}”"
    seen = own_line(context, ticket, "message: ")
    certain: Confidence = "medium" if page and status >= 500 or said else "low"
    return write_note(
        tickets,
        summary=f"{ticket.message}: {problem}.",
        cause=f"{url}: {problem}",
        cited=[
            by if page else None,
            said.citation if said else None,
            plain,
            now or seen,
        ],
        confidence=certain,
        reason="the answer is known; its cause is in the log of what answered",
        findings=[
            finding("what it answers now", now),
            finding("where it redirects", own_line(context, ticket, "redirected: ")),
            finding(
                "how long to wait",
                line_starting(context, f"{url} now", "header retry-after"),
            ),
        ],
        actions=[
            action("Send the request by hand", f"curl -sv -m 20 {shlex.quote(url)}"),
            *_answer_actions(status, page, logged is not None),
            *([said.symptom.advice()] if said else []),
            action("See what was deployed or configured shortly before"),
        ],
        missing=(
            [] if logged else [f"The log of {page or 'the service'} (`log_files`)."]
        ),
    )


def _plain(body: Sequence[tuple[str, str]]) -> Citation | None:
    """Return the first line of a body that is a few words for a reader, and no page."""
    lines = [line for line in body if line[1].strip("| ")]
    if not 0 < len(lines) <= 3 or any("<" in text for _, text in lines):
        return None
    number, text = lines[0]
    return (
        Citation(evidence_id=number, quote=bounded(text)) if " " in text[2:] else None
    )


def _logged(context: Context) -> Told | None:
    """Return what the last lines of the log files say is wrong."""
    lines = [
        line
        for line in titled_lines(context, "Log of the service")
        if line[1].startswith("| ")
    ]
    return next(iter(ranked(lines[-_LAST_LINES:], ["upstream"])), None)


def _said(told: Told) -> str:
    """Return what a line says, with the upstream that it names behind its beginning."""
    upstream = re.search(r'upstream: "([^"]+)"', told.quote)
    return told.text + (f", of the upstream {upstream[1]}" if upstream else "")


def _problem(status: int, page: str, cause: str) -> str:
    if cause == "redirects":
        return "the redirects lead in a circle, or to an address that is not a website"
    if page and status in _PROXY:
        return f"{page} itself answers, not the application behind it: {_PROXY[status]}"
    if status in _STATUS:
        return f"{_STATUS[status]}{f' ({page} answers)' if page else ''}"
    if status >= 500:
        return "the server or something behind it fails"
    if status >= 400:
        return "the server does not accept this request"
    return "it answers, but not with what is expected"


_LOGS = {
    "nginx": "tail -n 50 /var/log/nginx/error.log",
    "HAProxy": "journalctl -u haproxy -n 50 --no-pager",
    "Apache": "tail -n 50 /var/log/apache2/error.log",
    "Caddy": "journalctl -u caddy -n 50 --no-pager",
    "Varnish": "varnishlog -d -g request -q 'RespStatus >= 500'",
}


def _answer_actions(status: int, page: str, logged: bool) -> list[Action]:
    if logged:
        return []  # what the line says has its own advice
    if page and status >= 500:
        command = _LOGS.get(page)
        return [
            action(
                f"Read the error log of {page}: it names the upstream and why it failed",
                *([command] if command else []),
            ),
            action("See whether that upstream runs, listens, and answers by itself"),
        ]
    if status in (401, 403):
        return [
            action(
                "See whether the credentials in `headers` or the URL expired or were changed"
            )
        ]
    if status == 429:
        return [action("See which client sends more than before")]
    return [action("Read the log of the service at the time of the ticket")]


# ------------------------------------------------------------------ a slow answer

_PHASES = {
    "dns": "the DNS lookup",
    "connect": "making the connection: the network, or a full queue of the listener",
    "tls": "the TLS handshake",
    "send": "sending the request",
    "first byte": "the server, before the first byte of its answer",
    "body": "the body: a large answer, a slow network, or a server that writes it slowly",
}


@playbook("http", "latency")
def http_latency(tickets: Tickets, context: Context) -> Note:
    """A slow answer: which phase of the request that was slow took the time."""
    ticket = tickets[0]
    url = text_fact(ticket, "url", ticket.key.component)
    spent = [
        (seconds, phase, own_line(context, ticket, f"{_fact(phase)}: "))
        for phase in _PHASES
        if (seconds := number_fact(ticket, _fact(phase))) is not None
    ]
    if not spent:
        return None
    spent.sort(key=lambda item: -item[0])
    seconds, phase, cited = spent[0]
    total = number_fact(ticket, "seconds") or sum(one[0] for one in spent)
    alike = [one for one in spent[1:] if one[0] >= seconds * ALIKE]
    what = " and ".join([_PHASES[phase], *(_PHASES[one[1]] for one in alike)])
    slowest = own_line(context, ticket, "slowest: ")
    where = f"; {slowest.quote.removeprefix('slowest: ')}" if slowest else ""
    share = (seconds + sum(one[0] for one in alike)) / total if total else 0.0
    return write_note(
        tickets,
        summary=f"{ticket.message}; {share:.0%} of it went to {what}{where}.",
        cause=f"{url}: most of the time goes to {what}{where}",
        cited=[cited, *(one[2] for one in alike), slowest],
        confidence="medium" if share > 0.5 else "low",
        reason="the request that was slow was measured, by phase",
        findings=[
            finding("how long all of it took", own_line(context, ticket, "seconds: ")),
        ],
        readings=[measured(context, f"{url} now", "total")],
        actions=[*_slow_actions(phase, url), _measure_again(url)],
        missing=(
            ["What the server does in that time."]
            if phase in ("first byte", "body")
            else []
        ),
    )


def _fact(phase: str) -> str:
    return f"{phase.replace(' ', '_')}_seconds"


def _measure_again(url: str) -> Action:
    times = "dns %{time_namelookup} connect %{time_connect} tls %{time_appconnect} first byte %{time_starttransfer}"
    return action(
        "Measure again, by phase",
        f"curl -s -o /dev/null -w '{times} all %{{time_total}}\\n' {shlex.quote(url)}",
    )


def _slow_actions(phase: str, url: str) -> Sequence[Action]:
    host, port = _place(url)
    match phase:
        case "dns":
            return [
                action(
                    "See which name server is slow or gone",
                    "cat /etc/resolv.conf",
                    f"dig {shlex.quote(host)}",
                )
            ]
        case "connect":
            return [
                action(
                    "See where the network loses packets",
                    f"mtr -rwc 10 {shlex.quote(host)}",
                ),
                action(
                    "On its machine, see whether the queue of the listener is full",
                    f"ss -ltn 'sport = :{port}'",
                ),
            ]
        case "tls":
            return [
                action(
                    "On its machine, see whether the processors are busy, and whether it asks an OCSP responder"
                )
            ]
        case "body":
            return [
                action(
                    "See whether the answer grew, and where it is slow: at the service or on the way"
                )
            ]
    return [
        action(
            "Check the load and the slow queries of the service, and what it waits for"
        )
    ]
