"""What the package promises as a whole: its public names, its imports, its boundaries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import NoReturn, get_args

import anthropic
import httpx2
import pytest
from anthropic import APIStatusError, _exceptions
from anthropic.types import ErrorObject
from tools.tables import ARCHITECTURE_PAGE, with_map

import midwatch
import midwatch.agent
from midwatch._moved import MODULES, NAMES
from midwatch.agent.claude import Claude, map_api_error
from midwatch.agent.diagnosis import Prompt
from midwatch.diagnosis_schema import Kind

SOURCE = Path(midwatch.__file__).parent
CHECKOUT = Path(__file__).parents[2]


# ------------------------------------------------------------------ the public names


@pytest.mark.parametrize("name", midwatch.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(midwatch, name) is not None


@pytest.mark.parametrize("name", midwatch.agent.__all__)
def test_every_public_name_of_the_agent_is_there(name: str) -> None:
    assert getattr(midwatch.agent, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    for module in (midwatch, midwatch.agent):
        with pytest.raises(AttributeError, match="nonsense"):
            module.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.integration
@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import midwatch", "anthropic pydantic sqlalchemy typer asyncio"),
        ("from midwatch import MonitorLoop, AgentRunner", "anthropic"),
        ("from midwatch.agent import AgentRunner, SYSTEM_PROMPT", "anthropic"),
        ("from midwatch.agent import *", "anthropic"),
        ("from midwatch import TicketDB", "anthropic claude_agent_sdk"),
        ("import midwatch.cli.main", "anthropic sqlalchemy claude_agent_sdk"),
        ("import midwatch.subjects.http", "cryptography httpx2 httpcore2"),
        ("from midwatch import SessionManager", "anthropic claude_agent_sdk"),
        ("import midwatch.cli.session.view", "anthropic claude_agent_sdk"),
        (
            "from midwatch.session.agent_sdk import import_without_tool_servers as load;"
            " load(); import midwatch.cli.session.run",
            "mcp jsonschema httpx2 h11 midwatch.store.protocol midwatch.cli.tickets",
        ),
    ],
)
def test_what_is_not_used_is_not_imported(statement: str, unwanted: str) -> None:
    code = (
        f"{statement}; import sys; print(*set({unwanted.split()}) & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == []


OLD_NAMES = [
    ("midwatch.answer", "DiagnosisOutput"),
    ("midwatch.events", "Message"),
    ("midwatch.grounding", "ground"),
    ("midwatch.intake", "Redactor"),
    ("midwatch.kube.names", "SESSION_LABEL"),
    ("midwatch.kube.observed", "judge"),
    ("midwatch.kube.verdict", "attempt_health"),
    ("midwatch.lifecycle", "Stop"),
    ("midwatch.lifecycle", "signals_set"),
    ("midwatch.prompt", "compose"),
    ("midwatch.redaction", "Intake"),
    ("midwatch.session.blocking", "run_agentic_session"),
    ("midwatch.session.ledger", "read_ledger"),
    ("midwatch.session.outbox", "read_events"),
    ("midwatch.session.session", "AsyncAgenticSession"),
    ("midwatch.status", "fold"),
    ("midwatch.subjects._command_output", "parse"),
    ("midwatch.subjects.configure", "configure"),
    ("midwatch.subjects.postgres.logs", "kind_of"),
    ("midwatch.testing.store_conformance", "Stand"),
    ("midwatch.testing.store_conformance.fixture", "Stand"),
    ("midwatch.testing.store_conformance.stand", "opening"),
]


@pytest.mark.parametrize(("module", "name"), OLD_NAMES)
def test_a_documented_old_name_warns_and_works(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.warns(DeprecationWarning, match=module.replace(".", r"\.")):
        found = getattr(import_module(module), name)
    new = MODULES.get(module, module)
    assert found is getattr(import_module(new), NAMES.get(module, {}).get(name, name))
    assert import_module(new).__spec__.name == new  # type: ignore[union-attr]


def test_every_old_name_is_tried() -> None:
    names = {(module, name) for module, names in NAMES.items() for name in names}
    assert names <= set(OLD_NAMES)
    assert MODULES.keys() | NAMES.keys() == {module for module, _ in OLD_NAMES}


# ------------------------------------------------------------------ the SDK's errors

# The statuses of docs.anthropic.com/en/api/errors and of the SDK's own classes; what each of them
# means for us is the outcome table. A status that we do not know costs a ticket nothing.
BY_STATUS = {
    400: Kind.REJECTED,
    401: Kind.UNAUTHORISED,
    402: Kind.SPEND_LIMIT,
    403: Kind.UNAUTHORISED,
    404: Kind.UNAUTHORISED,
    408: Kind.UNREACHABLE,
    409: Kind.UNREACHABLE,
    412: Kind.UNREACHABLE,
    413: Kind.REJECTED,
    422: Kind.REJECTED,
    429: Kind.RATE_LIMITED,
    431: Kind.REJECTED,
    499: Kind.UNREACHABLE,
    500: Kind.UNREACHABLE,
    501: Kind.UNREACHABLE,
    503: Kind.UNREACHABLE,
    504: Kind.UNREACHABLE,
    529: Kind.UNREACHABLE,
}
BY_TYPE = {
    "invalid_request_error": Kind.REJECTED,
    "authentication_error": Kind.UNAUTHORISED,
    "billing_error": Kind.SPEND_LIMIT,
    "permission_error": Kind.UNAUTHORISED,
    "not_found_error": Kind.UNAUTHORISED,
    "rate_limit_error": Kind.RATE_LIMITED,
    "timeout_error": Kind.UNREACHABLE,
    "api_error": Kind.UNREACHABLE,
    "overloaded_error": Kind.UNREACHABLE,
}


def below(root: type[Exception]) -> Iterator[type[Exception]]:
    """Yield a class and those below it of the same library: others add theirs when they are imported."""
    yield root
    for child in root.__subclasses__():
        if child.__module__.split(".")[0] == root.__module__.split(".")[0]:
            yield from below(child)


def statuses() -> set[int]:
    """Every status that the SDK has a class for."""
    found = (vars(kind).get("__annotations__", {}) for kind in below(APIStatusError))
    literals = (get_args(_literal(told.get("status_code"))) for told in found)
    return {status for values in literals for status in values}


def _literal(written: object) -> object:
    return eval(written, vars(_exceptions)) if isinstance(written, str) else written


def test_every_status_and_type_of_the_sdk_is_known() -> None:
    assert statuses() == BY_STATUS.keys() - {500}, "500 is what has no other class"
    members = get_args(get_args(ErrorObject)[0])
    types = {get_args(one.model_fields["type"].annotation)[0] for one in members}
    assert types == BY_TYPE.keys()


@pytest.mark.parametrize(("status", "kind"), BY_STATUS.items())
def test_a_status_without_a_type(status: int, kind: Kind) -> None:
    assert map_api_error(status, None, None) is kind


@pytest.mark.parametrize(("type_", "kind"), BY_TYPE.items())
@pytest.mark.parametrize("status", [200, 500])
def test_a_type_decides_before_the_status(type_: str, kind: Kind, status: int) -> None:
    """An error in the middle of a stream arrives with status 200."""
    assert map_api_error(status, type_, None) is kind
    assert map_api_error(413, type_, None) is Kind.REJECTED
    assert (
        map_api_error(status, type_, "enforced_spend_limit_reached") is Kind.SPEND_LIMIT
    )


class Raising:
    """In the place of the SDK's client: whatever is asked of it raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @property
    def beta(self) -> NoReturn:
        raise self._error


@pytest.mark.parametrize(
    "kind",
    [
        *(
            kind
            for kind in below(anthropic.AnthropicError)
            if not issubclass(kind, APIStatusError)
        ),
        *below(httpx2.HTTPError),
        *below(httpx2.StreamError),
        ConnectionResetError,
        TimeoutError,
    ],
    ids=lambda kind: kind.__name__,
)
async def test_no_error_of_the_sdk_or_its_transport_escapes(
    kind: type[Exception],
) -> None:
    claude = Claude("claude-sonnet-5-5", 5, "sk-ant-test")
    await claude.close()
    error = kind.__new__(kind, "something broke")
    vars(error).setdefault("request_id", None)  # WorkloadIdentityError tells it
    claude._client = Raising(error)  # type: ignore[assignment]
    reply = await claude.ask(Prompt("", ""), 100)
    expected = (
        Kind.UNAUTHORISED
        if issubclass(kind, anthropic.CredentialsError)
        else Kind.UNREACHABLE
    )
    assert reply.kind is expected and reply.error


# ------------------------------------------------------------------ the source

# The outermost guards of daemons, and the places where plug-ins are called.
GUARDS = {
    "agent/claude_worker.py": 1,
    "agent/surroundings.py": 1,
    "cli/check.py": 1,
    "cli/session/interrupted.py": 1,
    "content/server/app.py": 1,
    "kube/controller.py": 1,
    "cluster/reflector.py": 1,
    "monitor/loop.py": 1,
    "monitor/change_reader.py": 1,
    "server/guard.py": 1,
    "agent/runner.py": 1,
    "session/claude_code.py": 2,
    "testing/messages_api.py": 1,
    "tests/cluster/kubelet.py": 1,
    "monitor/subject.py": 1,
    "notify/notifier.py": 2,
    "pull_requests/watcher.py": 2,
}


ENVIRONMENT_READERS = {
    "cli/main.py",
    "agent/claude_worker.py",  # it takes over the environment of the daemon that started it
    "cluster/credentials.py",  # what kubectl passes on to a credential program
    "cluster/kubeconfig.py",  # where a pod finds its API server
    "tests/cluster/demo.py",
    # For library users: as `anthropic.Anthropic()` reads it, and HOME and XDG_*.
    "workspace/environment.py",
}

# File names that stand more than once, and what each of them has in every package.
REPEATED = {
    "__init__.py": "the public names of the package",
    "action_runs.py": "approved actions: their store, and its checks",
    "api_tokens.py": "tokens of programs and sign-ins of people: their store, and its checks",
    "app.py": "the composition of a program",
    "base.py": "the protocol that the other modules implement",
    "cache.py": "what is kept in memory or on disk to be found again",
    "checks.py": "the checks of a subject, one function for each invariant",
    "connection.py": "the connection to a server, and the only place that maps its errors",
    "changes.py": "changes of watched systems: their command, and the checks of their store",
    "client.py": "the one that sends requests",
    "daemons.py": "long-running processes, and the checks of their heartbeats",
    "demo.py": "a demo's command",
    "environment.py": "the variables of a child process",
    "errors.py": "the package's errors",
    "evidence.py": "the evidence of a subject or of a prompt",
    "feed.py": "the feed of changes: of the store, of a process, and its checks",
    "http.py": "requests and responses",
    "overview.py": "what the page reads of a store, and its checks",
    "log.py": "the log: a session's events, PostgreSQL's own",
    "mailbox.py": "the mailbox of a session, and its commands",
    "loop.py": "the loop of a daemon or a session",
    "metrics.py": "metrics",
    "options.py": "options",
    "rules.py": "rules, pure",
    "run.py": "one run of a session",
    "schedules.py": "schedules of sessions: their command, and their store",
    "runner.py": "the agent's runner, the pod's runner",
    "settings.py": "settings",
    "silences.py": "silences",
    "sql.py": "SQL",
    "status.py": "the status of a session",
    "subject.py": "a subject",
    "system_changes.py": "changes of watched systems, and their store",
    "text.py": "text",
    "concerned.py": "what the tickets of a database server are about, and evidence of it",
    "context.py": "what the parts of one piece of work share",
    "evidence_sql.py": "SQL for the evidence of a database server",
    "evidence_text.py": "rows of a database server as text",
    "locks.py": "lock queues of a database server: who waits for whom, and first aid",
    "replication.py": "the checks of replication of a database server",
    "select_guard.py": "what a SELECT may do: for each database, and what they share",
    "sessions.py": "sessions",
    "tables.py": "tables",
    "tool_sql.py": "SQL of the tools of a database server",
    "rows.py": "rows: of a database server, of a page",
    "snapshot.py": "the state of one moment: of a clone, of a database server",
    "tickets.py": "tickets",
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 650, 60


Sources = Mapping[str, tuple[ast.AST, ...]]
LOOKED_AT = (
    *(ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ImportFrom),
    *(ast.Attribute, ast.alias, ast.ExceptHandler),
)


@pytest.fixture(scope="module")
def sources() -> Sources:
    """The nodes that are looked at of the wheel's files, by their place in it, and of those that are held to the same."""
    beside = (CHECKOUT / "tests" / "cluster", CHECKOUT / "tools")
    return {
        str(file.relative_to(root)): tuple(
            node
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, LOOKED_AT)
        )
        for folder, root in ((SOURCE, SOURCE), *((one, CHECKOUT) for one in beside))
        for file in sorted(folder.rglob("*.py"))
    }


def test_only_the_edge_reads_the_environment(sources: Sources) -> None:
    readers = {
        name
        for name, nodes in sources.items()
        for node in nodes
        if isinstance(node, ast.Attribute | ast.alias)
        and (node.attr if isinstance(node, ast.Attribute) else node.name)
        in ("environ", "environb", "getenv", "putenv")
        and (isinstance(node, ast.alias) or _is_os(node.value))
    }
    assert readers == ENVIRONMENT_READERS


def _is_os(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"


def test_broad_handlers_are_the_outermost_guards(sources: Sources) -> None:
    found = Counter(
        name
        for name, nodes in sources.items()
        for node in nodes
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    )
    assert found.keys() <= GUARDS.keys(), "catch what is really raised there"
    assert all(count <= GUARDS[name] for name, count in found.items())


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """Catches everything, and does not raise it again when it has cleaned up."""
    caught = (
        handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    )
    broad = any(
        one is None or (isinstance(one, ast.Name) and one.id == "Exception")
        for one in caught
    )
    last = handler.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def test_no_import_runs_in_a_circle(sources: Sources) -> None:
    """Also none that a function or a type checker makes."""
    modules = {_module(name): nodes for name, nodes in sources.items()}
    graph = {
        name: {
            imported
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            for imported in _imported(node, modules)
        }
        - {name}
        for name, nodes in modules.items()
    }
    TopologicalSorter(graph).prepare()


def _module(file: str) -> str:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    inside = name.startswith(("tests.", "tools"))
    return name if inside else f"midwatch.{name}".removesuffix(".__init__")


def _imported(node: ast.ImportFrom, known: Collection[str]) -> set[str]:
    """The modules of ours that a statement imports: the one it names, or those within it."""
    within = {f"{node.module}.{one.name}" for one in node.names}
    modules = within if within & set(known) else {str(node.module)}
    return modules & set(known)


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_no_file_name_stands_twice_by_chance(sources: Sources) -> None:
    wheel = (name for name in sources if not name.startswith(("tests/", "tools/")))
    count = Counter(Path(name).name for name in wheel)
    assert {name for name, times in count.items() if times > 1} == REPEATED.keys()


def test_files_and_functions_are_short(sources: Sources) -> None:
    long = [
        (name, getattr(node, "name", "the file"), lines)
        for name, nodes in sources.items()
        for node in nodes
        if "/versions/" not in name and (lines := _lines(node)) > _most(node)
    ]
    assert not long


def _lines(node: ast.AST) -> int:
    if isinstance(node, ast.Module):
        return node.body[-1].end_lineno or 0 if node.body else 0
    start, end = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
    return end - start + 1


def _most(node: ast.AST) -> float:
    if isinstance(node, ast.Module):
        return MOST_LINES
    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return MOST_LINES_OF_A_FUNCTION if function else float("inf")


# ------------------------------------------------------------------ the map


def test_the_map_of_modules_is_current() -> None:
    page = ARCHITECTURE_PAGE.read_text(encoding="utf-8")
    assert page == with_map(page), "run `make docs`"


def test_the_three_ways_name_what_exists(sources: Sources) -> None:
    page = ARCHITECTURE_PAGE.read_text(encoding="utf-8")
    ways = page.partition("## Three ways")[2].partition("## Why each")[0]
    modules = {
        name[:-3].replace("/", "."): nodes[0]
        for name, nodes in sources.items()
        if isinstance(nodes[0], ast.Module)
    }
    steps = re.findall(r"`((?:[a-z_]+\.)+\w+)`", ways)
    found = [step for step in steps if _is_defined(step, modules)]
    unknown = set(steps) - set(found) - {"monitor.interval"}
    assert len(found) > 30 and not unknown


def _is_defined(step: str, modules: Mapping[str, ast.AST]) -> bool:
    """Return whether `package.module.Class.method` is a module, or a name defined in one."""
    parts = step.split(".")
    for length in range(len(parts), 0, -1):
        tree: ast.AST | None = modules.get(".".join(parts[:length]))
        if tree is not None:
            for name in parts[length:]:
                tree = next(
                    (one for one in tree.body if getattr(one, "name", "") == name),  # type: ignore[union-attr]
                    None,
                )
                if tree is None:
                    return False
            return True
    return False


def test_every_dependency_has_its_reason() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    project = settings["project"]
    extras = project["optional-dependencies"] | settings["dependency-groups"]
    needed = [
        one
        for extra, them in {"": project["dependencies"], **extras}.items()
        if extra != "dev"
        for one in them
    ]
    names = {re.split(r"[\[<>=]", one)[0] for one in needed} - {"midwatch"}
    page = ARCHITECTURE_PAGE.read_text(encoding="utf-8")
    table = page.partition("## Why each dependency")[2].partition("## Map")[0]
    first_cells = "".join(line.split(" | ")[0] for line in table.splitlines())
    extras_named = set(extras) - {"dev"} - names
    assert set(re.findall(r"`([\w-]+)`", first_cells)) - extras_named == names


@pytest.mark.parametrize(
    "module", sorted(path.stem for path in (CHECKOUT / "bench").glob("[!_]*.py"))
)
def test_every_benchmark_can_be_imported(module: str) -> None:
    import_module(f"bench.{module}")
