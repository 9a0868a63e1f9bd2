"""The certificate of a server that may well be refused: a bare TLS handshake."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime

from ..errors import ObservationFailed
from . import _certificate
from ._certificate import Certificate
from ._text import one_line


async def handshake(
    host: str, port: int, context: ssl.SSLContext, timeout: float
) -> bytes:
    """The server's certificate in DER form, or empty.

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
        reason = one_line(str(error), 200)
        raise ObservationFailed(f"no TLS handshake: {reason}") from None
    secured = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    return (secured.getpeercert(True) if secured else None) or b""


async def certificate(host: str, port: int, timeout: float) -> Certificate:
    """What the server's certificate says, accepted or not. Raises ObservationFailed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return read(await handshake(host, port, context, timeout))


async def verdict(host: str, port: int, context: ssl.SSLContext, timeout: float) -> str:
    """One line: whether `context` accepts the server's certificate. Raises ObservationFailed."""
    try:
        await handshake(host, port, context, timeout)
    except ssl.SSLCertVerificationError as error:
        return f"not accepted: {one_line(error.verify_message or str(error), 200)}"
    if context.verify_mode is ssl.CERT_NONE:
        return "not checked (`verify` is off)"
    return "accepted"


def accepted_until(secured: ssl.SSLObject) -> datetime | None:
    """Return when the certificate of a connection ends, or None.

    Python tells it only of a certificate that it verified and whose names it can decode.
    """
    try:
        end = (secured.getpeercert() or {}).get("notAfter")
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(end)), UTC)
    except ValueError:
        return None


def read(der: bytes) -> Certificate:
    """Raises ObservationFailed when `der` is no certificate."""
    try:
        return _certificate.parse(der)
    except ValueError as error:
        raise ObservationFailed(
            f"the server's certificate cannot be read: {error}"
        ) from None
