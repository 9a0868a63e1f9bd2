"""Only a process that is known to have ended counts as such; whatever is in doubt may run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from midwatch.process_identity import has_ended, process_name

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def name_of(pid: int) -> str:
    name = process_name(pid)
    assert name is not None
    return name


def test_a_killed_process_has_ended_before_and_after_its_parent_knows(
    child: subprocess.Popen[bytes],
) -> None:
    name = name_of(child.pid)
    assert not has_ended(name)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # leaves the zombie
    assert has_ended(name)
    child.wait()
    assert has_ended(name)


def test_a_process_id_that_is_used_again_is_another_process(
    child: subprocess.Popen[bytes],
) -> None:
    place, start = name_of(child.pid).rsplit(" ", 1)
    assert has_ended(f"{place} {int(start) - 1}")


@pytest.mark.parametrize("part", range(4))
def test_nobody_elsewhere_is_known_to_have_ended(
    part: int, child: subprocess.Popen[bytes]
) -> None:
    """Another host, another boot, another namespace of process ids or of times: the same id is another process there."""
    parts = name_of(child.pid).split(" ")
    child.kill()
    child.wait()
    parts[part] = parts[part].replace("]", "1]") if "]" in parts[part] else "other"
    assert not has_ended(" ".join(parts))


@pytest.mark.parametrize("name", ["", "agent 7", "] 1 2", "] -1 2", "] ٣ 2", "a] 1"])
def test_what_is_no_name_says_nothing(name: str) -> None:
    assert not has_ended(name)


def test_it_runs_itself() -> None:
    assert not has_ended(name_of(os.getpid()))
