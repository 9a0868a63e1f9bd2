"""Workspaces: several repositories cloned side by side, looked at and pushed safely afterwards.

The way through: `plan` decides and refuses (pure), `setup` clones everything or nothing through
`clone`, `mirrors` and `staging`; after an agent has worked there, `snapshot` takes what it did into
a git directory of ours (`hostile`, `intake`), `inspect` describes it and `push` sends it. `git` is the
only runner of git, `faults` the only reader of its words.
"""

from midwatch.workspace.environment import Credential, GitEnvironment
from midwatch.workspace.git import Git, GitLimits, OnProgress, Progress
from midwatch.workspace.inspect import RepoState, diff_of, inspect_workspace
from midwatch.workspace.mirrors import Mirror, Mirrors
from midwatch.workspace.plan import Plan, RepoSpec, plan_workspace
from midwatch.workspace.push import PushOptions, PushResult, push_workspace
from midwatch.workspace.record import Workspace, open_workspace
from midwatch.workspace.setup import (
    WorkspaceOptions,
    setup_workspace,
    setup_workspace_async,
)

__all__ = [
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
    "RepoSpec",
    "RepoState",
    "Workspace",
    "WorkspaceOptions",
    "diff_of",
    "inspect_workspace",
    "open_workspace",
    "plan_workspace",
    "push_workspace",
    "setup_workspace",
    "setup_workspace_async",
]
