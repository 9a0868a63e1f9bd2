"""Workspaces: several repositories cloned side by side, inspected and pushed safely afterwards.

`plan` decides and refuses (pure). `setup` clones all repositories or none, through `clone`, `mirrors` and
`record`. After an agent has worked there, `snapshot` takes its changes into the trusted git directory
(through `untrusted`), `inspect` describes them and `push` pushes them. Only `git` runs git.

A repository has three types: `RepoSpec` is the request, `ClonedRepo` the clone, `RepoState` its state.
"""

from midwatch.workspace.environment import Credential, GitEnvironment
from midwatch.workspace.git import Git, GitLimits, OnProgress, Progress
from midwatch.workspace.inspect import RepoState, diff_of, inspect_workspace
from midwatch.workspace.mirrors import Mirror, Mirrors
from midwatch.workspace.plan import RepoLike, RepoSpec, WorkspacePlan, plan_workspace
from midwatch.workspace.push import PushOptions, PushResult, push_workspace
from midwatch.workspace.record import ClonedRepo, Workspace, open_workspace
from midwatch.workspace.setup import (
    WorkspaceOptions,
    setup_workspace,
    setup_workspace_async,
)

Plan = WorkspacePlan  # the former name, for one release

__all__ = [
    "ClonedRepo",
    "Credential",
    "Git",
    "GitEnvironment",
    "GitLimits",
    "Mirror",
    "Mirrors",
    "OnProgress",
    "Plan",
    "Progress",
    "PushOptions",
    "PushResult",
    "RepoLike",
    "RepoSpec",
    "RepoState",
    "Workspace",
    "WorkspaceOptions",
    "WorkspacePlan",
    "diff_of",
    "inspect_workspace",
    "open_workspace",
    "plan_workspace",
    "push_workspace",
    "setup_workspace",
    "setup_workspace_async",
]
