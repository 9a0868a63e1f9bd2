"""What the server counts, and its metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from midwatch.change_settings import ChangeSender
from midwatch.metrics import Family, Sample, code_label

ChangeOutcome = Literal["stored", "ignored", "refused", "unreadable", "failed"]

_REQUESTS = Family(
    "midwatch_server_requests_total",
    "counter",
    "Requests answered; the route of an unknown address is `other`.",
    ("route", "code"),
)
_SECONDS = Family(
    "midwatch_server_request_seconds_total",
    "counter",
    "Seconds from the head of a request to the end of its answer, without streams.",
    ("route",),
)
_RECEIVED = Family(
    "midwatch_server_received_bytes_total",
    "counter",
    "Bytes of request bodies received.",
)
_SENT = Family(
    "midwatch_server_sent_bytes_total", "counter", "Bytes of response bodies sent."
)
_ACTIVE = Family("midwatch_server_requests", "gauge", "Requests in progress.")
_STREAMS = Family("midwatch_server_streams", "gauge", "Open streams of events.")
_CHANGES = Family(
    "midwatch_server_changes_total",
    "counter",
    "Reports of changes by sender and outcome: stored, ignored (no change, or of no subject), refused (no proof of who sent it), unreadable, failed.",
    ("sender", "outcome"),
)
SERVER = (_REQUESTS, _SECONDS, _RECEIVED, _SENT, _ACTIVE, _STREAMS, _CHANGES)
_SENDERS = (*get_args(ChangeSender), "api")
_OUTCOMES = get_args(ChangeOutcome)


@dataclass(slots=True)
class ServerStats:
    """Counts since the start of the server, and what is in progress.

    Attributes:
        requests: By route (the template of the address) and status.
        seconds: By route.
        received: Bytes of request bodies.
        sent: Bytes of response bodies.
        active: Requests in progress, without streams.
        streams: Open streams of events.
        bodies: Bytes of bodies in memory.
        changes: Reports of changes, by sender and outcome.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    received: int = 0
    sent: int = 0
    active: int = 0
    streams: int = 0
    bodies: int = 0
    changes: Counter[tuple[str, ChangeOutcome]] = field(default_factory=Counter)


def server_samples(stats: ServerStats) -> Iterator[Sample]:
    """Return the values of a server."""
    codes: Counter[tuple[str, str]] = Counter()
    for (route, status), count in stats.requests.items():
        codes[route, code_label(status)] += count
    for (route, code), count in codes.items():
        yield _REQUESTS(count, route, code)
    for route, seconds in stats.seconds.items():
        yield _SECONDS(seconds, route)
    yield _RECEIVED(stats.received)
    yield _SENT(stats.sent)
    yield _ACTIVE(stats.active)
    yield _STREAMS(stats.streams)
    for sender in _SENDERS:
        for outcome in _OUTCOMES:
            yield _CHANGES(stats.changes[sender, outcome], sender, outcome)
