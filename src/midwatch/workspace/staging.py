"""All or nothing: clones are made aside and moved into their places when all are whole.

A state folder and a workspace are two folders, so the moves cannot be one step. The record is
written before them with the name of the staging folder; who finds it there after a crash finishes the moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.plan import Plan
from midwatch.workspace.record import (
    ClonedRepo,
    Workspace,
    finished,
    load_record,
    save_record,
)

PREFIX = ".midwatch-"


@dataclass(frozen=True, slots=True)
class Staging:
    """Where clones and state are made: `clones` inside the workspace, `state` beside the real one."""

    plan: Plan
    clones: Path
    state: Path
    final_state: Path

    def commit(self, repos: Iterable[ClonedRepo]) -> Workspace:
        """Everything is whole: record it, then move it into place. Raises WorkspaceExists."""
        for repo in self.plan.repos:
            if os.path.lexists(repo.path):
                raise WorkspaceExists(
                    f"{repo.path} was taken while it was being cloned"
                )
        workspace = Workspace(
            path=self.plan.workspace,
            state=self.final_state,
            main=self.plan.main,
            session_branch=self.plan.session_branch,
            repos=tuple(repos),
            staging=self.clones.name,
        )
        save_record(workspace, self.state)
        self.state.rename(self.final_state)
        return move_into_place(workspace)


@contextlib.asynccontextmanager
async def staged(plan: Plan, state: Path) -> AsyncIterator[Staging]:
    """A place to make the workspace in; what is left there at the end is removed.

    The workspace folder itself is removed too if it was made here and stays empty.
    """
    made = _missing_parents(plan.workspace)
    number = secrets.token_hex(4)
    clones = plan.workspace / f"{_prefix(state)}{number}"
    fresh_state = state.with_name(f"{state.name}.new-{number}")
    try:
        clones.mkdir(parents=True)
        fresh_state.mkdir(parents=True, mode=0o700)
        yield Staging(plan, clones, fresh_state, state)
    finally:
        # With a record, moves have begun: what is left is for the next set-up to finish.
        if load_record(state) is None:
            # Shielded: a second cancellation must not leave half of it.
            await asyncio.shield(asyncio.to_thread(_remove, clones, fresh_state, made))


def move_into_place(workspace: Workspace) -> Workspace:
    """Move what is still in the staging folder. Raises WorkspaceExists if a place is taken."""
    if workspace.staging is None:
        return workspace
    staging = workspace.path / workspace.staging
    for repo in workspace.repos:
        source = staging / repo.name
        if source.is_dir() and not repo.path.exists():
            source.rename(repo.path)
        elif not repo.path.is_dir() or source.is_dir():
            raise WorkspaceExists(f"{repo.path} was taken while it was being cloned")
    done = finished(workspace)
    save_record(done)
    shutil.rmtree(staging, ignore_errors=True)
    return done


def sweep(workspace: Path, state: Path) -> None:
    """Remove what a killed set-up of this very workspace left; its lock must be held."""
    leftovers = [*workspace.glob(f"{_prefix(state)}*")]
    leftovers += state.parent.glob(f"{state.name}.new-*")
    for left in leftovers:
        shutil.rmtree(left, ignore_errors=True)


def _prefix(state: Path) -> str:
    # Two state folders never sweep each other's clones.
    return f"{PREFIX}{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-"


def _missing_parents(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove(clones: Path, state: Path, made: list[Path]) -> None:
    shutil.rmtree(clones, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):  # somebody else uses it by now
            folder.rmdir()
