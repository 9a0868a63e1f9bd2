"""The rules of names and texts: limits, regular expressions, and the names of a session's objects.

The expressions mean the same to RE2 and to Python. `resource` uses them for its own checks and for the schema, so that the
API server refuses what the operator would. What they cannot express (a host that does not exist) the runner refuses.
Object names follow from the session's name, so that a repeated create finds its own objects.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache

# A variable of the environment has at most 131,072 bytes on Linux (MAX_ARG_STRLEN in execve(2)), its name
# and the NUL at its end included. The runner gets the prompt and the repositories in one variable each.
MAX_PROMPT_BYTES = 120_000
MAX_REPOS = 32
MAX_URL = 1000
MAX_BRANCH = 200
MAX_VARIABLES = 64
MAX_VARIABLE_NAME = 100
MAX_VARIABLE = 4096
MAX_SECRETS = 32
MAX_SECONDS = 604_800
"""A week."""
MAX_RESTARTS = 10

NO_NUL = r"^[^\x00]*$"
NOT_BLANK = r"[^\x00-\x20]"
FOLDER = r"^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$"
"""A name that is valid on every file system, and is not hidden, an option, or a path."""
DEVICE = r"^(con|prn|aux|nul|(com|lpt)[1-9])(\..*)?$"
"""The device names of Windows, in lower case: a clone of such a name cannot be copied there."""
URL = (
    r"^((https?|ssh)://[A-Za-z0-9_\[][!-~]*|file:///[!-~]+|/[!-~]+"
    r"|([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_][A-Za-z0-9._-]*:/?[!-,.0-9;-~][!-~]*)$"
)
"""https, http, ssh, `git@host:path`, file or a local path; not an option or a remote helper such as ext::."""
URL_WITH_CREDENTIALS = (
    r"^(https?|ssh)://([^/]*:[^/]*@|[^/@\[]*:[^/]*[^0-9/][^/]*/.*@)"
    r"|^[^@/:]*:[^@/][^@]*@[^@/:]*:"
    r"|^[^@/:]+:[^@/]+@([A-Za-z0-9-]+\.)+[A-Za-z]{2,}/"
    r"|^(https?|ssh):/?[^/].*:.*@"
    r"|^(https?://|ssh://)?(gh[opsur]_|github_pat_|gl(pat|dt|cbt|ptt)-|ATCTT|ATBB)[^/@]*@"
    r"|^https?://[A-Za-z0-9_=-]{40,}@"
)
"""A password, also one with a slash or without a scheme, or a token in place of the user name. A user name alone is none."""
BAD_BRANCH = (
    r"^[-/.]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$|^(@|HEAD)$"
)
"""Names that git refuses below refs/heads/ (git check-ref-format), and options."""
MODEL = r"^[A-Za-z0-9][!-~]*$"
OBJECT_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
SECRET_KEY = r"^[A-Za-z0-9._-]+$"
SYSTEM_CLASS = "system-"
"""Prefix of the priority classes of the cluster's own pods."""
ANNOTATION = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
"""The name of an annotation: a name of 63 characters, after the domain of who reads it."""
RESERVED_ANNOTATIONS = (
    "midwatch.dev/",
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
    # Container runtimes: devices, and switches of the sandbox.
    *("cdi.k8s.io/", "dev.gvisor.", "io.katacontainers.", "io.kubernetes.cri-o."),
    "iam.amazonaws.com/",  # roles of kube2iam and kiam
)
"""Prefixes of annotations that a resource must not set: they loosen the confinement of its container, or grant it permissions."""
MAX_ANNOTATIONS = 32
MAX_ANNOTATION = 4096
VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"
"""A quantity of Kubernetes, such as 500m or 2Gi."""
_UNITS = {"": Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", 1)}
_UNITS |= {f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)}


def fits(pattern: str, text: str) -> bool:
    """Return whether RE2 finds `pattern` in `text`. Its `$` matches at the very end only, as Python's `\\Z` does."""
    return _compiled(pattern).search(text) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\$(?=$|\)|\|)", r"\\Z", pattern))


def quantity(amount: str | int) -> Decimal:
    """Return the value of a quantity. Raises ValueError for anything else.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    text = str(amount)
    if not fits(QUANTITY, text):
        raise ValueError(f"{text[:30]!r} is not a quantity such as 500m or 2Gi")
    unit = text.lstrip("0123456789.")
    return Decimal(text.removesuffix(unit)) * _UNITS[unit]


# ------------------------------------------------------------------ names

GROUP = "midwatch.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "AgenticSession"
PLURAL = "agenticsessions"
SINGULAR = "agenticsession"
SHORT_NAME = "as"

FINALIZER = f"{GROUP}/save-workspace"
"""Keeps the resource until the runner has had its time to save."""
SESSION_LABEL = f"{GROUP}/session"
"""A label of all objects of a session: the session's name."""
UID_LABEL = f"{GROUP}/session-uid"
ATTEMPT_LABEL = f"{GROUP}/attempt"
"""A label of a Job and its pods: the number of the attempt, from 1."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "midwatch-operator"}

MAX_NAME = 50
"""Characters of a session's name: a Job's name becomes a label of its pods, which has at most 63."""
CONTAINER = "session"
"""The runner's container in its pod."""


def job_name(session: str, attempt: int) -> str:
    """Return the name of the Job of an attempt."""
    return f"{session}-run-{attempt}"


def account_name(session: str) -> str:
    """Return the name of the service account, its role and its role binding."""
    return f"{session}-session"


def secret_name(session: str) -> str:
    """Return the name of the secret with the token for the content proxy."""
    return f"{session}-content"


def claim_name(session: str) -> str:
    """Return the name of the volume claim of the workspace."""
    return f"{session}-workspace"


def content_folder(namespace: str, session: str, uid: str) -> str:
    """Return the session's folder behind the content proxy.

    It includes the resource's uid, so that a new resource of an old name starts with an empty folder.
    """
    return f"{namespace}/{session}.{uid[:8]}"


DISRUPTION_REASONS = frozenset(
    ("Evicted", "Preempting", "NodeShutdown", "Terminated", "NodeAffinity")
    + ("PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI")
    + ("DeletionByPodGC", "TerminationByKubelet")
)
"""Reasons why Kubernetes removes a pod: `status.reason` of a pod, and the reasons of its DisruptionTarget."""
REASONS = DISRUPTION_REASONS | frozenset(
    ("Completed", "Stopped", "Idle", "Interrupted", "InvalidSpec", "NameTooLong")
    + ("ImagePull", "InvalidImageName", "CreateContainerConfigError")
    + ("CreateContainerError", "RunContainerError", "StartError", "NeverStarted")
    + (
        "Unschedulable",
        "SchedulingGated",
        "NoPod",
        "OutOfMemory",
        "DeadlineExceeded",
        "TimedOut",
    )
    + ("SessionTimedOut", "SessionIdle", "TurnLimit", "BudgetSpent", "KeyRefused")
    + ("ModelNotFound", "RateLimited", "Overloaded", "ApiUnreachable", "ApiFailed")
    + ("RepositoryNotFound", "NotAuthorised", "RepositoryUnreachable", "PushFailed")
    + ("ContentUnavailable", "TokenRefused", "BadEnvironment", "ExitCode")
    + ("OutcomeUnknown", "NodeLost", "Killed", "PodDeleted", "PodFailed", "PodGone")
    + ("JobDeleted",)
)
"""Reasons with which a session can end, as docs/kubernetes.md lists them. Others can write a status as well, so
any other reason is counted as `other`."""
