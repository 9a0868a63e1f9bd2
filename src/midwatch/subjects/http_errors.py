"""Why an HTTP request failed. Every error of the HTTP client is mapped here and nowhere else."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Literal

from midwatch.errors import ObservationFailed
from midwatch.subjects import tls
from midwatch.subjects.http_trace import Hop, Trace, show_origin
from midwatch.text import ticket_line

Cause = Literal[
    "timeout",  # no full answer within the time limit
    "dns",  # the host name has no address
    "refused",  # nothing listens there
    "network",  # the connection could not be made, or broke
    "certificate",  # the server's certificate was not accepted
    "tls",  # the TLS handshake failed for another reason
    "protocol",  # what came back is not HTTP
    "redirects",  # too many, or to a place that is not HTTP
    "request",  # the request could not be sent at all
    "proxy",  # the proxy is out of reach, or refuses
    "local",  # this machine had no descriptors, ports or memory left
]
_EXHAUSTED = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EADDRNOTAVAIL,  # no local port is left
}


class WebFailure(ObservationFailed):
    """The HTTP request failed.

    `hops` are the addresses that were requested; the last one failed. `refused` is why a certificate was not accepted.
    `timings` are seconds by phase; `phase` is the one that did not end.
    """

    refused: tls.Refused | None = None
    hops: tuple[Hop, ...] = ()
    timings: Mapping[str, float] = {}
    phase: str = ""

    def __init__(self, cause: Cause, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause

    def at(self, trace: Trace) -> WebFailure:
        """Return the failure with the addresses that were requested, and the times."""
        message, hops = self.message, trace.hops
        if len(hops) > 1 and self.cause != "redirects":
            message = f"redirected to {show_origin(hops[-1].origin)}: {message}"
        failure = WebFailure(self.cause, message, hint=self.hint)
        failure.refused, failure.hops = self.refused, tuple(hops)
        failure.timings, failure.phase = trace.so_far()
        return failure


def foreign_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the HTTP client. (It is imported when it is first used.)"""
    import httpcore2
    import httpx2

    return (
        OSError,  # such as an alert of TLS 1.3, which comes after the handshake
        httpx2.HTTPError,
        httpx2.StreamError,
        httpx2.InvalidURL,
        httpcore2.TimeoutException,
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.ProxyError,
        httpcore2.UnsupportedProtocol,
        httpcore2.ConnectionNotAvailable,
    )


def map_http_error(error: Exception) -> WebFailure:
    """Map an error of the HTTP client, or the system error below it, to a WebFailure."""
    import httpcore2
    import httpx2

    for inner in _chain(error):
        known = _map_system_error(inner)
        if known is not None:
            return known
    text = ticket_line(str(error) or type(error).__name__, 200)
    match error:
        case httpx2.TimeoutException() | httpcore2.TimeoutException():
            return WebFailure("timeout", f"no answer in time: {text}")
        case (
            httpx2.UnsupportedProtocol()
            | httpx2.TooManyRedirects()
            | httpcore2.UnsupportedProtocol()
        ):
            return WebFailure(
                "redirects", f"redirected to an unsupported address: {text}"
            )
        case (
            httpx2.NetworkError()
            | httpcore2.NetworkError()
            | httpcore2.ConnectionNotAvailable()
        ):
            return WebFailure("network", f"the connection failed: {text}")
        case httpx2.ProxyError() | httpcore2.ProxyError():
            # Its text begins with the status: with 5xx the proxy has tried (RFC 9110, section 15.6).
            cause: Cause = "network" if text.startswith("5") else "proxy"
            return WebFailure(cause, f"the proxy does not connect: {text}")
        case (
            httpx2.LocalProtocolError()
            | httpx2.InvalidURL()
            | httpcore2.LocalProtocolError()
        ):
            return WebFailure("request", f"the request could not be sent: {text}")
        case _:
            return WebFailure("protocol", f"no valid HTTP answer: {text}")


def map_handshake_error(error: Exception) -> WebFailure | tls.Refused:
    """Map an error of a TLS handshake as `map_http_error`, to why the certificate was refused where it was."""
    failure = map_http_error(error)
    return failure.refused or failure


def _map_system_error(error: BaseException) -> WebFailure | None:
    match error:
        case ssl.SSLCertVerificationError():
            refused = tls.Refused.of(error)
            failure = WebFailure("certificate", f"certificate not accepted: {refused}")
            failure.refused = refused
            return failure
        case ssl.SSLError():
            reason = ticket_line(error.reason or str(error), 200)
            wanted = "CERTIFICATE_REQUIRED" in reason
            return WebFailure(
                "tls",
                f"TLS handshake failed: {reason}",
                hint="set `client_certificate`" if wanted else None,
            )
        case socket.gaierror():
            return WebFailure(
                "dns", f"the host name has no address: {error.strerror or error}"
            )
        case ConnectionRefusedError():
            return WebFailure("refused", "connection refused")
        case OSError(errno=code) if code in _EXHAUSTED:
            return WebFailure(
                "local", f"this machine ran out of resources: {error.strerror}"
            )
        case OSError(strerror=str() as reason) if error.errno:
            return WebFailure("network", f"the connection failed: {reason}")
        case _:
            return None


def _chain(error: BaseException, depth: int = 8) -> Iterator[BaseException]:
    """Yield the causes of `error`, the deepest first, then itself."""
    below = error.__cause__ or error.__context__
    if depth and below is not None:
        yield from _chain(below, depth - 1)
    if depth and isinstance(error, BaseExceptionGroup):
        for member in error.exceptions[:4]:
            yield from _chain(member, depth - 1)
    yield error
