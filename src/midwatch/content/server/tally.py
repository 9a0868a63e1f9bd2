"""What the proxy did since its start, in plain numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Route = str
"""The template of an address: names of folders are no part of it."""


@dataclass(slots=True)
class Tally:
    """`requests` by route and status, bodies in bytes; `folders` as the last pass of the collector found
    them, None before the first."""

    requests: Counter[tuple[Route, int]] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    collected: int = 0
    folders: int | None = None

    def served(self, route: Route, status: int, received: int, sent: int) -> None:
        self.requests[route, status] += 1
        self.received += received
        self.sent += sent
