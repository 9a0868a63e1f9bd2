"""Which user of this machine a connection from it belongs to, as Linux tells."""

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from midwatch.session_ancestry import session_with_socket

# linux/sock_diag.h, linux/inet_diag.h
_SOCK_DIAG, _BY_FAMILY, _REQUEST, _ANY = 4, 20, 1, 0xFFFFFFFF
_PORT_AT, _UID_AT = (
    22,
    80,
)  # bytes before the other end's port, and before user id and inode in an answer
_ANSWER_SECONDS = 0.1
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
Address = tuple[str, int]


def user_of(client: Address, server: Address) -> str | None:
    """Return USER@HOST for the process at the client's end of a connection; None where that is not known."""
    uid = uid_of(client, server)
    for table in _TABLES if uid is None else ():
        try:
            lines = table.read_text("ascii").splitlines()
        except OSError:
            continue
        uid = uid_in(lines[1:], client, server)
        if uid is not None:
            break
    return None if uid is None else f"{_name(uid)}@{socket.gethostname()}"


def uid_of(client: Address, server: Address) -> int | None:
    """Return the user id of a connection whose client's end is local; None if the kernel does not say."""
    found = _ask(client, server)
    return None if found is None else found[0]


def is_of_session(client: Address, server: Address) -> bool:
    """Return whether a program of a session of this machine is at the client's end, as far as that can be seen."""
    found = _ask(client, server)
    return found is not None and session_with_socket(found[1])


def _ask(client: Address, server: Address) -> tuple[int, int] | None:
    """Return user id and inode of the client's end of a connection; None if the kernel does not say.

    It is asked for this one connection by sock_diag(7): its tables in /proc take 6 ms of processor time each.
    """
    ends = [_plain(ip_address(host)) for host, _ in (client, server)]
    family = socket.AF_INET if ends[0].version == 4 else socket.AF_INET6
    asked = struct.pack("=BBxxI", family, socket.IPPROTO_TCP, _ANY)
    asked += struct.pack(
        "!HH16s16s", client[1], server[1], *(end.packed for end in ends)
    )
    asked += struct.pack("=III", 0, _ANY, _ANY)
    head = struct.pack("=IHHII", 16 + len(asked), _BY_FAMILY, _REQUEST, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
            kernel.settimeout(_ANSWER_SECONDS)
            kernel.sendto(head + asked, (0, 0))
            answer = kernel.recv(4096)
        kind = struct.unpack_from("=IH", answer)[1]
        port = struct.unpack_from("!H", answer, _PORT_AT)[0]
        uid, inode = struct.unpack_from("=II", answer, _UID_AT)
    except (OSError, AttributeError, struct.error):  # not Linux, or not allowed
        return None
    # Where there is no such connection it is the socket that listens on the client's port, if there is one.
    fits = kind == _BY_FAMILY and port == server[1]
    return (int(uid), int(inode)) if fits else None


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
