"""Each invariant of the kind `http` in each way of not knowing: unknown with a reason, never resolved."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import UNRESOLVED, Key, Observation
from midwatch.monitor.loop import MonitorLoop
from midwatch.monitor.rules import check
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore
from midwatch.subjects.http import INVARIANTS, HttpSubject
from midwatch.testing.fakes import ManualClock

from ..waiting import PATIENCE
from .web import Issued, ok, sending, serving, subject

Way = Callable[[Path], contextlib.AbstractContextManager[HttpSubject]]
WAYS: dict[str, tuple[Way, str]] = {}
"""Each way of not knowing, and the state of the invariants in their order: holds, broken or unknown."""


def way(states: str) -> Callable[[Way], Way]:
    def add(function: Way) -> Way:
        WAYS[function.__name__.replace("_", " ")] = (
            contextlib.contextmanager(function),  # type: ignore[arg-type]
            states,
        )
        return function

    return add


def watching(url: str, **settings: object) -> HttpSubject:
    return subject(url, **{"body_matches": "well", **settings})


# reachable, status, latency, body; certificate_valid, certificate_name, certificate_expiry


@way("hhhh hhh")
def nothing_is_wrong(_: Path) -> Iterator[HttpSubject]:
    with serving(ok) as url:
        yield watching(url)


@way("buuu uuu")
def the_port_is_closed(_: Path) -> Iterator[HttpSubject]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield watching(f"http://127.0.0.1:{bound.getsockname()[1]}")


@way("buuu uuu")
def the_name_has_no_address(_: Path) -> Iterator[HttpSubject]:
    yield watching("https://no-such-host.invalid/")


@way("buuu uuu")
def the_server_is_silent(_: Path) -> Iterator[HttpSubject]:
    released = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        released.wait(PATIENCE)

    with serving(silent) as url:
        yield watching(url, timeout=2)
        released.set()


@way("buuu uuu")
def it_restarts_in_the_middle_of_an_answer(_: Path) -> Iterator[HttpSubject]:
    with sending(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nall is well") as url:
        yield watching(url)


@way("buuu uuu")
def it_speaks_another_protocol(_: Path) -> Iterator[HttpSubject]:
    with sending(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        yield watching(url)


@way("hbuu uuu")
def it_redirects_without_end(_: Path) -> Iterator[HttpSubject]:
    with serving(lambda _: (302, {"Location": "/"}, b"")) as url:
        yield watching(url)


@way("buuu uuu")
def it_redirects_to_a_closed_port(folder: Path) -> Iterator[HttpSubject]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        to = f"https://127.0.0.1:{bound.getsockname()[1]}"
        with serving(lambda _: (302, {"Location": to}, b"")) as url:
            yield watching(url)


@way("hbhb uuu")
def it_wants_a_login(_: Path) -> Iterator[HttpSubject]:
    with serving(lambda _: (401, {}, b"who are you?")) as url:
        yield watching(url)


@way("hhhu hhh")
def the_body_is_longer_than_the_limit(_: Path) -> Iterator[HttpSubject]:
    with serving(lambda _: (200, {}, b"x" * 9000)) as url:
        yield watching(url, body_limit="1kB")


@way("hhhu hhh")
def the_body_is_packed_in_an_unknown_way(_: Path) -> Iterator[HttpSubject]:
    with serving(lambda _: (200, {"Content-Encoding": "br"}, b"\x0b\x02")) as url:
        yield watching(url)


@way("hhhb hhh")
def the_body_is_empty(_: Path) -> Iterator[HttpSubject]:
    with serving(lambda _: (200, {"Content-Encoding": "gzip"}, b"")) as url:
        yield watching(url)


def refused(issued: Issued, trusted: Issued, folder: Path) -> Iterator[HttpSubject]:
    with serving(ok, issued.context(folder)) as url:
        yield watching(
            url.replace("127.0.0.1", "localhost"),
            ca_file=trusted.write(folder, "trusted")[0],
        )


@way("huuu bhh")
def a_stranger_signed_the_certificate(folder: Path) -> Iterator[HttpSubject]:
    yield from refused(Issued.root().issue("localhost"), Issued.root(), folder)


@way("huuu hbh")
def the_certificate_is_for_another_host(folder: Path) -> Iterator[HttpSubject]:
    root = Issued.root()
    yield from refused(root.issue("other.example"), root, folder)


@way("huuu hhb")
def the_certificate_has_expired(folder: Path) -> Iterator[HttpSubject]:
    root = Issued.root()
    yield from refused(root.issue("localhost", -1, 9), root, folder)


@way("uuuu uuu")
def the_proxy_is_down(_: Path) -> Iterator[HttpSubject]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{bound.getsockname()[1]}"
        yield watching("https://shop.example", proxy=proxy)


@way("uuuu uuu")
def this_machine_has_no_descriptors(_: Path) -> Iterator[HttpSubject]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(ok) as url:
        shop = watching(url)
        # The next descriptor is the first one beyond the limit.
        probe = os.open("/dev/null", os.O_RDONLY)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
        try:
            yield shop
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(params=WAYS)
async def watched(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[HttpSubject, dict[str, str]]]:
    """A subject, and the state that each of its invariants has to have."""
    made, states = WAYS[request.param]
    names = (invariant.id for invariant in INVARIANTS)
    # What httpx2 and the event loop import when they are first used is imported before.
    with serving(ok) as url:
        first = subject(url)
        await first.observe({})
        await first.close()
    with made(tmp_path) as shop:
        yield shop, dict(zip(names, states.replace(" ", ""), strict=True))
    await shop.close()


async def test_each_invariant_has_its_state_and_the_unknown_ones_a_reason(
    watched: tuple[HttpSubject, dict[str, str]],
) -> None:
    shop, expected = watched
    reason = ""
    try:
        observation = await shop.observe({})
    except ObservationFailed as failure:
        observation, reason = Observation((), frozenset()), failure.one_line()
    invariants = {one.id: one for one in shop.invariants}
    checked = check(shop.name, invariants, observation, {}, 0.0)

    def state(name: str) -> str:
        key = Key(shop.name, name, shop.target.shown)
        if key in checked.broken:
            return "b"
        return "h" if checked.known(key) else "u"

    assert {name: state(name) for name in expected} == expected
    unseen = {**observation.unavailable, **observation.unsupported}
    if checked.broken or reason:  # one finding, not one more for each that it hides
        assert not unseen
    else:
        assert unseen.keys() == {name for name in expected if expected[name] == "u"}
        assert all(unseen.values())


async def test_what_is_unknown_keeps_its_ticket_and_makes_no_other(
    store: SqlStore, clock: ManualClock, watched: tuple[HttpSubject, dict[str, str]]
) -> None:
    """Of what only a setting or the server makes impossible there is no ticket, in any number of polls."""
    shop, expected = watched
    limits = MonitorSettings(group_wait=0, unobservable_after=2)
    loop = MonitorLoop(store, [shop], limits, clock=clock)
    for _ in range(4):
        await loop.cycle()
    tickets = await store.tickets(TicketFilter(statuses=UNRESOLVED))
    found = {ticket.key.invariant for ticket in tickets}
    broken = {name for name, state in expected.items() if state == "b"}
    blind = {"subject_unobservable"} if set(expected.values()) == {"u"} else set()
    assert found == broken | blind
