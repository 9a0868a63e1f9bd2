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
