"""First aid for certificates of the kind `http`: the chain, the name, the end and the clock, each with its own advice."""

from __future__ import annotations

import re
import shlex
from datetime import datetime, timedelta

from midwatch.diagnosis_schema import Action, Citation, Finding
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    finding,
    line_starting,
    matching_line,
    own_line,
    playbook,
    text_fact,
    tickets_of,
    write_note,
)

_TITLE = "Certificates of"
_RELOAD = "the reload may drop connections"


@playbook("http", "certificate_name", "certificate_valid", "certificate_expiry")
def http_certificate(tickets: Tickets, context: Context) -> Note:
    """A certificate that is refused, or ends soon. Of several tickets of one address the deepest is the first link."""
    component = tickets[0].key.component
    own = [one for one in tickets if one.key.component == component]
    name = tickets_of(own, "certificate_name")
    valid = tickets_of(own, "certificate_valid")
    if (
        name
    ):  # a certificate for another name is the wrong one, also if it is signed and current
        return _misnamed(
            [*name, *valid, *tickets_of(own, "certificate_expiry")], context
        )
    if valid:
        return _untrusted(valid, context)
    return _expiring(own, context)


def _misnamed(own: list[Ticket], context: Context) -> Note:
    ticket = own[0]
    host, shown = text_fact(ticket, "host"), text_fact(ticket, "names", "no name")
    default = matching_line(
        context,
        _TITLE,
        lambda text: text.startswith("without SNI: the same certificate"),
    )
    replaced = _replaced(ticket, context)
    if replaced:
        why = "it took the place of the right one: the entry for this name is gone, or names another file now"
    elif default:
        why = "it is the one that the server shows by default, so nothing there seems to be configured for this name"
    else:
        why = "the server is configured to show it, or the name is not in it"
    before = (
        " Another certificate was accepted before: it was replaced." if replaced else ""
    )
    return write_note(
        own,
        summary=f"The certificate that {host} shows is for {shown}, not for {host}.{before}",
        cause=f"{host} shows a certificate for {shown}: {why}",
        cited=[
            line_starting(context, _TITLE, "names: ")
            or own_line(context, ticket, "names: "),
            default,
            replaced,
            own_line(context, ticket, "message: "),
        ],
        verdict="identified",
        confidence="high" if default or replaced else "medium",
        reason="the certificate itself was read; it is not a matter of its end",
        findings=[_issuer(ticket, context)],
        actions=[
            _show(ticket),
            action(
                "See whether the name points to the right server, and where it pointed before",
                f"getent ahosts {shlex.quote(host)}",
            ),
            action(
                f"On the server, see which certificate is configured for {host}: the entry may be missing, or changed "
                "with the last deployment"
            ),
            action(
                f"Have the server show the certificate for {host}, or issue one that has this name",
                risk=_RELOAD,
            ),
        ],
        risks=["Clients refuse to connect."],
    )


_CHAIN = re.compile(r"unable to get (?:local )?issuer|unable to verify the first")
_SELF = re.compile(r"self.signed certificate(?! in)")
_ROOT = re.compile(r"self.signed certificate in")


def _untrusted(own: list[Ticket], context: Context) -> Note:
    ticket = own[0]
    host, alone = text_fact(ticket, "host"), _is_alone(ticket)
    why, advice = _distrust(ticket)
    clock = _clock_doubt(context) if _early(ticket.message) else ""
    return write_note(
        own,
        summary=f"The certificate of {host} is not trusted: {why}.",
        cause=f"the certificate of {host}: {why}",
        cited=[
            own_line(context, ticket, "message: "),
            line_starting(context, _TITLE, "verification: "),
            line_starting(context, _TITLE, "certificates sent: ") if alone else None,
            _replaced(ticket, context),
        ],
        verdict="suspected" if clock else "identified",
        confidence="medium" if clock else "high",
        reason="the certificate itself was read" + clock,
        findings=[_issuer(ticket, context)],
        actions=[_show(ticket), *advice],
        risks=["Clients refuse to connect."],
    )


def _early(message: str) -> bool:
    return "valid only from" in message or "not yet valid" in message


def _is_alone(ticket: Ticket) -> bool:
    return text_fact(ticket, "certificates_sent") == "1"


def _distrust(ticket: Ticket) -> tuple[str, list[Action]]:
    """Return why a certificate is not trusted, and what to do about that."""
    message, issuer = ticket.message, text_fact(ticket, "issuer", "its authority")
    if _early(message):
        why = "it is not valid yet: it was issued for later, or a clock is wrong"
        advice = [
            _clock(),
            action(
                "If the clock is right, have the server show the earlier certificate until then",
                risk=_RELOAD,
            ),
        ]
    elif _SELF.search(message):
        why = "it is signed by itself: a default or a test certificate, or one of an appliance"
        advice = [
            action(
                "See why the server shows it: the configured certificate may be missing or unreadable"
            ),
            action(
                "Have the server show the certificate that an authority signed",
                risk=_RELOAD,
            ),
        ]
    elif _ROOT.search(message):
        why = f"its root ({issuer} or one above it) is not among those that this machine trusts"
        advice = [_trust()]
    elif _CHAIN.search(message) and _is_alone(ticket):
        why = f"the server sends it alone, without the certificate of {issuer}"
        advice = [
            action(
                "Have the server send the whole chain: its own certificate first, then the intermediate ones "
                "(fullchain.pem, not cert.pem)",
                risk=_RELOAD,
            ),
            _trust(),
        ]
    elif _CHAIN.search(message):
        why = f"{issuer}, or an authority above it, is not known here"
        advice = [_trust()]
    elif "revoked" in message:
        why = "its authority has revoked it"
        advice = [
            action(
                "Ask who had it revoked: the key may be stolen. Have a new one issued with a new key",
                risk=_RELOAD,
            )
        ]
    else:
        why = message.rpartition(": ")[2]
        advice = [
            action(
                "Have the server show a certificate that is fit for this host",
                risk=_RELOAD,
            )
        ]
    return why, advice


def _expiring(own: list[Ticket], context: Context) -> Note:
    ticket = own[0]
    host, subject = text_fact(ticket, "host"), text_fact(ticket, "subject")
    at = text_fact(ticket, "not_after").replace("T", " ")[:19]
    above = text_fact(ticket, "place_in_chain", "0") != "0"
    ended = "ended" in ticket.message
    end = line_starting(context, _TITLE, f"not after: {at}") if at else None
    same = text_fact(ticket, "is_the_one_accepted_before") == "True"
    what = (
        f"the certificate {subject} above that of {host}"
        if above
        else f"the certificate of {host}"
    )
    doubt = ended and _just_ended(at, context)
    other = None if above else _other_address(context, at)
    renewed = "; another address of the host shows a newer one" if other else ""
    return write_note(
        own,
        summary=f"{ticket.message}{renewed}.",
        cause=f"{what} {'has expired' if ended else 'expires soon'} and was not replaced{renewed}",
        cited=[
            end or own_line(context, ticket, "not_after: "),
            own_line(context, ticket, "message: "),
            other,
        ],
        verdict="identified",
        confidence="medium" if doubt else "high",
        reason="the certificate itself was read"
        + (
            ", but it ended so recently that a wrong clock would look the same"
            if doubt
            else ""
        ),
        findings=[
            _issuer(ticket, context),
            (
                finding(
                    "it is the certificate that was accepted before",
                    own_line(context, ticket, "accepted_before: "),
                )
                if same
                else None
            ),
        ],
        actions=[_show(ticket), *([_clock()] if doubt else []), *_renewal(above)],
        risks=[
            (
                "Clients refuse to connect."
                if ended
                else "Clients refuse to connect once it has ended."
            )
        ],
    )


def _renewal(above: bool) -> list[Action]:
    if above:
        return [
            action(
                "Have the server send the current certificates of its authority (fullchain.pem): renewing its own alone does "
                "not change that one",
                risk=_RELOAD,
            )
        ]
    return [
        action(
            "See whether a renewed one is there already and was only not loaded, or why the renewal failed",
            "systemctl list-timers '*certbot*' '*acme*'",
            "certbot certificates",
        ),
        action("Renew it if it is not, and let the server load it", risk=_RELOAD),
    ]


def _show(ticket: Ticket) -> Action:
    origin = re.sub(r"^\w+://|/.*$", "", ticket.key.component)
    place = origin if re.search(r":\d+$", origin) else f"{origin}:443"
    name = text_fact(ticket, "host") or re.sub(r":\d+$", "", origin)
    return action(
        "See which certificates the server sends",
        f"openssl s_client -connect {shlex.quote(place)} -servername {shlex.quote(name)} -showcerts </dev/null",
    )


def _trust() -> Action:
    return action(
        "If it is an authority of your own, let this machine trust it (`ca_file`); if not, do not: ask who issued it"
    )


def _clock() -> Action:
    return action(
        "See whether the clock of this machine is right",
        "date -u",
        "timedatectl",
        "chronyc tracking",
    )


def _issuer(ticket: Ticket, context: Context) -> Finding | None:
    return finding(
        "its issuer",
        line_starting(context, _TITLE, "issuer: ")
        or own_line(context, ticket, "issuer: "),
    )


def _replaced(ticket: Ticket, context: Context) -> Citation | None:
    """Return the line on the certificate that was accepted before, if another one is shown now."""
    if text_fact(ticket, "is_the_one_accepted_before") != "False":
        return None
    return own_line(context, ticket, "accepted_before: ")


def _clock_doubt(context: Context) -> str:
    now = line_starting(context, _TITLE, "now: ")
    return (
        f"; this machine's clock says {now.quote.removeprefix('now: ')}" if now else ""
    )


def _just_ended(at: str, context: Context) -> bool:
    """Return whether a certificate ended within a day before the evidence: a wrong clock would look the same."""
    try:
        end = datetime.fromisoformat(f"{at}+00:00")
    except ValueError:
        return False
    return context.gathered_at - end < timedelta(days=1)


def _other_address(context: Context, at: str) -> Citation | None:
    """Return an address of the host whose certificate ends later."""

    def later(text: str) -> bool:
        found = re.search(r": connected, certificate .*, until (\S+ \S+) UTC$", text)
        return found is not None and found[1] > at

    return matching_line(context, "Addresses of", later) if at else None
