"""How a session went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.events import Failure, Phase, Spend
from midwatch.model import Usage
from midwatch.session.records import RepositoryRecord
from midwatch.status import SessionStatus
from midwatch.workspace.inspect import RepoState, inspect_workspace
from midwatch.workspace.record import Workspace, load_record
from midwatch.workspace.setup import WorkspaceOptions


@dataclass(frozen=True, slots=True)
class SessionResult:
    """How a session stands after its last run.

    `text` is Claude's last answer. `turns` are calls of the API, `duration` is the seconds spent in
    turns; they and `models` are sums over the whole session. `repositories` are those of a
    workspace that `setup_workspace` made. `error` is what ended the last run, with a hint.
    """

    session_id: str
    phase: Phase
    reason: str
    text: str
    turns: int
    duration: float
    usage: Usage
    cost_usd: float
    models: Mapping[str, Spend]
    conversation: str
    folder: Path
    error: Failure | None = None
    repositories: tuple[RepoState, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return self.phase is Phase.COMPLETED


def result_of(
    session_id: str,
    status: SessionStatus,
    folder: Path,
    conversation: str,
    repositories: tuple[RepoState, ...],
) -> SessionResult:
    return SessionResult(
        session_id=session_id,
        phase=status.phase,
        reason=status.reason,
        text=status.result,
        turns=status.turns,
        duration=status.active_seconds,
        usage=status.usage,
        cost_usd=status.cost_usd,
        models=dict(status.spend),
        conversation=conversation,
        folder=folder,
        error=status.error,
        repositories=repositories,
    )


def recorded_workspace(path: Path, options: WorkspaceOptions) -> Workspace | None:
    """The workspace that `setup_workspace` made at this path, if it did."""
    return load_record(options.state_of(path))


async def states_of(
    workspace: Workspace | None, options: WorkspaceOptions
) -> tuple[RepoState, ...]:
    """The state of its repositories; raises what git raises."""
    if workspace is None:
        return ()
    git = options.git()
    return tuple(await inspect_workspace(workspace, git))


def repository_record(state: RepoState) -> RepositoryRecord:
    return RepositoryRecord(
        name=state.name,
        url=state.url,
        status=state.status,
        branch=state.branch,
        commits=state.commit_count,
        files=len(state.files),
        added=state.added,
        removed=state.removed,
        untracked=state.untracked,
        problem=state.problem,
    )
