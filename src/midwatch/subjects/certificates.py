"""The invariants of certificates and their checks, which are pure: who signed them, whom they name, when they end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from midwatch.model import Fact, Facts, Invariant, Severity, Signal, Unit
from midwatch.subjects import tls
from midwatch.text import ticket_line
from midwatch.units import format_duration

_ABOUT = ("host", "subject", "issuer")
CERTIFICATE_VALID = Invariant(
    "certificate_valid",
    "The certificate is trusted",
    "The certificates of the URL, and of every address that it redirects to, lead to a trusted authority, "
    "have begun to be valid and are fit for a server.",
    severity=Severity.CRITICAL,
    about=_ABOUT,
    vital=True,
)
CERTIFICATE_NAME = Invariant(
    "certificate_name",
    "The certificate names the host",
    "The certificate of the URL, and of every address that it redirects to, is for that host (or for `server_name`).",
    severity=Severity.CRITICAL,
    about=_ABOUT,
    vital=True,
)
CERTIFICATE_EXPIRY = Invariant(
    "certificate_expiry",
    "No certificate expires soon",
    "Seconds until the first certificate expires: the server's own, one between it and its authority, or one of an "
    "address that the URL redirects to. Critical once it has expired.",
    unit=Unit.SECONDS,
    limit=14 * 86400.0,
    above=False,
    about=_ABOUT,
)
CERTIFICATE_INVARIANTS = (CERTIFICATE_VALID, CERTIFICATE_NAME, CERTIFICATE_EXPIRY)


@dataclass(frozen=True, slots=True)
class Findings:
    """Signals, and why an invariant could not be observed; the fields are those of an observation."""

    signals: tuple[Signal, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __add__(self, other: Findings) -> Findings:
        both = self.ignored.keys() | other.ignored.keys()
        return Findings(
            (*self.signals, *other.signals),
            {**self.unavailable, **other.unavailable},
            {**self.unsupported, **other.unsupported},
            {
                name: (*self.ignored.get(name, ()), *other.ignored.get(name, ()))
                for name in both
            },
        )


def check_certificates(
    name: str,
    component: str,
    problems: tls.Problems,
    accepted_until: datetime | None,
    now: datetime,
    invariants: Mapping[str, Invariant],
    before: str = "",
) -> Findings:
    """Check the certificates of one address: who signed them, whom they name, and when they end.

    Args:
        name: The name that the address must have.
        component: The component of the signals.
        problems: Its certificates and why they are refused.
        accepted_until: When its own certificate ends, for one that only Python could read.
        now: The time, in UTC.
        invariants: The enabled invariants by id.
        before: The certificate that was accepted before, as `remembered` describes it.
    """
    certificates, unreadable = parse_chain(problems.chain, accepted_until)
    own = certificates[0] if certificates else None
    about = {
        "host": name,
        "subject": own.subject if own else "",
        "issuer": own.issuer if own else "",
    }
    changed = _change(own, problems.chain, before)
    untrusted = (
        problems.untrusted or _too_early(certificates, now) or problems.untrusted
    )
    found = Findings()
    facts: Facts = {
        **about,
        "names": ", ".join(own.names) if own else "",
        **({"certificates_sent": len(problems.chain)} if problems.untrusted else {}),
        **changed,
    }
    for kind, problem, text in (
        (CERTIFICATE_VALID, untrusted, "is not trusted"),
        (CERTIFICATE_NAME, problems.misnamed, "is for another name"),
    ):
        invariant = invariants.get(kind.id)
        if problem is None or invariant is None:
            continue
        if problem and invariant.ignores(about):
            left_out = (ticket_line(f"{name} ({problem})"),)
            found += Findings(ignored={kind.id: left_out})
            continue
        message = ticket_line(f"the certificate of {name} {text}: {problem}")
        signal = Signal(kind.id, component, message, holds=not problem, facts=facts)
        found += Findings((signal,))
    expiry = invariants.get(CERTIFICATE_EXPIRY.id)
    if expiry is not None:
        found += _expiry(name, component, certificates, now, expiry, changed)
        if unreadable:
            found += Findings(unsupported={CERTIFICATE_EXPIRY.id: unreadable})
    return found


def _too_early(certificates: Sequence[tls.Certificate], now: datetime) -> str:
    late = [one for one in certificates if one.not_before > now]
    return (
        f"{late[-1].subject} is valid only from {late[-1].not_before:%Y-%m-%d %H:%M} UTC"
        if late
        else ""
    )


def remembered(der: bytes, now: datetime, before: object = None) -> str:
    """Return an accepted certificate in one line, which stays the same as long as it is shown.

    `before` is the line that was remembered last.
    """
    mark = fingerprint(der)
    if isinstance(before, str) and before.startswith(mark):
        return before
    shown = described(der)
    if shown.endswith(_UNREADABLE):
        return shown
    return ticket_line(f"{shown}, first seen {now:%Y-%m-%d %H:%M:%S} UTC")


_UNREADABLE = "(cannot be read)"


def described(der: bytes) -> str:
    """Return a certificate in one line: fingerprint, subject, names, issuer and end."""
    mark = fingerprint(der)
    try:
        one = tls.parse(der)
    except ValueError:
        return f"{mark} {_UNREADABLE}"
    names = ", ".join(one.names[:5])
    return ticket_line(
        f"{mark} {one.subject} for {names}, issued by {one.issuer}, until {one.not_after:%Y-%m-%d %H:%M:%S} UTC"
    )


def fingerprint(der: bytes) -> str:
    """Return the beginning of the SHA-256 of a certificate, as browsers and OpenSSL show it."""
    return hashlib.sha256(der).hexdigest()[:16]


def _change(
    own: tls.Certificate | None, chain: Sequence[bytes], before: str
) -> dict[str, Fact]:
    """Return the certificate that was accepted before, and whether another one is shown now."""
    if not before or not chain or own is None:
        return {}
    same = before.startswith(fingerprint(chain[0]))
    return {"accepted_before": before, "is_the_one_accepted_before": same}


def explained(found: tls.Problems, refused: tls.Refused, now: datetime) -> tls.Problems:
    """Return the problems of a refused certificate; where neither they nor its dates say why, with the first reason."""
    certificates, _ = parse_chain(found.chain, None)
    dated = any(not one.not_before <= now < one.not_after for one in certificates)
    if found.untrusted or found.misnamed or dated:
        return found
    return replace(found, untrusted=str(refused))


def parse_chain(
    chain: Sequence[bytes], accepted_until: datetime | None
) -> tuple[list[tls.Certificate], str]:
    """Return the certificates that can be read, and why another one cannot."""
    found: list[tls.Certificate] = []
    unreadable = ""
    for number, der in enumerate(chain):
        try:
            found.append(tls.parse(der))
        except ValueError as error:
            if not number and accepted_until is not None:
                found.append(tls.Certificate.unreadable(accepted_until))
                continue
            unreadable = (
                f"certificate {number + 1} of the chain cannot be read: {error}"
            )
    return found, unreadable


def _expiry(
    name: str,
    component: str,
    certificates: Sequence[tls.Certificate],
    now: datetime,
    invariant: Invariant,
    changed: Facts,
) -> Findings:
    """Return the signal for the certificate of a chain that ends first."""
    ignored = []
    left: list[tuple[datetime, int, tls.Certificate]] = []
    for number, one in enumerate(certificates):
        about = {"host": name, "subject": one.subject, "issuer": one.issuer}
        if invariant.ignores(about):
            ignored.append(f"{one.subject} at {name}")
        else:
            left.append((one.not_after, number, one))
    found = Findings(ignored={invariant.id: tuple(ignored)} if ignored else {})
    if not left:
        return found
    end, number, one = min(left, key=lambda item: item[:2])
    seconds = (end - now).total_seconds()
    when = (
        f"ends in {format_duration(seconds)}"
        if seconds > 0
        else f"ended {format_duration(-seconds)} ago"
    )
    which = f"the certificate of {name}"
    if number:
        which = f"the certificate {one.subject} above that of {name}"
    signal = Signal(
        invariant.id,
        component,
        ticket_line(f"{which} {when} ({end:%Y-%m-%d %H:%M} UTC)"),
        value=seconds,
        facts={
            "host": name,
            "subject": one.subject,
            "issuer": one.issuer,
            "not_after": end.isoformat(),
            "place_in_chain": number,
            **changed,
        },
        severity=Severity.CRITICAL if seconds <= 0 else None,
    )
    return found + Findings((signal,))
