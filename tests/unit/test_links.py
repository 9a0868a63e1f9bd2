"""Links between subjects: what is found in settings and text, what is not, and that nothing waits for a name."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.agent.addresses import addresses_in
from midwatch.agent.link_graph import LinkGraph
from midwatch.agent.links import Links
from midwatch.errors import SettingsError
from midwatch.subjects.base import Address, Subject, build_subjects, dependencies

from ..waiting import PATIENCE

HOST: dict[str, Any] = {"name": "box", "kind": "host"}


def http(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "http", "url": url, **more}


def postgres(name: str, dsn: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "postgres", "dsn": dsn, **more}


def links(*written: Mapping[str, Any], **more: Any) -> Links:
    subjects: list[Subject] = build_subjects(written)
    return Links(subjects, dependencies(written), **more)


def pairs(found: Links) -> set[tuple[str, str]]:
    return {(link.subject, link.on) for link in found.links()}


def test_the_settings_name_what_a_subject_needs() -> None:
    found = links(
        http("shop", "https://shop.example/", depends_on=["api"]),
        http("api", "https://api.example/", depends_on=["orders-db"]),
        postgres("orders-db", "postgresql://u:p@db.example/orders"),
        http("other", "https://other.example/"),
    )
    assert pairs(found) == {("shop", "api"), ("api", "orders-db")}
    assert found.reach("shop") == ["orders-db", "api"]
    assert found.related("api") == {"shop", "orders-db"}
    assert found.related("other") == frozenset()
    assert found.deepest_first(["shop", "orders-db", "api", "shop"]) == [
        "orders-db",
        "api",
        "shop",
    ]


def test_what_needs_one_system_is_one_incident_and_what_shares_a_machine_is_not() -> (
    None
):
    found = links(
        HOST,
        http("shop", "http://127.0.0.1:8081/", depends_on=["api"]),
        http("api", "https://api.example/", depends_on=["db"]),
        http("admin", "http://127.0.0.1:8082/", depends_on=["db"]),
        http("blog", "http://127.0.0.1:8083/"),
        postgres("db", "host=db.example"),
    )
    assert found.related("shop") == {"api", "db", "admin", "box"}
    assert found.related("blog") == {"box"}
    assert found.related("box") == {"shop", "admin", "blog"}
    assert found.related("db") == {"shop", "api", "admin"}


@pytest.mark.parametrize(
    ("written", "path"),
    [(["orders-bd"], "subjects[0].depends_on[0]"), (["shop", "x"], "depends_on[1]")],
)
def test_a_name_that_no_subject_has_is_an_error(written: list[str], path: str) -> None:
    with pytest.raises(SettingsError) as caught:
        links(
            http("shop", "https://shop.example/", depends_on=written),
            postgres("orders-db", "host=db.example"),
        )
    assert path in caught.value.one_line()


def test_a_cycle_ends() -> None:
    found = links(
        http("a", "https://a.example", depends_on=["b", "a"]),
        http("b", "https://b.example", depends_on=["c"]),
        http("c", "https://c.example", depends_on=["a"]),
        http("d", "https://d.example", depends_on=["a"]),
    )
    assert found.related("a") == {"b", "c", "d"}
    assert sorted(found.reach("b")) == ["a", "c"]
    assert found.deepest_first(["d", "c", "a"])[-1] == "d"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p@127.0.0.1:5433/x",
        "host=/run/postgresql port=5433",
        "host=localhost",
        "postgresql://u@[::1]/x",
        "dbname=x",
        "host=db.example hostaddr=127.0.0.9",
        "host=db.example,localhost port=5432,5433",
    ],
)
def test_what_is_on_this_machine_depends_on_it(dsn: str) -> None:
    found = links(HOST, postgres("orders-db", dsn))
    assert pairs(found) == {("orders-db", "box")}


def test_one_address_is_one_system() -> None:
    found = links(
        http("home", "https://Shop.example/"),
        http("health", "https://shop.example:443/health"),
        http("plain", "http://shop.example/"),
        postgres("a", "host=/run/a"),
        postgres("b", "host=/run/b"),
        postgres("c", "host=localhost"),
    )
    assert pairs(found) == {
        *(("home", "health"), ("health", "home")),
        *(("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")),
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "postgresql://mon:secret@DB.example:5432/orders"],
        ["psql", "-h", "db.example", "-p", "5432", "-c", "select 1"],
        ["psql", "--host=db.example", "--port=5432"],
        ["psql", "host=db.example dbname=orders"],
        ["check_tcp", "db.example:5432"],
        ["check_pg", "-H", "x", "--dsn", "postgres://db.example/"],
        ["nc", "-z", "[2001:db8::7]:5432"],
    ],
)
def test_a_command_line_names_what_it_asks(argv: list[str]) -> None:
    found = links(
        {"name": "queue", "kind": "command", "command": argv},
        postgres("orders-db", "host=db.example,2001:db8::7 port=5432"),
        postgres("other-db", "host=db.example port=5433"),
    )
    assert ("queue", "orders-db") in pairs(found)
    assert found.reach("orders-db") == []


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        (
            'connect() failed (111) while connecting to upstream, upstream: "http://10.0.0.7:8081/x"',
            "app",
        ),
        (
            'connection to server at "db.example" (10.0.0.9), port 5432 failed: FATAL',
            "db",
        ),
        ("dial tcp 10.0.0.7:8081: connect: connection refused", "app"),
        ("getaddrinfo ENOTFOUND db.example", "db"),
        ("JDBC: Connection to app.host/10.0.0.7:8081 refused.", "app"),
        ("Error 111 connecting to 10.0.0.7:8081.", "app"),
        ("status streaming\nsender_host=db.example sender_port=5432 slot=a", "db"),
        ("SQLSTATE[08006] host=db.example;port=5432", "db"),
        ("GET http://10.0.0.7:8081 HTTP/1.1", "app"),
        ("at 10:00.0.7:8081, 110.0.0.7:8081, 10.0.0.7:80811, db.example:54322", ""),
    ],
)
def test_a_message_names_what_it_could_not_reach(text: str, needs: str) -> None:
    found = links(
        http("proxy", "https://shop.example/"),
        http("app", "http://10.0.0.7:8081/health"),
        postgres("db", "host=db.example"),
    )
    found.learn_opening("proxy", text, {"count": 3})
    assert {link.on for link in found.links()} == ({needs} if needs else set())


def test_a_loopback_address_means_the_machine_of_whoever_says_it() -> None:
    written = (
        http("far", "http://10.0.0.7:80/"),
        http("near", "http://127.0.0.1:80/"),
        http("far-app", "http://10.0.0.7:8081/"),
        http("near-app", "http://localhost:8081/"),
    )
    found = links(*written)
    text = 'upstream: "http://127.0.0.1:8081/"'
    found.learn("far", text, "its evidence")
    found.learn("near", text, "its evidence")
    assert pairs(found) == {("far", "far-app"), ("near", "near-app")}


def test_labels_name_a_host_or_a_subject() -> None:
    found = links(
        {"name": "prom", "kind": "prometheus", "url": "http://prom.example:9090"},
        postgres("orders-db", "host=10.0.0.9"),
        http("app", "http://10.0.0.7:8081/"),
        http("checkout", "http://10.0.0.8/"),
    )
    facts = {"label_instance": "10.0.0.9:9187", "label_service": "checkout"}
    found.learn_opening("prom", "DiskFull fires", {**facts, "label_x": "app.example"})
    assert pairs(found) == {("prom", "orders-db"), ("prom", "checkout")}
    assert found.deepest_first(["prom", "checkout"]) == ["checkout", "prom"]


def test_what_was_read_is_forgotten() -> None:
    now = [0.0]
    found = links(
        http("proxy", "https://shop.example/"),
        http("app", "http://10.0.0.7:8081/"),
        monotonic=lambda: now[0],
    )
    found.learn("proxy", "10.0.0.7:8081", "its evidence")
    assert found.related("app") == {"proxy"}
    now[0] = 3601.0
    assert found.related("app") == frozenset()


def test_a_thousand_sites_of_one_proxy_are_linked_without_a_million_links() -> None:
    sites = [http(f"site-{n}", f"https://10.0.0.7/{n}") for n in range(1000)]
    found = links(*sites)
    assert len(found.links()) == 1000
    assert len(found.related("site-7")) == len(found.reach("site-7")) == 999


def test_a_text_about_what_many_share_links_to_all_of_them_by_one() -> None:
    sites = [http(f"site-{n:02}", f"https://10.0.0.7/{n}") for n in range(50)]
    found = links(*sites, http("shop", "https://shop.example/"))
    found.learn("shop", 'upstream: "https://10.0.0.7/x"', "its evidence")
    assert [link.on for link in found.among(["shop", "site-00", "site-49"])][:1] == [
        "site-00"
    ]
    assert len(found.reach("shop")) == 50
    assert "shop" in found.related("site-31")


def test_a_host_of_many_services_is_the_machine_alone() -> None:
    many = [http(f"app-{n}", f"http://box.example:{8000 + n}/") for n in range(50)]
    near = [http(f"app-{n}", f"http://127.0.0.1:{8000 + n}/") for n in range(50)]
    prom = {"name": "prom", "kind": "prometheus", "url": "http://127.0.0.1:9090"}
    for some, host, on in (
        (many[:3], "box.example", {"app-0", "app-1", "app-2"}),
        (many, "box.example", set()),
        ([*near, HOST], "127.0.0.1", {"box"}),
    ):
        found = links(prom, *some)
        found.learn_opening("prom", "a node is down", {"label_node": host})
        assert {link.on for link in found.links() if link.subject == "prom"} == on


@pytest.mark.parametrize("url", ["https://10.0.0.7/{}", "http://host-{}.example/"])
def test_a_ticket_costs_the_same_however_many_subjects_there_are(url: str) -> None:
    """On one address and on an address each. What is counted are calls, as they do not depend on the machine."""

    def calls(subjects: int) -> int:
        sites = [http(f"site-{n}", url.format(n)) for n in range(subjects)]
        found = links(*sites, http("db", "http://10.0.0.9/"))

        def ticket(number: int) -> None:
            name, said = f"site-{number}", f"{url.format(number)} answered 503"
            found.learn_opening(name, f"{said}, upstream http://10.0.0.9/", {})
            found.reach(name)
            found.deepest_first([name, "db", *found.related(name)])
            list(islice(found.among([name, *found.related(name)]), 20))

        for number in range(3):
            ticket(number)
        count = 0

        def called(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(called)
        try:
            for number in range(3, 6):
                ticket(number)
        finally:
            sys.setprofile(None)
        return count

    assert calls(2000) < 1.5 * calls(200)


names_ = st.sampled_from("abcdefg")


@given(st.sets(st.tuples(names_, names_)), st.sets(st.tuples(names_, names_)))
def test_a_graph_finds_what_following_each_link_finds(
    links_: set[tuple[str, str]], learned: set[tuple[str, str]]
) -> None:
    found = LinkGraph(learned, LinkGraph(links_))
    needs = {one: reached(one, links_ | learned) for one in "abcdefg"}
    for name, others in needs.items():
        assert found.reached(name) == others - {name}
        users = {one for one, all_ in needs.items() if all_ & ({name, *others} - {"g"})}
        near = (
            others | users
            if name != "g"
            else others | {one for one, all_ in needs.items() if all_ & {name, *others}}
        )
        assert found.related(name, "g".__eq__) == near - {name}
    order = found.deepest_first("gfedcba")
    for name, other in links_ | learned:
        if name not in needs[other]:
            assert order.index(other) < order.index(name)


def reached(name: str, pairs: set[tuple[str, str]]) -> set[str]:
    found = {on for one, on in pairs if one == name}
    while more := {on for one, on in pairs if one in found} - found:
        found |= more
    return found


def test_a_machine_does_not_depend_on_what_its_process_table_shows() -> None:
    found = links(HOST, http("app", "http://127.0.0.1:8081/"))
    found.learn("box", "python app.py --listen 127.0.0.1:8081", "its evidence")
    assert pairs(found) == {("app", "box")}


def test_names_of_one_address_are_one_host_and_nothing_waits_for_them() -> None:
    asked, release = threading.Event(), threading.Event()

    def resolve(host: str) -> Sequence[str]:
        if host == "a.example":
            asked.set()
            assert release.wait(PATIENCE)
        if host == "gone.example":
            raise OSError("no such name")
        return ["10.0.0.9"]

    found = links(
        postgres("orders-db", "host=a.example"),
        postgres("orders", "host=b.example"),
        postgres("gone", "host=gone.example"),
        resolve=resolve,
    )
    found.refresh()
    assert asked.wait(PATIENCE)
    found.refresh()
    assert pairs(found) == set()  # while the name server does not answer
    release.set()
    found.wait(PATIENCE)
    assert pairs(found) == {("orders-db", "orders"), ("orders", "orders-db")}


def test_links_are_made_once_a_second_while_names_are_resolved() -> None:
    """Of thousands of names each would make all of them anew while tickets open."""
    steps = {f"{name}.example": threading.Event() for name in "abcd"}
    asked = {host: threading.Event() for host in steps}
    now = [0.0]

    def resolve(host: str) -> Sequence[str]:
        asked[host].set()
        assert steps[host].wait(PATIENCE)
        return ["10.0.0.9"]

    found = links(
        *(postgres(host[0], f"host={host}") for host in steps),
        resolve=resolve,
        monotonic=lambda: now[0],
    )
    found.refresh()
    assert asked["a.example"].wait(PATIENCE) and not pairs(found)
    for name, following in ("ab", "bc"):
        steps[f"{name}.example"].set()
        assert asked[f"{following}.example"].wait(PATIENCE)
        assert not pairs(found)
    now[0] = 1.0
    assert pairs(found) == {("a", "b"), ("b", "a")}
    steps["c.example"].set()
    steps["d.example"].set()
    found.wait(PATIENCE)
    assert len(pairs(found)) == 12, "the last are not waited for"


def test_addresses_are_found_in_linear_time() -> None:
    for text in ("a" * 100_000, "a." * 50_000, "http://" * 15_000, "/a" * 50_000):
        assert addresses_in(text) == [] or len(addresses_in(text)) < 10


def test_the_folder_of_a_socket_keeps_its_case() -> None:
    for text in (
        'on socket "/srv/App/socket/.s.PGSQL.5433" failed',
        "psql host=/srv/App/socket port=5433",
    ):
        assert addresses_in(text) == [Address("/srv/App/socket", 5433)]
    assert addresses_in("https://Shop.Example/") == [Address("shop.example", 443)]


def test_an_address_is_shown_as_it_is_written() -> None:
    assert str(Address("2001:db8::7", 5432)) == "[2001:db8::7]:5432"
    assert str(Address("box", None)) == "box"
