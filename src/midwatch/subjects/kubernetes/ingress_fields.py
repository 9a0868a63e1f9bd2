"""What is kept of an Ingress: its services, its hosts with TLS, and where it is reached (pure)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

from midwatch.model import Json
from midwatch.subjects.kubernetes.object_fields import (
    Object,
    count_of,
    head_of,
    map_of,
    maps_of,
    text_of,
)

_HOST = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*"
)
_HTTPS, _HTTP = 443, 80


@dataclass(slots=True)
class Ingress(Object):
    """An Ingress.

    Attributes:
        services: The services that it sends requests to.
        tls_hosts: The hosts for which it has TLS, each with the name of its Secret. A wildcard stands for those of its rules.
        addresses: Where it is reached, as its status says: IP address or name, and the port for TLS.
    """

    services: tuple[str, ...]
    tls_hosts: dict[str, str]
    addresses: tuple[tuple[str, int], ...]


def read_ingress(body: Json) -> Ingress:
    spec = map_of(body, "spec")
    rules = maps_of(spec, "rules")
    backends = [map_of(spec, "defaultBackend")]
    for rule in rules:
        backends += [
            map_of(path, "backend") for path in maps_of(map_of(rule, "http"), "paths")
        ]
    names = [text_of(map_of(one, "service"), "name") for one in backends]
    return Ingress(
        *head_of(body),
        services=tuple(dict.fromkeys(filter(None, names))),
        tls_hosts=_tls_hosts(spec, [text_of(one, "host") for one in rules]),
        addresses=tuple(_addresses(map_of(map_of(body, "status"), "loadBalancer"))),
    )


def _tls_hosts(spec: Json, ruled: list[str]) -> dict[str, str]:
    """Return the hosts with TLS; an entry without hosts is for those of the rules that no other entry has."""
    found: dict[str, str] = {}
    entries = sorted(maps_of(spec, "tls"), key=lambda one: not one.get("hosts"))
    for entry in entries:
        hosts = entry.get("hosts")
        given = hosts if isinstance(hosts, list) and hosts else ruled
        for host in given:
            some = [host]
            if str(host).startswith("*."):
                some = [one for one in ruled if one.partition(".")[2] == host[2:]]
            for one in some:
                if isinstance(one, str) and _HOST.fullmatch(one):
                    found.setdefault(one, text_of(entry, "secretName"))
    return found


def _addresses(balancer: Json) -> Iterator[tuple[str, int]]:
    for one in maps_of(balancer, "ingress"):
        address = text_of(one, "ip") or text_of(one, "hostname")
        ports = [
            count_of(port, "port")
            for port in maps_of(one, "ports")
            if port.get("protocol", "TCP") == "TCP"
        ]
        secure = [port for port in ports if port not in (_HTTP, 0)]
        port = secure[0] if secure and _HTTPS not in ports else _HTTPS
        if _HOST.fullmatch(address) or _is_ip(address):
            yield address, port


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return "%" not in address
