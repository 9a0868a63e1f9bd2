"""What lines of logs and reports say is wrong, and whose error page an answer is."""

from __future__ import annotations

import pytest

from midwatch.playbooks.symptoms import CAUSE, ranked, symptom_of, ties
from midwatch.subjects.error_pages import error_page
from midwatch.subjects.http_client import Answer


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("write error: No space left on device", "no space is left"),
        ("OSError: [Errno 28] ENOSPC", "no space is left"),
        ("java.lang.OutOfMemoryError: Java heap space", "memory ran out"),
        ("Out of memory: Killed process 41 (billing)", "memory ran out"),
        ("listen tcp :80: bind: address already in use", "port is taken"),
        ('nginx: [emerg] unknown directive "prox_pass"', "configuration is not valid"),
        ("FATAL: password authentication failed for user", "login is refused"),
        ("x509: certificate has expired or is not yet valid", "certificate"),
        ("dial tcp: lookup db: no such host", "host name has no address"),
        (
            "dial tcp 10.0.0.7:5432: connect: connection refused",
            "refuses the connection",
        ),
        ("upstream timed out (110: Connection timed out)", "in time"),
        ("FATAL: sorry, too many clients already", "all connections"),
        ("segfault at 0 ip 00007f sp 00007f error 4", "crashed"),
        ("EXT4-fs (sda1): Remounting filesystem read-only file system", "read-only"),
        ("worker 3 failed", "an error"),
        # A client chose what is quoted.
        ('open() "/www/no space left" failed (13: Permission denied)', "permission"),
        ('{"db": "connection refused"}', "refuses the connection"),
    ],
)
def test_what_a_line_says(line: str, named: str) -> None:
    symptom = symptom_of(line)
    assert symptom is not None and named in symptom.name


@pytest.mark.parametrize(
    "line",
    [
        "backup ok, 0 errors",
        "finished without errors",
        "failed: 0, passed: 12",
        "connect_timeout = 10s",
        "all is well",
        "last error: none",
    ],
)
def test_a_line_that_says_nothing(line: str) -> None:
    assert symptom_of(line) is None


def test_causes_come_before_consequences_and_the_component_before_others() -> None:
    lines = [
        ("E2", "no space left on /backup for orders"),
        ("E2", "timeout while waiting for orders"),
        ("E2", "permission denied: /tmp of another"),
    ]
    found = ranked(lines, ["orders"])
    assert [one.symptom.weight for one in found] == [CAUSE, CAUSE, 1]
    assert found[0].about and "no space" in found[0].quote
    assert ties(found) == found[:1], "only one is about the component"
    assert len(ties(ranked(lines))) == 2 and not ties([])


def answer(status: int, body: bytes, server: str = "") -> Answer:
    headers = (("server", server),) if server else ()
    return Answer(status, "", "HTTP/1.1", headers, body, False, 0.1, ())


NGINX = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
HAPROXY = b"<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>\n"
APACHE = b'<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN">\n<html><head>\n<title>503 Service Unavailable</title>\n</head>'


@pytest.mark.parametrize(
    ("body", "server", "program"),
    [
        (NGINX, "nginx", "nginx"),
        (HAPROXY, "", "HAProxy"),
        (APACHE, "Apache", "Apache"),
        (b"no healthy upstream", "envoy", "Envoy"),
        (b"Bad Gateway", "", "Traefik"),
        (b"error code: 522", "cloudflare", "Cloudflare"),
        (b"", "Caddy", "Caddy"),
        (b"", "nginx", ""),
        (b'{"error": "no healthy upstream in the pool"}', "envoy", ""),
        (b"<h1>Sorry, we will be back</h1>", "nginx", ""),
    ],
)
def test_whose_error_page_it_is(body: bytes, server: str, program: str) -> None:
    assert error_page(answer(503, body, server)) == program
    assert not error_page(answer(200, body, server))
