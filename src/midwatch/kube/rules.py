"""What the texts in a resource may be: bounds, and regular expressions that RE2 and Python read alike.

`resource` takes them from here for itself and for the schema, so that the API server refuses what the operator would.
What they cannot say (a host that does not exist, a branch that git finds odd) the runner refuses.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache

# A variable of the environment has at most 131,072 bytes on Linux (MAX_ARG_STRLEN in execve(2)), its name
# and the NUL at its end included. The runner is told the prompt and the repositories in one each.
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
"""A name that every file system takes; it cannot be hidden, an option, or a path."""
DEVICE = r"^(con|prn|aux|nul|(com|lpt)[1-9])(\..*)?$"
"""The device names of Windows, in lower case: a clone called so cannot be copied there."""
URL = (
    r"^((https?|ssh)://[A-Za-z0-9_\[][!-~]*|file:///[!-~]+|/[!-~]+"
    r"|([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_][A-Za-z0-9._-]*:/?[!-,.0-9;-~][!-~]*)$"
)
"""https, http, ssh, `git@host:path`, file or a local path: no option, no helper such as ext::."""
URL_WITH_CREDENTIALS = r"^https?://[^/]*@|^ssh://[^/@]*:[^/@]*@"
BAD_BRANCH = (
    r"^[-/.]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$|^(@|HEAD)$"
)
"""What git does not take as the end of refs/heads/… (git check-ref-format), and options."""
MODEL = r"^[A-Za-z0-9][!-~]*$"
OBJECT_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
SECRET_KEY = r"^[A-Za-z0-9._-]+$"
VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"
"""An amount as Kubernetes writes it, such as 500m or 2Gi."""
_UNITS = {"": Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", 1)}
_UNITS |= {f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)}


def fits(pattern: str, text: str) -> bool:
    """Whether RE2 finds `pattern` in `text`; there `$` is the very end, also before a last line feed."""
    return _compiled(pattern).search(text) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\$(?=$|\)|\|)", r"\\Z", pattern))


def quantity(amount: str | int) -> Decimal:
    """What an amount comes to. Raises ValueError for what is none.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    text = str(amount)
    if not fits(QUANTITY, text):
        raise ValueError(f"{text[:30]!r} is no amount such as 500m or 2Gi")
    unit = text.lstrip("0123456789.")
    return Decimal(text.removesuffix(unit)) * _UNITS[unit]


# ------------------------------------------------------------ names
# Names in the cluster. Every one follows from the session's, so that a repeated create finds its own.

GROUP = "midwatch.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "AgenticSession"
PLURAL = "agenticsessions"
SINGULAR = "agenticsession"
SHORT_NAME = "as"

FINALIZER = f"{GROUP}/save-workspace"
"""Held until the runner has had its time to save."""
SESSION_LABEL = f"{GROUP}/session"
"""On all that belongs to a session: its name."""
UID_LABEL = f"{GROUP}/session-uid"
ATTEMPT_LABEL = f"{GROUP}/attempt"
"""On a Job and its pods: which attempt they are, from 1."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "midwatch-operator"}

MAX_NAME = 50
"""Characters of a session's name: a Job's name is a label of its pods, and so has 63."""
CONTAINER = "session"
"""The runner's container in its pod."""


def job_name(session: str, attempt: int) -> str:
    return f"{session}-run-{attempt}"


def account_name(session: str) -> str:
    """Of the service account, its role and the binding of the two."""
    return f"{session}-session"


def secret_name(session: str) -> str:
    """Of the secret with the token for the content proxy."""
    return f"{session}-content"


def claim_name(session: str) -> str:
    """Of the volume claim of the workspace."""
    return f"{session}-workspace"


def content_folder(namespace: str, session: str, uid: str) -> str:
    """The session's folder behind the content proxy.

    It has the resource's uid, so that a new resource of an old name begins with nothing.
    """
    return f"{namespace}/{session}.{uid[:8]}"
