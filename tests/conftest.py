"""What all tests share."""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import ManualClock

from . import environment

pytest.register_assert_rewrite("midwatch.testing.store_conformance")

# The same examples on every machine and in every run: whoever breaks a property is the one
# who changed something. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("same")

_home = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before anything is collected: modules of tests ask the environment too."""
    config.stash[_home] = environment.enter()
    gc.disable()  # while modules are imported it costs seconds and frees nothing


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Compile a share of the modules before those of the other workers are imported, too.

    In a new checkout each worker would compile all, at the same time, which takes longer than all else that it collects.
    """
    given = getattr(session.config, "workerinput", None)
    if given is None:
        return
    number, root = int(given["workerid"].removeprefix("gw")), session.config.rootpath
    folders = [folder for folder in map(Path, session.config.args) if folder.is_dir()]
    tests = {file for folder in folders for file in folder.rglob("test_*.py")}
    for file in sorted((root / "src").rglob("*.py"))[number :: given["workercount"]]:
        compileall.compile_file(file, quiet=2)
    for file in sorted(tests)[number :: given["workercount"]]:
        # What is wrong with it, the collection tells.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            name = file.resolve().relative_to(root).with_suffix("")
            importlib.import_module(".".join(name.parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes minutes comes first, so that it does not run alone at the end.
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("needs_root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    environment.leave(config.stash[_home])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[SqlStore]:
    """A SQLite store in memory whose database clock is `clock`."""
    opened = await open_store("sqlite://", clock=clock.database)
    yield opened
    await opened.close()
