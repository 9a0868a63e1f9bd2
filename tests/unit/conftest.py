"""Unit tests start no server and no program, unless they are marked `integration`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import croniter  # noqa: F401 - it starts the program `file` when it is imported
import pytest

_STARTED: list[str] = []
_STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}


def _watch(
    event: str, arguments: tuple[object, ...], starts: set[str] = _STARTS
) -> None:
    # A hook outlives the names of its module when the interpreter ends.
    if event in starts or (event == "socket.bind" and isinstance(arguments[1], tuple)):
        _STARTED.append(f"{event} {arguments[1]!r:.200}" if arguments else event)


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _starts_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    _STARTED.clear()
    yield
    if request.node.get_closest_marker("integration") is None:
        assert not _STARTED, f"mark this test `integration`: it starts {_STARTED}"
