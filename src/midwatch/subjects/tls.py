"""TLS certificates: read them also where they are refused, and find every reason for which they are.

The standard library reads a certificate only after it accepted it, and those that matter here are those
that it refused. `cryptography` reads their fields (RFC 5280, section 4.1).
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    @classmethod
    def unreadable(cls, not_after: datetime) -> Certificate:
        """Return one of which only the end is known."""
        begin = datetime.fromtimestamp(0, UTC)
        return cls(UNREADABLE, UNREADABLE, begin, not_after, (UNREADABLE,))


@lru_cache(maxsize=256)
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


# ------------------------------------------------------------------ connections


def chain(secured: ssl.SSLObject) -> tuple[bytes, ...]:
    """Return the certificates of a connection in DER form, the server's own first.

    Where the connection was verified they lead to the trusted one; else they are those that the server sent.
    """
    # Python 3.13 made public what the object below it has since 3.10.
    source: Any = secured
    if not hasattr(secured, "get_verified_chain"):
        source = secured._sslobj  # type: ignore[attr-defined]
    verified = secured.context.verify_mode is not ssl.CERT_NONE
    found = source.get_verified_chain() if verified else source.get_unverified_chain()
    return tuple(
        one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes())
        for one in found or ()
    )


def accepted_until(secured: ssl.SSLObject) -> datetime | None:
    """Return when the server's own certificate ends, or None.

    Python knows it only for a certificate that it verified and whose names it can decode.
    """
    try:
        end = (secured.getpeercert() or {}).get("notAfter")
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(end)), UTC)
    except ValueError:
        return None


# ------------------------------------------------------------------ what OpenSSL refuses

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python has no name for
_NAME_CODES = {
    62,
    63,
    64,
}  # X509_V_ERR_HOSTNAME_MISMATCH, of an e-mail and of an IP address


class Refused(Exception):
    """A certificate that was not accepted. `code` is that of OpenSSL, which stops at the first reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code

    @classmethod
    def of(cls, error: ssl.SSLCertVerificationError) -> Refused:
        reason = ticket_line(error.verify_message or str(error), 200)
        return cls(error.verify_code, reason)


@dataclass(frozen=True, slots=True)
class Problems:
    """Why a certificate is not accepted: each is one line, or "" where it is fine, or None if unknown.

    `untrusted` has every reason that is neither a name nor, where `chain` is known, a date. `chain` is as that of `chain`.
    """

    untrusted: str | None
    misnamed: str | None
    chain: tuple[bytes, ...] = ()

    @classmethod
    def of_first(cls, refused: Refused) -> Problems:
        """Return what the first reason alone tells."""
        if refused.code in _NAME_CODES:
            return cls(None, str(refused))
        return cls(str(refused), None)


_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED


def failure_of(error: BaseException) -> ObservationFailed | None:
    """Return why TLS with a server failed, with what to do; None if `error` is about something else.

    Args:
        error: What a driver raised, from the error of OpenSSL or while it handled that.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    if found is None:
        return None
    said = (found.reason or str(found)).lower().replace("_", " ")
    if isinstance(found, ssl.SSLCertVerificationError):
        said = ticket_line(found.verify_message or said, 200)
        if found.verify_code in _NAME_CODES:
            hint = "use a name that the server's certificate has, or give it one for this name"
        elif found.verify_code == _EXPIRED:
            hint = "renew the server's certificate"
        else:
            hint = "set ca_file to the authority that signed the server's certificate"
        return ObservationFailed(
            f"the server's certificate is refused: {said}", hint=hint
        )
    hint = "does the server speak TLS on this port?"
    if "alert" in said:
        hint = "does the server ask for a client_certificate, from an authority that it trusts?"
    return ObservationFailed(f"TLS failed: {ticket_line(said, 200)}", hint=hint)


async def examine(
    handshake: Callable[[ssl.SSLContext], Awaitable[tuple[bytes, ...]]],
    context: Callable[[], Awaitable[ssl.SSLContext]],
) -> Problems:
    """Return all the reasons for which a certificate is not accepted: one does not hide the others.

    Args:
        handshake: Connects with a context and returns the chain. Raises Refused.
        context: Makes a context that trusts the authorities of the settings, which is changed here.
    """
    anything = await context()
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    sent = await handshake(anything)
    trusting = await context()
    trusting.check_hostname = False
    trusting.verify_flags |= _NO_CHECK_TIME
    # This one trusts the certificate itself, whatever its dates, but still compares its names.
    naming = await context()
    naming.load_verify_locations(cadata=sent[0])
    naming.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    untrusted = misnamed = ""
    verified: tuple[bytes, ...] = ()
    try:
        verified = await handshake(trusting)
    except Refused as refused:
        untrusted = str(refused)
    try:
        await handshake(naming)
    except Refused as refused:
        misnamed = str(refused) if refused.code in _NAME_CODES else ""
    return Problems(untrusted, misnamed, verified or sent)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How a client verifies servers, and shows itself to them.

    Attributes:
        verify: Whether certificates are verified at all.
        ca_file: A PEM file of certificates to trust besides the system's authorities.
        client_certificate: A PEM file with what is presented to servers that ask for one.
        client_key: The PEM file of its key, if the first has none.
        alone: Whether `ca_file`, where it is given, is trusted instead of the system's authorities.
    """

    verify: bool = True
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    alone: bool = False

    @property
    def has_files(self) -> bool:
        return self.ca_file is not None or self.client_certificate is not None

    async def new(self, path: str) -> ssl.SSLContext:
        """Do the same as `new_context` on a thread."""
        return await asyncio.to_thread(self.new_context, path)

    async def shared(self, path: str) -> ssl.SSLContext:
        """Do the same as `shared_context` on a thread, unless it is made already."""
        if (known := self._ready()) is not None:
            return known
        return await asyncio.to_thread(self.shared_context, path)

    def new_context(self, path: str) -> ssl.SSLContext:
        """Return a context that may be changed; it takes 15 ms and 1 MB.

        `path` is that of the settings, which an error names. Raises SettingsError for files that cannot be used.
        """
        context = ssl_context(
            self.verify, self.ca_file, f"{path}.ca_file", alone=self.alone
        )
        if self.client_certificate is not None:
            load_client_certificate(
                context,
                self.client_certificate,
                self.client_key,
                f"{path}.client_certificate",
            )
        return context

    def shared_context(self, path: str) -> ssl.SSLContext:
        """Return the context that all clients with these settings and files share, and must not change.

        It blocks while it is made. Raises as `new_context`.
        """
        with _making:
            if (known := self._ready()) is not None:
                return known
            made = self.new_context(path)
            _shared[self] = self._versions(), made
            return made

    def _ready(self) -> ssl.SSLContext | None:
        """Return the shared context if it is made already, and the files are as they were."""
        versions, context = _shared.get(self, (None, None))
        return context if versions == self._versions() else None

    def _versions(self) -> Sequence[object]:
        """Return what changes when one of the files is written again."""
        given = (self.ca_file, self.client_certificate, self.client_key)
        return tuple(map(_version, filter(None, given)))


_making = threading.Lock()
_shared: dict[TlsSettings, tuple[Sequence[object], ssl.SSLContext]] = {}
"""The contexts of this process. They hold no connection and no session, and are as many as there are settings."""


def _version(file: Path) -> tuple[int, int, int] | None:
    """Return the version of a file; None without it."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def ssl_context(
    verify: bool, ca_file: Path | None, path: str, *, alone: bool = False
) -> ssl.SSLContext:
    """Return how certificates are verified.

    Args:
        verify: Whether they are verified at all.
        ca_file: A PEM file of certificates to trust besides the system's authorities.
        path: The path of the setting that an error names.
        alone: Whether `ca_file`, where it is given, is trusted instead of these authorities.

    Raises:
        SettingsError: `ca_file` has no certificates.
    """
    if alone:  # not strict: MySQL's own certificates do not have all fields of RFC 5280
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = verify
        context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
        if ca_file is None:
            context.load_default_certs()
    else:
        import httpx2

        context = httpx2.create_ssl_context(verify=verify, trust_env=False)
    # As curl and browsers do: Python's own list lacks ciphers with SHA-1, which TLS 1.2 allows.
    context.set_ciphers("DEFAULT")
    # As curl does, and Python since 3.13: an intermediate authority in `ca_file` is enough.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
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


def load_client_certificate(
    context: ssl.SSLContext, certificate: Path, key: Path | None, path: str
) -> None:
    """Let `context` present a certificate to servers that ask for one.

    `path` is the path of the setting. Raises SettingsError for files that cannot be used.
    """
    try:
        # Without a password a key with a passphrase would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=b"")
    except OSError as error:
        raise SettingsError(
            f"{certificate} cannot be used: {error.strerror or error}",
            path=path,
            hint="use a PEM file with a certificate and its key, or `client_key`; the key without a passphrase",
        ) from None


# ------------------------------------------------------------------ for a person


def describe(certificates: Sequence[Certificate], now: datetime) -> str:
    """Return a chain as evidence, the server's own certificate first, one field a line."""
    lines: list[str] = []
    for number, found in enumerate(certificates):
        left = (found.not_after - now).total_seconds()
        lines += [
            f"subject: {found.subject}",
            f"issuer: {found.issuer}",
            f"not before: {found.not_before:%Y-%m-%d %H:%M:%S} UTC",
            f"not after: {found.not_after:%Y-%m-%d %H:%M:%S} UTC",
            (
                f"left: {format_duration(left)}"
                if left > 0
                else f"expired: {format_duration(-left)} ago"
            ),
        ]
        if not number:
            lines.insert(2, f"names: {', '.join(found.names) or '(none)'}")
    return "\n".join(lines)
