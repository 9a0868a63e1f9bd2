"""Who wrote which variable of a pod: the operator and the image, the resource, or a secret.

What the resource and its secrets bring comes under prefixes. So nothing of it is a variable of the runner, its
interpreter or its loader before this has been through it, whatever somebody called the keys of a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..environment import RUNNER_VARIABLES, SECRET_PREFIX, VARIABLE_PREFIX
from ..rules import LEFT_TO_SECRETS, is_reserved

_BY_SECRET = LEFT_TO_SECRETS | {"ANTHROPIC_API_KEY"}
"""Variables of the runner that a secret may bring where the operator writes none."""
_TABLE = frozenset(variable.name for variable in RUNNER_VARIABLES)
# What a pod has without anybody having asked for it.
_OF_THE_POD = frozenset(
    "PATH HOME HOSTNAME PWD OLDPWD SHLVL TERM LANG USER LOGNAME TMPDIR _".split()
)
_OF_OTHERS = ("LC_", "CLAUDE_CODE_", "GPG_KEY")


@dataclass(frozen=True, slots=True)
class PodVariables:
    """`own` are those of the runner, its settings and the image. `literal` and `secret` are for the session's
    program, by the names that people gave them; `left_out` are names in secrets that cannot be. `hidden` are
    all values of secrets, of those names too.
    """

    own: Mapping[str, str] = field(repr=False)
    literal: Mapping[str, str] = field(repr=False)
    secret: Mapping[str, str] = field(repr=False)
    left_out: tuple[str, ...] = ()
    hidden: tuple[str, ...] = field(default=(), repr=False)

    @property
    def of_the_program(self) -> dict[str, str]:
        """What the session's program gets: a literal of the resource goes over all else of its name."""
        plain = {k: v for k, v in self.own.items() if not _is_ours(k)}
        return {**plain, **self.secret, **self.literal}

    @property
    def of_git(self) -> dict[str, str]:
        """What is known of proxies, certificates and tokens; HOME and PATH are the pod's own."""
        return {**self.own, **self.secret, **self.literal}


def sorted_variables(environ: Mapping[str, str]) -> PodVariables:
    """The variables of a pod by who wrote them."""
    literal = _below(environ, VARIABLE_PREFIX)
    secret = _below(environ, SECRET_PREFIX)
    own = {
        name: value
        for name, value in environ.items()
        if not name.startswith((VARIABLE_PREFIX, SECRET_PREFIX))
    }
    for name in _BY_SECRET & set(secret):
        own[name] = own.get(name, "").strip() or secret[name]
    left_out = (set(secret) | set(literal)) - _BY_SECRET
    return PodVariables(
        own=own,
        literal={k: v for k, v in literal.items() if not is_reserved(k)},
        secret={k: v for k, v in secret.items() if _may_pass(k)},
        left_out=tuple(sorted(name for name in left_out if is_reserved(name))),
        hidden=tuple(secret.values()),
    )


def _below(environ: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix): value
        for name, value in environ.items()
        if name.startswith(prefix) and len(name) > len(prefix)
    }


def _may_pass(name: str) -> bool:
    return name not in _BY_SECRET and not is_reserved(name)


def _is_ours(name: str) -> bool:
    """Whether it is the runner's, or the pod's: the session's program has its own."""
    if name in _TABLE or is_reserved(name) or name in _OF_THE_POD:
        return True
    return name.startswith(_OF_OTHERS)
