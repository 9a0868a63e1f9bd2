"""Each error has a status, and what a retry can help says when to retry; reads of the kernel's table of connections."""

from __future__ import annotations

import inspect
import json
import os
import socket

import pytest

from midwatch import errors
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.server.peer import uid_in, uid_of
from midwatch.server.problems import problem_of

ERRORS = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if issubclass(one, MidwatchError)
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_says_when_to_retry(
    kind: type[MidwatchError],
) -> None:
    answer = problem_of(kind("something broke"))
    assert answer.media_type == "application/problem+json"
    assert json.loads(answer.body)["detail"] == "something broke"
    may_help = issubclass(kind, TemporaryError) and answer.status_code != 409
    assert may_help <= (answer.status_code == 503)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)


def test_a_retry_is_told_in_whole_seconds() -> None:
    error = errors.StoreBusy(retry_after=0.2)
    assert problem_of(error).headers["retry-after"] == "1"


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2116 00000000:0000 0A 00000000:00000000 00:00000000 00000000     7        0 1
   1: 0100007F:2116 0100007F:A000 01 00000000:00000000 00:00000000 00000000     7        0 2
   2: 0200007F:A000 0100007F:2116 01 00000000:00000000 00:00000000 00000000    33        0 3
   3: 0100007F:A000 0100007F:2116 01 00000000:00000000 00:00000000 00000000  1000        0 4
"""
TABLE_6 = """\
   0: 0000000000000000FFFF00000100007F:A001 0000000000000000FFFF00000100007F:2116 01 0:0 00:0 0  1001  0 5
   1: 00000000000000000000000001000000:A000 00000000000000000000000001000000:2116 01 0:0 00:0 0  1002  0 6
"""


def test_the_user_at_the_other_end_of_a_connection() -> None:
    lines, server = TABLE.splitlines()[1:], ("127.0.0.1", 0x2116)
    assert uid_in(lines, ("127.0.0.1", 0xA000), server) == 1000
    assert uid_in(lines, ("127.0.0.2", 0xA000), server) == 33
    assert uid_in(lines, ("127.0.0.1", 0xA001), server) is None
    lines = TABLE_6.splitlines()
    assert uid_in(lines, ("127.0.0.1", 0xA001), server) == 1001
    assert uid_in(lines, ("::1", 0xA000), ("::1", 0x2116)) == 1002


@pytest.mark.integration
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_tells_whose_a_connection_is(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        with socket.create_connection(server.getsockname()[:2]) as client:
            here, there = client.getsockname()[:2], client.getpeername()[:2]
            assert uid_of(here, there) == os.getuid()
            if family == socket.AF_INET:  # as a server for both families has it
                mapped = f"::ffff:{host}"
                assert uid_of((mapped, here[1]), (mapped, there[1])) == os.getuid()
            assert uid_of((host, there[1]), (host, here[1] ^ 1)) is None
