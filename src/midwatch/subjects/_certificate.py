"""What a TLS certificate says, read from its DER form.

The standard library tells a certificate's fields only when it accepted the certificate, and the ones
that matter here are those it refused. Only the fields a person asks for are read
(RFC 5280, section 4.1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from ._text import one_line

_OID = 0x06
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_ALTERNATIVE_NAMES = b"\x55\x1d\x11"
_NAME_PARTS = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O", b"\x55\x04\x0b": "OU"}


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whom it names, who signed it and when it is valid."""

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]


def parse(der: bytes) -> Certificate:
    """Raises ValueError when `der` is no certificate."""
    whole = next(_items(der), (0, b""))[1]
    fields = list(_items(next(_items(whole), (0, b""))[1]))
    if fields and fields[0][0] == _VERSION:
        fields = fields[1:]
    if len(fields) < 6:
        raise ValueError("not a certificate")
    _serial, _algorithm, issuer, validity, subject, _key, *rest = fields
    times = [_time(tag, content) for tag, content in _items(validity[1])]
    if len(times) != 2:
        raise ValueError("a certificate without its two dates")
    extensions = next((content for tag, content in rest if tag == _EXTENSIONS), b"")
    return Certificate(
        subject=_name(subject[1]),
        issuer=_name(issuer[1]),
        not_before=times[0],
        not_after=times[1],
        names=tuple(_alternative_names(extensions))[:20],
    )


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each DER item in `data`."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("cut DER item")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise ValueError("DER length out of bounds")
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("cut DER item")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii", "replace")
    if tag == _UTC_TIME:  # two-digit years: 50 to 99 are of the 1900s
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a date of an unknown form")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _name(content: bytes) -> str:
    parts = []
    for _, group in _items(content):
        for _, pair in _items(group):
            items = list(_items(pair))
            label = _NAME_PARTS.get(items[0][1]) if len(items) == 2 else None
            if label:
                text = one_line(items[1][1].decode("utf-8", "replace"), 100)
                parts.append(f"{label}={text}")
    return ", ".join(parts) or "(no name)"


def _alternative_names(extensions: bytes) -> Iterator[str]:
    for _, sequence in _items(extensions):
        for _, extension in _items(sequence):
            items = list(_items(extension))
            if len(items) >= 2 and items[0] == (_OID, _ALTERNATIVE_NAMES):
                yield from _general_names(items[-1][1])


def _general_names(content: bytes) -> Iterator[str]:
    for _, sequence in _items(content):
        for tag, value in _items(sequence):
            if tag == _DNS_NAME:
                yield one_line(value.decode("ascii", "replace"), 100)
            elif tag == _IP_ADDRESS and len(value) in (4, 16):
                yield str(ipaddress.ip_address(value))
