"""The fields of a TLS certificate that a person asks for (RFC 5280, section 4.1).

The standard library reads a certificate only after it accepted it, and the ones that matter here
are those that it refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

from ._text import one_line

if TYPE_CHECKING:
    from cryptography import x509

UNREADABLE = "(cannot be read)"
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whom it names, who signed it and when it is valid (aware, in UTC).

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
    """Names are decoded when they are asked for, and more strictly than authorities write them."""
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
        f"{attribute.rfc4514_attribute_name}={one_line(str(attribute.value), 100)}"
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
    return tuple(one_line(str(n.value), 100) for n in islice(hosts, _MOST_NAMES))
