"""Which user of this machine a connection from it belongs to, as Linux tells."""

from __future__ import annotations

import pwd
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
Address = tuple[str, int]


def user_of(client: Address, server: Address) -> str | None:
    """Return USER@HOST for the process at the client's end of a connection; None where that is not known."""
    for table in _TABLES:
        try:
            lines = table.read_text("ascii").splitlines()
        except OSError:
            continue
        uid = uid_in(lines[1:], client, server)
        if uid is not None:
            return f"{_name(uid)}@{socket.gethostname()}"
    return None


def uid_in(lines: Iterable[str], client: Address, server: Address) -> int | None:
    """Return the user id of a connection in lines of /proc/net/tcp (proc(5)): its client's end is local."""
    ends = f":{client[1]:04X}", f":{server[1]:04X}"
    for line in lines:
        fields = line.split()
        if not (fields[1].endswith(ends[0]) and fields[2].endswith(ends[1])):
            continue
        if _same(fields[1], client[0]) and _same(fields[2], server[0]):
            return int(fields[7])
    return None


def _same(written: str, host: str) -> bool:
    """Return whether an address in hexadecimal, of 32-bit words of this machine, is `host`."""
    words = written.partition(":")[0]
    packed = b"".join(
        bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8)
    )
    return _plain(ip_address(packed)) == _plain(ip_address(host))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
