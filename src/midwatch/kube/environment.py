"""The contract between the operator and the runner in the pod: environment variables, in one table.

`manifests` writes them into the Job, `serve` reads them, docs/kubernetes.md lists them. Anything else that
starts the runner's image may pass them as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the runner; without a `default` it has to be there."""

    name: str
    meaning: str
    default: str | None = None
    secret: bool = False


VARIABLE_PREFIX = "SESSION_VARIABLE_"
"""Before the names of `spec.environment.variables`: the session's program gets them, and the runner does not."""
SECRET_PREFIX = "SESSION_SECRET_"
"""Before the keys of `spec.environment.secrets`, whose values are kept out of what is written down as well."""

BAD_ENVIRONMENT, UNTOLD, POD_ENDED = 2, 3, 143
"""Exit codes of the runner: its environment is wrong; the status could not be written; the pod was taken away in
the middle of the work, which is what SIGTERM's default is, so that it counts as lost."""

RUNNER_VARIABLES: tuple[Variable, ...] = (
    Variable("ANTHROPIC_API_KEY", "The key of the Claude API.", secret=True),
    Variable("ANTHROPIC_BASE_URL", "Where the Claude API is.", "Anthropic's own"),
    Variable("WORKSPACE_PATH", "The folder of the clones.", "/workspace"),
    Variable("STATE_PATH", "The session's own folder, the mailbox in it.", "/session"),
    Variable("CACHE_PATH", "Where mirrors of repositories are kept.", "/cache"),
    Variable("SESSION_NAME", "The name of the resource; the session's id."),
    Variable("SESSION_NAMESPACE", "The namespace of the resource.", ""),
    Variable(
        "SESSION_UID", "The uid of the resource, so that no other is written to.", ""
    ),
    Variable("SESSION_GENERATION", "The generation of the spec that this runs.", "0"),
    Variable("SESSION_ATTEMPT", "Which attempt this is; above 1 it resumes.", "1"),
    Variable("JOB_NAME", "The Job, as the status names it.", ""),
    Variable("POD_NAME", "The pod, as the status names it.", ""),
    Variable(
        "STATUS", "`resource`: tell the resource's status; `none`: do not.", "resource"
    ),
    Variable("PROMPT", "What to do; may be empty if interactive.", ""),
    Variable("INTERACTIVE", "`true`: read the mailbox until told to end.", "false"),
    Variable(
        "REPOS_JSON",
        "`[{name, input{url, branch}, output{url, branch}}]`, as in the resource.",
    ),
    Variable("MAIN_REPO_INDEX", "The repository that is the working directory.", "0"),
    Variable("MODEL", "The model that works.", "the settings' `sessions.model`"),
    Variable("MAX_TURNS", "Calls of the API in one turn.", "no limit"),
    Variable("MAX_BUDGET_USD", "Dollars of the whole session.", "no limit"),
    Variable("EFFORT", "`low`, `medium`, `high`, `xhigh` or `max`.", "the model's own"),
    Variable("TIMEOUT", "Seconds this attempt may take.", "3600"),
    Variable(
        "IDLE_TIMEOUT",
        "Seconds without a sign of life in a turn, or without a message in interactive mode.",
        "900",
    ),
    Variable("AUTO_PUSH_ON_COMPLETE", "`true`: push what was done.", "false"),
    Variable(
        "TRUST_REPOSITORIES",
        "`true`: load the repositories' own `.claude` settings, hooks and `.mcp.json`.",
        "false",
    ),
    Variable(
        "RESUME_FROM",
        "The session whose workspace and conversation this continues.",
        "",
    ),
    Variable("RESUME_FROM_FOLDER", "Its folder behind the content proxy.", ""),
    Variable(
        "CONTENT_URL",
        "Where the content proxy is; empty: the volume is all there is.",
        "",
    ),
    Variable("CONTENT_TOKEN", "The token for the folder there.", "", secret=True),
    Variable("CONTENT_FOLDER", "The session's folder there, `NAMESPACE/NAME.UID`.", ""),
    Variable("SYNC_INTERVAL", "Seconds between two pushes of the workspace.", "5"),
    Variable(
        "STATUS_INTERVAL", "Seconds between two writes of an unchanged phase.", "5"
    ),
    Variable(
        "TERMINATION_GRACE",
        "Seconds between the SIGTERM and the SIGKILL that the pod gets at its end.",
        "60",
    ),
    Variable(
        "GIT_TOKEN", "A token for the repositories' hosts over https.", "", secret=True
    ),
    Variable("GIT_USERNAME", "The user name beside it.", "x-access-token"),
)
