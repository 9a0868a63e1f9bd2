"""Generate the tables in docs/kubernetes.md and docs/metrics.md (`python -m tools.tables`)."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from midwatch.cli.metrics import AGENT, MONITOR, NOTIFIER, PULL_REQUESTS, RUNBOOKS
from midwatch.content.server.app import CONTENT
from midwatch.kube.environment import RUNNER_VARIABLES, Variable
from midwatch.kube.operator import OPERATOR
from midwatch.metrics import Family
from midwatch.server.metrics import SERVER

METRICS = (
    *MONITOR,
    *AGENT,
    *NOTIFIER,
    *RUNBOOKS,
    *PULL_REQUESTS,
    *SERVER,
    *OPERATOR,
    *CONTENT,
)
DOCS = Path(__file__).parents[1] / "docs"
KUBERNETES_PAGE, METRICS_PAGE = DOCS / "kubernetes.md", DOCS / "metrics.md"
ARCHITECTURE_PAGE = DOCS / "architecture.md"
SOURCE = DOCS.parent / "src" / "midwatch"


def main() -> None:
    """Write the tables."""
    for page, table in (
        (KUBERNETES_PAGE, with_variables),
        (METRICS_PAGE, with_metrics),
        (ARCHITECTURE_PAGE, with_map),
    ):
        page.write_text(table(page.read_text(encoding="utf-8")), encoding="utf-8")


def with_variables(page: str) -> str:
    """Return docs/kubernetes.md with a current table of the runner's variables."""
    return replaced(page, "variables", environment_table())


def with_metrics(page: str) -> str:
    """Return docs/metrics.md with a current table of metrics."""
    return replaced(page, "metrics", metrics_table(METRICS))


def with_map(page: str) -> str:
    """Return docs/architecture.md with the current map of modules."""
    return replaced(page, "map", module_table())


def module_table() -> str:
    """Return one row a module: its file, and the first line of its docstring."""
    rows = ["| module | what it is |", "|---|---|"]
    for file in sorted(SOURCE.rglob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        if text and "versions" not in file.parts:
            first = text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            rows.append(f"| `{file.relative_to(SOURCE)}` | {first} |")
    return "\n".join(rows)


def replaced(page: str, name: str, table: str) -> str:
    """Return the page with the table between the marks of that name replaced. Raises ValueError without the marks."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.escape(begin) + r".*?" + re.escape(end)
    whole = f"{begin}\n{table}\n{end}"
    made, found = re.subn(pattern, lambda _: whole, page, count=1, flags=re.S)
    if not found:
        raise ValueError(f"the page has no {begin}")
    return made


def environment_table() -> str:
    """Return the table of the runner's variables."""
    head = ["| variable | meaning | set by | default |", "|---|---|---|---|"]
    return "\n".join([*head, *map(_variable, RUNNER_VARIABLES)])


def _variable(variable: Variable) -> str:
    secret = " *(secret)*" if variable.secret else ""
    cells = (f"`{variable.name}`{secret}", variable.meaning, variable.set_by)
    return f"| {' | '.join(cells)} | {_default(variable)} |"


def _default(variable: Variable) -> str:
    if variable.default is None:
        return "required"
    return variable.default or "–"


def metrics_table(families: Sequence[Family]) -> str:
    """Return the table of metrics."""
    head = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *map(_family, families)])


def _family(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"


if __name__ == "__main__":
    main()
