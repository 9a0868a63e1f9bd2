"""The table of the runner's variables in docs/kubernetes.md, written from the code."""

from __future__ import annotations

import re

from midwatch.kube.environment import RUNNER_VARIABLES, Variable

BEGIN, END = "<!-- variables -->", "<!-- end of variables -->"


def with_table(page: str) -> str:
    """The page, with the table between its marks written anew."""
    pattern = re.escape(BEGIN) + r".*?" + re.escape(END)
    table = f"{BEGIN}\n{environment_table()}\n{END}"
    return re.sub(pattern, lambda _: table, page, count=1, flags=re.S)


def environment_table() -> str:
    head = ["| variable | what it is | default |", "|---|---|---|"]
    return "\n".join([*head, *map(_row, RUNNER_VARIABLES)])


def _row(variable: Variable) -> str:
    secret = " *(secret)*" if variable.secret else ""
    return f"| `{variable.name}`{secret} | {variable.meaning} | {_default(variable)} |"


def _default(variable: Variable) -> str:
    if variable.default is None:
        return "required"
    return variable.default or "–"
