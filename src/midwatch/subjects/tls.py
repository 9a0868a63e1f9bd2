"""TLS certificates: read one also where it is refused, and check whether it is accepted.

The standard library reads a certificate only after it accepted it, and those that matter here are those
that it refused. `cryptography` reads their fields (RFC 5280, section 4.1).
"""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.text import ticket_line
from midwatch.units import format_duration

if TYPE_CHECKING:
    from cryptography import x509


UNREADABLE = "(cannot be read)"
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Certificate:
    """The fields of a certificate that a person needs; times are aware, in UTC.

    A name that breaks the standard reads "(cannot be read)"; the dates hold all the same.
    """

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]


def parse(der: bytes) -> Certificate:
    """Return the fields of a certificate in DER form.

    Raises ValueError if `der` is not a certificate, or is one without readable dates.
    """
    from cryptography import x509  # takes 0.1 s and 15 MB

    # The warnings are about serial numbers and long names, which public authorities get wrong.
    with warnings.catch_warnings(action="ignore"):
        try:
            found = x509.load_der_x509_certificate(der)
            dates = found.not_valid_before_utc, found.not_valid_after_utc
        except (ValueError, x509.InvalidVersion):
            raise ValueError(
                "it is not in DER form, or does not follow RFC 5280"
            ) from None
        return Certificate(
            _readable(lambda: (_name(found.subject),))[0],
            _readable(lambda: (_name(found.issuer),))[0],
            *dates,
            names=_readable(lambda: _alternative_names(found)),
        )


def _readable(names: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Return names, or "(cannot be read)": they are decoded on access, more strictly than authorities write them."""
    from cryptography import x509

    try:
        return names()
    except (
        ValueError,
        TypeError,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        return (UNREADABLE,)


def _name(name: x509.Name) -> str:
    parts = [
        f"{attribute.rfc4514_attribute_name}={ticket_line(str(attribute.value), 100)}"
        for attribute in name
        if attribute.rfc4514_attribute_name in ("CN", "O", "OU")
    ]
    return ", ".join(parts) or "(no name)"


def _alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    hosts = (n for n in found.value if isinstance(n, (x509.DNSName, x509.IPAddress)))
    return tuple(ticket_line(str(n.value), 100) for n in islice(hosts, _MOST_NAMES))


async def handshake(
    host: str, port: int, context: ssl.SSLContext, timeout: float
) -> bytes:
    """Return the server's certificate in DER form, or b"".

    Raises ObservationFailed, and ssl.SSLCertVerificationError where `context` refuses it.
    """
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=host, limit=2**12
            )
    except ssl.SSLCertVerificationError:
        raise
    except TimeoutError:
        raise ObservationFailed(f"no TLS handshake within {timeout:.3g} s") from None
    except (OSError, UnicodeError) as error:
        reason = ticket_line(str(error), 200)
        raise ObservationFailed(f"no TLS handshake: {reason}") from None
    secured = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    return (secured.getpeercert(True) if secured else None) or b""


async def certificate(host: str, port: int, timeout: float) -> Certificate:
    """Return the server's certificate, accepted or not. Raises ObservationFailed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return read(await handshake(host, port, context, timeout))


async def verdict(host: str, port: int, context: ssl.SSLContext, timeout: float) -> str:
    """Return in one line whether `context` accepts the server's certificate. Raises ObservationFailed."""
    try:
        await handshake(host, port, context, timeout)
    except ssl.SSLCertVerificationError as error:
        return f"not accepted: {ticket_line(error.verify_message or str(error), 200)}"
    if context.verify_mode is ssl.CERT_NONE:
        return "not checked (`verify` is off)"
    return "accepted"


def accepted_until(secured: ssl.SSLObject) -> datetime | None:
    """Return when the certificate of a connection ends, or None.

    Python knows it only for a certificate that it verified and whose names it can decode.
    """
    try:
        end = (secured.getpeercert() or {}).get("notAfter")
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(end)), UTC)
    except ValueError:
        return None


def read(der: bytes) -> Certificate:
    """Return the certificate in `der`. Raises ObservationFailed when it is not one."""
    try:
        return parse(der)
    except ValueError as error:
        raise ObservationFailed(
            f"the server's certificate cannot be read: {error}"
        ) from None


def describe(found: Certificate, verdict: str, now: datetime) -> str:
    """Return a certificate as evidence, one field a line."""
    left = (found.not_after - now).total_seconds()
    return "\n".join(
        (
            f"verification: {verdict}",
            f"subject: {found.subject}",
            f"issuer: {found.issuer}",
            f"names: {', '.join(found.names) or '(none)'}",
            f"not before: {found.not_before:%Y-%m-%d %H:%M:%S} UTC",
            f"not after: {found.not_after:%Y-%m-%d %H:%M:%S} UTC",
            (
                f"left: {format_duration(left)}"
                if left > 0
                else f"expired: {format_duration(-left)} ago"
            ),
        )
    )


def ssl_context(verify: bool, ca_file: Path | None, path: str) -> ssl.SSLContext:
    """Return how certificates are verified.

    Args:
        verify: Whether they are verified at all.
        ca_file: A PEM file of certificate authorities to trust besides the system's.
        path: The path of the setting that an error names.

    Raises:
        SettingsError: `ca_file` has no certificates.
    """
    import httpx2

    context = httpx2.create_ssl_context(verify=verify, trust_env=False)
    if verify and ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise SettingsError(
                f"no certificates could be read from {ca_file}: {error.strerror or error}",
                path=path,
                hint="use a PEM file of certificate authorities",
            ) from None
    return context
