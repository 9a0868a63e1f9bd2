"""The kind `host` on the machine that runs the tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.model import Key, Observation
from midwatch.monitor.rules import check
from midwatch.subjects.host import HostSubject, OffLoop
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..waiting import PATIENCE

MARK = "midwatch-test-process"
PASSWORD = "--password=hunter2-hunter2"


def host(**settings: object) -> HostSubject:
    given = {"name": "box", "timeout": 60, **settings}
    return HostSubject(HostSubject.settings_model.model_validate(given))


def broken(subject: HostSubject, observation: Observation) -> set[Key]:
    known = {invariant.id: invariant for invariant in subject.invariants}
    return set(check("box", known, observation, {}, 0.0).broken)


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process whose command line has a mark and a password."""
    script = "import sys; sys.stdout.write('up'); sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script, MARK, PASSWORD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stdout.read(2) == b"up"
        yield process.pid
        process.kill()


@pytest.mark.usefixtures("short_walk")
async def test_this_machine_conforms(sleeper: int) -> None:
    check_kind(HostSubject)
    subject = host(processes=[{"pattern": MARK}])
    observation = await check_subject(subject)
    assert observation is not None
    assert observation.covered == {
        "disk",
        "inodes",
        "memory",
        "swap",
        "load",
        "process",
    }
    values = {(s.invariant, s.component): s.value for s in observation.signals}
    space = os.statvfs("/")
    used = space.f_blocks - space.f_bfree
    assert values["disk", "/"] == pytest.approx(
        used / (used + space.f_bavail), abs=0.02
    )
    assert 0 < (values["memory", "memory"] or 0) < 1


async def test_limits_break_and_hold(tmp_path: Path) -> None:
    tight = host(
        mounts=[tmp_path],
        invariants={"disk": {"limit": 0}, "memory": {"limit": "100%"}},
    )
    observation = await tight.observe({})
    keys = broken(tight, observation)
    assert Key("box", "disk", str(tmp_path)) in keys
    assert Key("box", "memory", "memory") in keys
    wide = host(mounts=[tmp_path], invariants={"disk": {"limit": "100%"}})
    assert not {key.invariant for key in broken(wide, await wide.observe({}))} & {
        "disk"
    }


async def test_a_mount_that_is_gone_is_unknown_not_well(tmp_path: Path) -> None:
    subject = host(mounts=[tmp_path / "gone"])
    observation = await check_subject(subject)
    assert observation is not None
    assert not observation.covers("disk") and observation.covers("memory")
    assert observation.unavailable["disk"].endswith("gone: No such file or directory")


SCENARIOS = {
    "full_and_gone": "a full mount keeps its ticket while it is gone",
    "listed_and_gone": "a listed mount that is gone is told",
    "hangs": "a mount that hangs or lost its server hides no other",
    "ignored": "what is left out is not asked, and reported",
    "once_each": "bind mounts and layers count once, pseudo file systems do not",
    "denied": "what the user may not see is said once, with the remedy",
    "hidden_processes": "processes that hidepid hides are unknown",
}


@pytest.mark.needs_root
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_in_a_mount_namespace(scenario: str) -> None:
    """See the scenario's own assertions in `host_namespace.py`."""
    if shutil.which("unshare") is None or _run("true").returncode:
        pytest.skip("no mount namespace here")
    if scenario in ("hangs", "ignored") and not os.path.exists("/dev/fuse"):
        pytest.skip("no FUSE here")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # for nobody
        python = (sys.executable, "-m", "tests.acceptance.host_namespace")
        done = _run(*python, scenario, folder)
        assert done.returncode == 0, done.stdout[-4000:]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    unshare = ("unshare", "--mount", "--propagation", "private", "--")
    return subprocess.run(
        [*unshare, *command],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


async def test_processes_are_counted_and_their_arguments_kept_quiet(
    sleeper: int,
) -> None:
    subject = host(processes=[{"pattern": MARK, "min": 2}, {"name": "no-such-thing"}])
    observation = await subject.observe({})
    found = {s.component: s for s in observation.signals if s.invariant == "process"}
    assert found[f"/{MARK}/"].value == 1 and found[f"/{MARK}/"].holds is False
    assert found["no-such-thing"].message == (
        "0 of at least 1 processes no-such-thing run"
    )
    texts = "\n".join([await source.fetch() for source in subject.sources(())])
    assert f"pid {sleeper} python" in texts and "none runs" in texts
    assert PASSWORD not in texts
    assert "by memory:" in texts and "processors:" in texts


async def test_what_the_system_does_not_show_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = host(processes=[{"name": "postgres"}])
    kept = await subject.observe({"full": {"disk": [["/data", "nfs"]]}})
    assert ("disk", "/data", None) in {
        (s.invariant, s.component, s.holds) for s in kept.signals
    }
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    observation = await subject.observe(kept.state)
    hidden = {"disk", "inodes", "memory", "swap", "process"}
    assert observation.unavailable.keys() == hidden and observation.covered == {"load"}
    assert all("cannot be read" in why for why in observation.unavailable.values())
    assert observation.state == kept.state, "what was full is not forgotten"


@pytest.mark.usefixtures("short_walk")
async def test_a_required_process_can_be_left_out() -> None:
    ignore = [{"process": "no-such-*"}]
    subject = host(
        processes=[{"name": "no-such-thing"}, {"name": "nor-this"}],
        invariants={"process": {"ignore": ignore}},
    )
    observation = await check_subject(subject)
    assert observation is not None
    assert observation.ignored["process"] == ("no-such-thing",)
    found = {key for key in broken(subject, observation) if key.invariant == "process"}
    assert found == {Key("box", "process", "nor-this")}
    with pytest.raises(SettingsError, match="process has no attribute mount"):
        host(invariants={"process": {"ignore": [{"mount": "/"}]}})


async def test_a_check_that_hangs_is_left_alone_and_not_repeated() -> None:
    release = threading.Event()
    off_loop = OffLoop()
    with pytest.raises(ObservationFailed, match="no result within 0.05 s"):
        await off_loop.run(release.wait, 0.05, "disk")
    with pytest.raises(ObservationFailed, match="an earlier observation still hangs"):
        await off_loop.run(release.wait, 0.05, "disk")
    release.set()
    for _ in range(200):
        try:
            assert await off_loop.run(lambda: 42, 1, "disk") == 42
            return
        except ObservationFailed:
            await asyncio.sleep(0.01)
    raise AssertionError("it never came back")


@pytest.mark.parametrize(
    "wrong",
    [
        {"processes": [{}]},
        {"processes": [{"name": "a", "pattern": "b"}]},
        {"processes": [{"pattern": "("}]},
        {"processes": [{"name": "a", "min": 0}]},
    ],
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        host(**wrong)
